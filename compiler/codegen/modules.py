"""Which `nn` module computes what an operation computes: one table, from operators to module classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from compiler.codegen.forms import AnyBatchNorm, ModuleForm, own_location
from compiler.codegen.weights import weight_of
from compiler.emitted.fused import ScaledDotProductAttention
from ir.attributes import Attribute
from ir.core import Operation, Value
from ir.program import Weight
from ir.types import TensorType

WeightOf = Callable[[Value | None], Weight | None]

_Maker = Callable[[Operation, WeightOf], ModuleForm | None]
_FORMS: dict[str, _Maker] = {}


def module_form(op: Operation, find: WeightOf = weight_of) -> ModuleForm | None:
    """Return the module that computes `op`, or None where there is none (its weights are computed, its sizes symbolic).

    Args:
        op: the operation.
        find: returns the weight that an operand is (inside a region, an operand is an input of the body).
    """
    maker = _FORMS.get(op.name)
    if maker is None or len(op.operands) != op.num_schema_operands:
        return None
    return maker(op, find)


def _form(*names: str) -> Callable[[_Maker], _Maker]:
    def add(maker: _Maker) -> _Maker:
        for name in names:
            _FORMS[name] = maker
        return maker

    return add


def _ints(*values: Attribute) -> bool:
    return all(_ints(*v) if isinstance(v, tuple) else isinstance(v, (int, str)) for v in values)


def _short(value: Attribute) -> Attribute:
    """Return (3, 3) as 3: it reads better, and modules expand it."""
    if isinstance(value, tuple) and len(value) > 1 and all(v == value[0] for v in value):
        return value[0]
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _slots(op: Operation, find: WeightOf, names: Mapping[str, str]) -> tuple[tuple[str, Weight], ...] | None:
    """Return the weights in the operands named; None when an operand that is there is no weight."""
    found: list[tuple[str, Weight]] = []
    for operand, slot in names.items():
        value = op.operand(operand)
        if value is None:
            continue
        weight = find(value)
        if weight is None or not weight.type.is_static:
            return None
        found.append((slot, weight))
    return tuple(found)


def _shape(weight: Weight) -> tuple[int, ...]:
    return tuple(int(d) for d in weight.type.shape or () if isinstance(d, int))


def _options(**options: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(options.items())


_AFFINE = {"weight": "weight", "bias": "bias"}


def _make_conv(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, _AFFINE)
    sizes = (a["stride"], a["padding"], a["dilation"], a["groups"])
    if not slots or slots[0][0] != "weight" or not _ints(*sizes):
        return None
    rank = int(op.name.split(".")[1][4])
    shape, (stride, padding, dilation, groups) = _shape(slots[0][1]), sizes
    if len(shape) != rank + 2:
        return None
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    kernel = shape[2:]
    options = _options(
        in_channels=shape[1] * groups,
        out_channels=shape[0],
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=len(slots) == 2,
        device="meta",
    )
    return ModuleForm(cls, options, slots, (op.input("input"),))


_form(*(f"aten.conv{n}d{suffix}" for n in (1, 2, 3) for suffix in ("", ".padding")))(_make_conv)


@_form("aten.conv_transpose1d", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def _make_conv_transpose(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, _AFFINE)
    sizes = (a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"])
    if not slots or slots[0][0] != "weight" or not _ints(*sizes):
        return None
    stride, padding, output_padding, groups, dilation = sizes
    shape = _shape(slots[0][1])
    rank = len(shape) - 2
    cls = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    options = _options(
        in_channels=shape[0],
        out_channels=shape[1] * groups,
        kernel_size=shape[2:],
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        bias=len(slots) == 2,
        dilation=dilation,
        device="meta",
    )
    return ModuleForm(cls, options, slots, (op.input("input"),))


@_form("aten.linear")
def _make_linear(op: Operation, find: WeightOf) -> ModuleForm | None:
    slots = _slots(op, find, _AFFINE)
    if not slots or slots[0][0] != "weight" or len(_shape(slots[0][1])) != 2:
        return None
    out_features, in_features = _shape(slots[0][1])
    options = _options(in_features=in_features, out_features=out_features, bias=len(slots) == 2, device="meta")
    return ModuleForm(nn.Linear, options, slots, (op.input("input"),))


_STATISTICS = {"running_mean": "running_mean", "running_var": "running_var"}


def _by_rank(op: Operation, family: str, value: Value) -> type[nn.Module] | None:
    """Return the class of `family` (BatchNorm, InstanceNorm) for the original's class, else for the input's rank."""
    for location in op.location.parts:
        if location.module_class.startswith("torch.nn.") and location.class_name in (
            f"{family}1d",
            f"{family}2d",
            f"{family}3d",
            f"Sync{family}",
        ):
            return getattr(nn, location.class_name)  # type: ignore[no-any-return]
    rank = value.type.rank if isinstance(value.type, TensorType) else None
    suffix = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}.get(rank or 0)
    return None if suffix is None else getattr(nn, family + suffix)


def _norm_options(op: Operation, slots: tuple[tuple[str, Weight], ...]) -> tuple[tuple[str, Any], ...] | None:
    """Return the options of a normalization over channels; None without weights, and where it shifts alone."""
    held = dict(slots)
    if not slots or ("bias" in held and "weight" not in held):
        return None
    return _options(
        num_features=_shape(slots[0][1])[0],
        eps=op.attributes["eps"],
        momentum=op.attributes["momentum"],
        affine="weight" in held,
        track_running_stats="running_mean" in held,
        device="meta",
        **({"bias": False} if "weight" in held and "bias" not in held else {}),
    )


@_form("aten.batch_norm")
def _make_batch_norm(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, _AFFINE | _STATISTICS)
    if slots is None:
        return None
    held = dict(slots)
    tracked = "running_mean" in held
    if tracked and not (a.get("follows_mode", True) and a.get("counts_batches", True)):
        return None
    options = _norm_options(op, slots)
    if options is None or tracked != ("running_var" in held) or not ("weight" in held or tracked):
        return None
    if not tracked and not a["training"]:
        return None
    value = op.input("input")
    cls = _by_rank(op, "BatchNorm", value) or AnyBatchNorm
    # without statistics the operation is always in training, and says nothing about the module
    training = bool(a["training"]) if tracked else None
    return ModuleForm(cls, options, slots, (value,), training=training, counter=tracked)


@_form("aten.instance_norm")
def _make_instance_norm(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, _AFFINE | _STATISTICS)
    value = op.input("input")
    cls = _by_rank(op, "InstanceNorm", value)
    if not slots or cls is None:
        return None
    tracked = "running_mean" in dict(slots)
    from_module = own_location(op, ModuleForm(cls, ())) is not None
    options = _norm_options(op, slots)
    if options is None or (not tracked and not a["use_input_stats"]) or (tracked and not from_module):
        return None
    training = bool(a["use_input_stats"]) if tracked else None
    return ModuleForm(cls, options, slots, (value,), training=training, counter=tracked)


@_form("aten.layer_norm")
def _make_layer_norm(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, _AFFINE)
    if slots is None or not _ints(a["normalized_shape"]):
        return None
    held = dict(slots)
    if "bias" in held and "weight" not in held:
        return None
    options = _options(
        normalized_shape=a["normalized_shape"],
        eps=a["eps"],
        elementwise_affine="weight" in held,
        bias="bias" in held,
        device="meta",
    )
    return ModuleForm(nn.LayerNorm, options, slots, (op.input("input"),))


@_form("aten.rms_norm")
def _make_rms_norm(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, {"weight": "weight"})
    if slots is None or not _ints(a["normalized_shape"]):
        return None
    options = _options(
        normalized_shape=a["normalized_shape"], eps=a["eps"], elementwise_affine=bool(slots), device="meta"
    )
    return ModuleForm(nn.RMSNorm, options, slots, (op.input("input"),))


@_form("aten.group_norm")
def _make_group_norm(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, _AFFINE)
    value = op.input("input")
    if slots is None or len(slots) == 1 or not _ints(a["num_groups"]):
        return None
    shape = value.type.shape if isinstance(value.type, TensorType) else None
    channels = _shape(slots[0][1])[0] if slots else shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int):
        return None
    options = _options(
        num_groups=a["num_groups"], num_channels=channels, eps=a["eps"], affine=bool(slots), device="meta"
    )
    return ModuleForm(nn.GroupNorm, options, slots, (value,))


@_form("aten.embedding")
def _make_embedding(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    slots = _slots(op, find, {"weight": "weight"})
    if not slots or len(_shape(slots[0][1])) != 2 or not _ints(a["padding_idx"]):
        return None
    rows, columns = _shape(slots[0][1])
    options = _options(
        num_embeddings=rows,
        embedding_dim=columns,
        padding_idx=None if a["padding_idx"] < 0 else a["padding_idx"],
        scale_grad_by_freq=a["scale_grad_by_freq"],
        sparse=a["sparse"],
        device="meta",
    )
    return ModuleForm(nn.Embedding, options, slots, (op.input("indices"),))


@_form("aten.prelu")
def _make_prelu(op: Operation, find: WeightOf) -> ModuleForm | None:
    slots = _slots(op, find, {"weight": "weight"})
    if not slots or len(_shape(slots[0][1])) != 1:
        return None
    options = _options(num_parameters=_shape(slots[0][1])[0], device="meta")
    return ModuleForm(nn.PReLU, options, slots, (op.input("self"),))


_DROPOUTS: dict[str, tuple[type[nn.Module], ...]] = {
    "aten.dropout": (nn.Dropout,),
    "aten.feature_dropout": (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    "aten.alpha_dropout": (nn.AlphaDropout,),
    "aten.feature_alpha_dropout": (nn.FeatureAlphaDropout,),
}


@_form(*_DROPOUTS)
def _make_dropout(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    if not a.get("follows_mode", True) or not isinstance(a["p"], (int, float)):
        return None
    value = op.input("input")
    classes = _DROPOUTS[op.name]
    rank = value.type.rank if isinstance(value.type, TensorType) else None
    if len(classes) > 1:  # of another rank, `Dropout2d` and its like take the input for one without a batch
        classes = classes if rank is None else classes[rank - 3 : rank - 2] if rank >= 3 else ()
    own = (c for c in classes if own_location(op, ModuleForm(c, ())) is not None)
    cls = next(own, classes[len(classes) // 2] if classes else None)
    return None if cls is None else ModuleForm(cls, _options(p=a["p"]), (), (value,), training=bool(a["train"]))


def _plain(name: str, cls: type[nn.Module], *attributes: str, **fixed: Attribute) -> None:
    """Add an operator whose module takes the attributes named, and that holds only where others have fixed values."""

    def make(op: Operation, find: WeightOf) -> ModuleForm | None:
        a = op.attributes
        if any(a[key] != value for key, value in fixed.items()):
            return None
        options = tuple((key.rstrip("_"), _short(a[key])) for key in attributes)
        if not all(isinstance(v, (int, float, str)) for _, v in options):
            return None
        return ModuleForm(cls, options, (), (op.operands[0],))

    _FORMS[name] = make


_plain("aten.relu", nn.ReLU)
_plain("aten.relu6", nn.ReLU6)
_plain("aten.leaky_relu", nn.LeakyReLU, "negative_slope")
_plain("aten.elu", nn.ELU, "alpha", scale=1, input_scale=1)
_plain("aten.celu", nn.CELU, "alpha")
_plain("aten.selu", nn.SELU)
_plain("aten.gelu", nn.GELU, "approximate")
_plain("aten.silu", nn.SiLU)
_plain("aten.mish", nn.Mish)
_plain("aten.hardswish", nn.Hardswish)
_plain("aten.hardsigmoid", nn.Hardsigmoid)
_plain("aten.sigmoid", nn.Sigmoid)
_plain("aten.tanh", nn.Tanh)
_plain("aten.log_sigmoid", nn.LogSigmoid)
_plain("aten.softplus", nn.Softplus, "beta", "threshold")
_plain("aten.softmax.int", nn.Softmax, "dim", dtype=None)
_plain("aten.log_softmax.int", nn.LogSoftmax, "dim", dtype=None)
_plain("aten.glu", nn.GLU, "dim")


@_form("aten.hardtanh")
def _make_hardtanh(op: Operation, find: WeightOf) -> ModuleForm | None:
    low, high = op.attributes["min_val"], op.attributes["max_val"]
    if not all(isinstance(v, (int, float)) for v in (low, high)):
        return None
    if (low, high) == (0, 6):
        return ModuleForm(nn.ReLU6, (), (), (op.operands[0],))
    return ModuleForm(nn.Hardtanh, _options(min_val=low, max_val=high), (), (op.operands[0],))


@_form("aten.scaled_dot_product_attention")
def _make_attention(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    numbers = (a["dropout_p"], a["train_dropout_p"], a["is_causal"], a["enable_gqa"], a["scale"])
    if not all(v is None or isinstance(v, (bool, int, float)) for v in numbers):
        return None
    follows = a["train_dropout_p"] > 0
    options = _options(
        dropout_p=a["train_dropout_p"] if follows else a["dropout_p"],
        always_drop=not follows and a["dropout_p"] > 0,
        is_causal=a["is_causal"],
        scale=a["scale"],
        enable_gqa=a["enable_gqa"],
    )
    inputs = tuple(op.operands) if op.operands[3] is not None else tuple(op.operands[:3])
    training = a["dropout_p"] > 0 if follows else None
    return ModuleForm(ScaledDotProductAttention, options, (), inputs, training=training)


@_form("nn.multihead_attention")
def _make_multihead_attention(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    names = {
        "in_proj_weight": "in_proj_weight",
        "q_proj_weight": "q_proj_weight",
        "k_proj_weight": "k_proj_weight",
        "v_proj_weight": "v_proj_weight",
        "in_proj_bias": "in_proj_bias",
        "bias_k": "bias_k",
        "bias_v": "bias_v",
        "out_proj_weight": "out_proj.weight",
        "out_proj_bias": "out_proj.bias",
    }
    slots = _slots(op, find, names)
    if not slots:
        return None
    held = dict(slots)
    separate = "in_proj_weight" not in held
    options = _options(
        embed_dim=a["embed_dim"],
        num_heads=a["num_heads"],
        dropout=a["dropout"],
        bias="in_proj_bias" in held,
        add_bias_kv="bias_k" in held,
        add_zero_attn=a["add_zero_attn"],
        kdim=_shape(held["k_proj_weight"])[1] if separate else None,
        vdim=_shape(held["v_proj_weight"])[1] if separate else None,
        batch_first=a["batch_first"],
        device="meta",
    )
    keywords: list[tuple[str, Any]] = [
        (name, op.operand(name)) for name in ("key_padding_mask", "attn_mask") if op.operand(name) is not None
    ]
    for name, default in (("need_weights", True), ("average_attn_weights", True), ("is_causal", False)):
        if a[name] is not default:
            keywords.append((name, a[name]))
    return ModuleForm(
        nn.MultiheadAttention,
        options,
        slots,
        (op.input("query"), op.input("key"), op.input("value")),
        tuple(keywords),
        bool(a["training"]),
    )


_POOLS = {
    "max_pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive_avg_pool": ("output_size",),
}


def _make_pool(op: Operation, find: WeightOf) -> ModuleForm | None:
    family, rank = op.opdef.short_name[:-2], int(op.opdef.short_name[-2])
    camel = {"max_pool": nn.MaxPool1d, "avg_pool": nn.AvgPool1d, "adaptive_avg_pool": nn.AdaptiveAvgPool1d}[family]
    cls = getattr(nn, f"{camel.__name__[:-2]}{rank}d")
    options: dict[str, Any] = {key: op.attributes[key] for key in _POOLS[family] if key in op.attributes}
    if not all(v is None or _ints(v) for v in options.values()):
        return None
    if options.get("stride") == ():
        options["stride"] = options["kernel_size"]
    if options.get("divisor_override", 0) is None:
        del options["divisor_override"]
    return ModuleForm(cls, tuple((k, _short(v)) for k, v in options.items()), (), (op.operands[0],))


_form(*(f"aten.{family}{n}d" for family in _POOLS for n in (1, 2, 3)))(_make_pool)
