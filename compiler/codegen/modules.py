"""Which `nn` module computes what an operation computes: one table, from operators to module classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from compiler.codegen.forms import AnyBatchNorm, ModuleForm, own_location
from compiler.emitted.fused import ScaledDotProductAttention
from ir.attributes import Attribute, attributes_equal
from ir.core import Operation, Value
from ir.program import Weight, weight_of
from ir.types import TensorType

WeightOf = Callable[[Value | None], Weight | None]
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the weights that an operation has, by their names in the module."""

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
        _FORMS.update(dict.fromkeys(names, maker))
        return maker

    return add


_Described = tuple[type[nn.Module], dict[str, Any]] | None
"""A class and its options, or None where no module computes the operation."""
_Describe = Callable[[Operation, Shapes], _Described]


def _layer(
    *names: str, weights: Sequence[str] = ("weight", "bias"), ints: Sequence[str] = (), data: int = 0
) -> Callable[[_Describe], _Describe]:
    """Add operators on one value (operand number `data`) and weights; the attributes in `ints` must be literals."""

    def add(describe: _Describe) -> _Describe:
        def make(op: Operation, find: WeightOf) -> ModuleForm | None:
            slots = _slots(op, find, {name: name for name in weights})
            if slots is None or not all(_ints(op.attributes[name]) for name in ints if name in op.attributes):
                return None
            described = describe(op, {name: _shape(weight) for name, weight in slots})
            if described is None:
                return None
            cls, options = described
            return ModuleForm(cls, _options(**options, device="meta"), slots, (op.operands[data],))

        _form(*names)(make)
        return describe

    return add


def _ints(*values: Attribute) -> bool:
    return all(_ints(*v) if isinstance(v, tuple) else isinstance(v, (int, str)) for v in values)


def _short(value: Attribute) -> Attribute:
    """Return (3, 3) as 3: it reads better, and modules expand it."""
    if isinstance(value, tuple) and len(value) > 1 and all(v == value[0] for v in value):
        return value[0]
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _slots(op: Operation, find: WeightOf, names: Mapping[str, str]) -> tuple[tuple[str, Weight], ...] | None:
    """Return the weights among the operands named; None where one is computed, or its shape is not static."""
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


_CONV_SIZES = ("stride", "padding", "output_padding", "dilation", "groups")


@_layer(
    *(f"aten.conv{n}d{suffix}" for n in (1, 2, 3) for suffix in ("", ".padding")),
    *("aten.conv_transpose1d", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input"),
    ints=_CONV_SIZES,
)
def _conv(op: Operation, shapes: Shapes) -> _Described:
    family, rank = op.opdef.short_name[:-2], int(op.opdef.short_name[-2])
    shape = shapes.get("weight", ())
    if len(shape) != rank + 2:
        return None
    sizes = {name: op.attributes[name] for name in _CONV_SIZES if name in op.attributes}
    first, second = shape[0], shape[1] * sizes["groups"]
    is_transposed = family == "conv_transpose"
    options = {
        "in_channels": first if is_transposed else second,
        "out_channels": second if is_transposed else first,
        "kernel_size": shape[2:],
        **sizes,
        "bias": "bias" in shapes,
    }
    return getattr(nn, f"{'ConvTranspose' if is_transposed else 'Conv'}{rank}d"), options


@_layer("aten.linear")
def _linear(op: Operation, shapes: Shapes) -> _Described:
    if len(shapes.get("weight", ())) != 2:
        return None
    out_features, in_features = shapes["weight"]
    return nn.Linear, {"in_features": in_features, "out_features": out_features, "bias": "bias" in shapes}


@_layer("aten.layer_norm", ints=("normalized_shape",))
def _layer_norm(op: Operation, shapes: Shapes) -> _Described:
    if "bias" in shapes and "weight" not in shapes:
        return None
    sizes = {name: op.attributes[name] for name in ("normalized_shape", "eps")}
    return nn.LayerNorm, {**sizes, "elementwise_affine": "weight" in shapes, "bias": "bias" in shapes}


@_layer("aten.rms_norm", weights=("weight",), ints=("normalized_shape",))
def _rms_norm(op: Operation, shapes: Shapes) -> _Described:
    sizes = {name: op.attributes[name] for name in ("normalized_shape", "eps")}
    return nn.RMSNorm, {**sizes, "elementwise_affine": bool(shapes)}


@_layer("aten.group_norm", ints=("num_groups",))
def _group_norm(op: Operation, shapes: Shapes) -> _Described:
    given = op.input("input").type
    known = given.shape or () if isinstance(given, TensorType) else ()
    channels = next((shape[0] for shape in shapes.values()), known[1] if len(known) > 1 else None)
    if len(shapes) == 1 or not isinstance(channels, int):
        return None
    in_a_group = (*known[:1], channels // op.attributes["num_groups"], *known[2:])
    if not any(isinstance(size, int) and size > 1 for size in in_a_group):
        return None  # the module refuses one number for each group and example of a batch of one
    sizes = {"num_groups": op.attributes["num_groups"], "num_channels": channels, "eps": op.attributes["eps"]}
    return nn.GroupNorm, {**sizes, "affine": bool(shapes)}


@_layer("aten.embedding", weights=("weight",), ints=("padding_idx",), data=1)
def _embedding(op: Operation, shapes: Shapes) -> _Described:
    a = op.attributes
    if len(shapes.get("weight", ())) != 2:
        return None
    rows, columns = shapes["weight"]
    padding = None if a["padding_idx"] < 0 else a["padding_idx"]
    flags = {"scale_grad_by_freq": a["scale_grad_by_freq"], "sparse": a["sparse"]}
    return nn.Embedding, {"num_embeddings": rows, "embedding_dim": columns, "padding_idx": padding, **flags}


@_layer("aten.prelu", weights=("weight",))
def _prelu(op: Operation, shapes: Shapes) -> _Described:
    shape = shapes.get("weight", ())
    return (nn.PReLU, {"num_parameters": shape[0]}) if len(shape) == 1 else None


_NORMALIZATION = {name: name for name in ("weight", "bias", "running_mean", "running_var")}


def _by_rank(op: Operation, family: str, value: Value) -> type[nn.Module] | None:
    """Return the class of `family` (BatchNorm, InstanceNorm) that the original has, else that for the input's rank."""
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
    """Return the options of a normalization over channels; None without weights, and with a bias alone."""
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
    slots = _slots(op, find, _NORMALIZATION)
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
    slots = _slots(op, find, _NORMALIZATION)
    value = op.input("input")
    cls = _by_rank(op, "InstanceNorm", value)
    if not slots or cls is None:
        return None
    tracked = "running_mean" in dict(slots)
    options = _norm_options(op, slots)
    if options is None or (not tracked and not a["use_input_stats"]) or tracked is not a["follows_mode"]:
        return None
    training = bool(a["use_input_stats"]) if tracked else None
    return ModuleForm(cls, options, slots, (value,), training=training, counter=tracked)


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


@_form("aten.rrelu")
def _make_random_relu(op: Operation, find: WeightOf) -> ModuleForm | None:
    a = op.attributes
    if not a["follows_mode"] or not all(isinstance(a[key], (int, float)) for key in ("lower", "upper")):
        return None
    options = _options(lower=a["lower"], upper=a["upper"])
    return ModuleForm(nn.RReLU, options, (), (op.operands[0],), training=bool(a["training"]))


def _plain(name: str, cls: type[nn.Module], *attributes: str, **fixed: Attribute) -> None:
    """Add an operator whose module takes the attributes named, where others have fixed values."""

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
    if attributes_equal((float(low), float(high)), (0.0, 6.0)):
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
    projections = [f"{name}_proj_weight" for name in ("in", "q", "k", "v")]
    weights = (*projections, "in_proj_bias", "bias_k", "bias_v", "out_proj_weight", "out_proj_bias")
    names = {name: name.replace("out_proj_", "out_proj.") for name in weights}
    slots = _slots(op, find, names)
    if not slots:
        return None
    held = dict(slots)
    separate = "in_proj_weight" not in held
    if separate and {_shape(held[f"{name}_proj_weight"])[1] for name in ("k", "v")} == {a["embed_dim"]}:
        return None  # the layer has one weight for all three then, whatever it is made with
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
