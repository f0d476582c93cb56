"""What the op table says of operators is true of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._sympy.functions import FloorDiv

import ir.ops.table  # noqa: F401 - lays the rows
from ir.builder import Builder, bind_arguments, make_operation
from ir.core import Graph
from ir.errors import InferenceError
from ir.fake import infer_with_fakes
from ir.opdef import _ROWS, ParamKind, Trait, get_opdef
from ir.types import UNKNOWN_TENSOR, OpaqueType, TensorType, Type, make_symbol

NAMES = sorted(_ROWS)
NAMES_WITH_RULE = sorted(name for name, row in _ROWS.items() if row.infer is not None)
FLOAT_BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16}
SPECIAL = [0.0, -0.0, 0.25, 0.5, -0.5, 1.0, -1.0, 1.5, 2.5, -2.5, 3.0, 7.0, -8.0, 1e-40, 1e30, -1e30]
SPECIAL += [float("inf"), -float("inf"), float("nan")]


def names_with(trait: Trait) -> list[str]:
    return [name for name in NAMES if get_opdef(name).has(trait)]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of each element; all NaNs are one."""
    if tensor.dtype not in FLOAT_BITS:
        return tensor
    return torch.where(tensor.isnan(), torch.nan, tensor).view(FLOAT_BITS[tensor.dtype])


def test_every_row_names_an_operator() -> None:
    assert [name for name in NAMES if get_opdef(name).name != name] == []


def test_training_flags_and_extra_attributes() -> None:
    flags = {name: get_opdef(name).training for name in NAMES if get_opdef(name).training}
    for name, flag in flags.items():
        assert flag in {p.name for p in get_opdef(name).attribute_params}, name
    assert flags["aten.batch_norm"] == "training"
    assert flags["aten.dropout"] == "train"
    extra = {name: [p.name for p in get_opdef(name).params if p.extra] for name in NAMES}
    recurrent = {
        f"aten.{name}.{kind}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for kind in ("input", "data")
    }
    assert {name for name, names in extra.items() if names == ["follows_mode"]} == recurrent | {
        "aten.dropout",
        "aten.alpha_dropout",
        "aten.feature_dropout",
        "aten.feature_alpha_dropout",
        "aten.rrelu",
        "aten.instance_norm",
    }
    assert extra["aten.batch_norm"] == ["follows_mode", "counts_batches"]
    assert extra["aten.scaled_dot_product_attention"] == ["train_dropout_p"]


def test_random_operators_are_pure_only_outside_of_training() -> None:
    graph = Graph([("x", TensorType((2, 3), torch.float32))])
    (x,) = graph.inputs
    for train, pure in ((True, False), (False, True)):
        op = make_operation("aten.dropout", x, 0.5, train)
        assert op.is_pure is pure
        assert op.is_random is train
    assert not make_operation("aten.rand_like", x).is_pure
    q = graph.add_input(TensorType((1, 2, 3, 4), torch.float32))
    assert make_operation("aten.scaled_dot_product_attention", q, q, q).is_pure
    assert not make_operation("aten.scaled_dot_product_attention", q, q, q, None, 0.5).is_pure


def test_batch_norm_without_momentum_evaluates() -> None:
    evaluate = get_opdef("aten.batch_norm").facts.evaluate
    assert evaluate is not None
    x, mean, var = torch.randn(2, 3, 4), torch.randn(3), torch.rand(3) + 0.5
    got = evaluate(x, None, None, mean, var, False, None, 1e-5, False, follows_mode=True)
    assert torch.equal(got, torch.batch_norm(x, None, None, mean, var, False, 0.1, 1e-5, False))
    kept = mean.clone()
    evaluate(x, None, None, mean, var, True, None, 1e-5, False, follows_mode=True)
    assert torch.equal(mean, kept)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_batch_norm_without_channels_does_not_reach_the_kernel(shape: tuple[int, ...], training: bool) -> None:
    # the kernel of PyTorch 2.13 reads beyond the end of the sizes, and sometimes ends the process
    x, each = TensorType(shape, torch.float32), TensorType((3,), torch.float32)
    attributes = {"training": training, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}
    attributes |= {"follows_mode": True, "counts_batches": True}
    with pytest.raises(InferenceError, match=f"the input has {len(shape)} dimensions where at least 2 are needed"):
        infer_with_fakes(get_opdef("aten.batch_norm"), (x, None, None, each, each), attributes)


IDEMPOTENT_ATTRIBUTES: dict[str, list[dict[str, Any]]] = {
    "aten.clamp": [{"min": -1, "max": 2}, {"min": 1, "max": -1}, {"max": 0.5}],
    "aten.clip": [{"min": -1, "max": 2}, {"min": 0.0}],
    "aten.clamp_min": [{"min": 0.3}],
    "aten.clamp_max": [{"max": -0.3}],
    "aten.threshold": [{"threshold": 0.1, "value": 20.0}, {"threshold": 1.0, "value": -3.0}],
    "aten.hardtanh": [{}, {"min_val": 0, "max_val": 6}],
    "aten.hardshrink": [{}, {"lambd": 0.0}],
    "aten.to.dtype": [{"dtype": torch.bfloat16}],
    "aten.to.device": [{"device": torch.device("cpu"), "dtype": torch.bfloat16}],
    "aten.to.dtype_layout": [{"dtype": torch.bfloat16}],
    "aten._to_copy": [{"dtype": torch.bfloat16}],
}
IDEMPOTENT_OPERANDS = {"aten.clamp.Tensor", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor", "aten.masked_fill.Scalar"}


@pytest.mark.parametrize("name", [n for n in names_with(Trait.IDEMPOTENT) if n not in IDEMPOTENT_OPERANDS])
@pytest.mark.parametrize("dtype", list(FLOAT_BITS), ids=str)
def test_idempotent_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    opdef = get_opdef(name)
    assert opdef.target is not None
    x = torch.tensor([*SPECIAL, 0.0], dtype=dtype).reshape(4, 5)
    for attributes in IDEMPOTENT_ATTRIBUTES.get(name, [{}]):
        once = opdef.target(x, **attributes)
        assert torch.equal(bits(opdef.target(once, **attributes)), bits(once)), attributes


@pytest.mark.parametrize("name", sorted(IDEMPOTENT_OPERANDS))
def test_idempotent_with_the_same_other_operands(name: str) -> None:
    target = get_opdef(name).target
    assert target is not None
    x, bound, other = torch.tensor(SPECIAL), torch.tensor(0.5), torch.tensor(-0.5)
    others: tuple[Any, ...] = {"aten.clamp.Tensor": (bound, other), "aten.masked_fill.Scalar": (x > 1, 3.0)}.get(
        name, (bound,)
    )
    once = target(x, *others)
    assert torch.equal(bits(target(once, *others)), bits(once))


@pytest.mark.parametrize("name", names_with(Trait.COMMUTATIVE))
@pytest.mark.parametrize("dtype", [*FLOAT_BITS, torch.int64, torch.bool], ids=str)
def test_commutative_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    target = get_opdef(name).target
    assert target is not None
    numbers = SPECIAL if dtype.is_floating_point else [0, 1, 2, -3]
    # long enough for the vectorized and the scalar part of a kernel
    pairs = torch.tensor(list(itertools.product(numbers, numbers)) * 3, dtype=dtype)
    a, b = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    try:
        ab = target(a, b)
    except (RuntimeError, TypeError) as error:
        if re.search("not implemented for|[Ee]xpected|only supports", str(error)) is None:
            raise
        # some dtype has to be tried: floats, or of bitwise operators integers
        assert dtype is not torch.float32 or "bitwise" in name or "__" in name
        return
    assert torch.equal(bits(ab), bits(target(b, a)))


@pytest.mark.parametrize("name", [name for name in NAMES if get_opdef(name).facts.unit is not None])
@pytest.mark.parametrize("dtype", list(FLOAT_BITS), ids=str)
def test_unit_keeps_all_values(name: str, dtype: torch.dtype) -> None:
    opdef = get_opdef(name)
    assert opdef.target is not None
    assert opdef.facts.unit is not None
    x = torch.tensor(SPECIAL, dtype=dtype)
    unit: Any = opdef.facts.unit if len(opdef.operand_params) == 1 else torch.full_like(x, opdef.facts.unit)
    result = opdef.target(x, unit)
    nonzero = x != 0
    assert torch.equal(bits(result)[nonzero], bits(x)[nonzero])
    assert torch.equal(result[~nonzero], x[~nonzero])


@pytest.mark.parametrize("name", names_with(Trait.ACTIVATION))
def test_activation_keeps_shape_and_dtype(name: str) -> None:
    opdef = get_opdef(name)
    infer = opdef.infer
    assert infer is not None
    s = make_symbol("s")
    numbers = {p.name: 0.5 for p in opdef.attribute_params if not p.has_default}
    for shape, dtype in itertools.product([(), (3,), (2, 3, 4), (s, 3)], [torch.float32, torch.float16]):
        type_ = TensorType(shape, dtype)
        slope = (TensorType((), dtype),) * (len(opdef.operand_params) - 1)
        assert infer((type_, *slope), {**opdef.defaults, **numbers}) == (type_,)


def orders(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor with its dimensions in memory in every order."""
    for order in itertools.permutations(range(tensor.dim())):
        yield tensor.permute(order).contiguous().permute([order.index(i) for i in range(tensor.dim())])


STRIDES: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[tuple[int, ...], ...]]]] = {
    "aten.linear": (
        torch.nn.functional.linear,
        [
            ((3,), (5, 3), (5,)),
            ((4, 3), (5, 3), (5,)),
            ((1, 3), (5, 3)),
            ((2, 4, 3), (5, 3), (5,)),
            ((2, 1, 4, 3), (1, 3)),
            ((2, 4, 6, 3), (5, 3), (5,)),
        ],
    ),
    "aten.matmul": (
        torch.matmul,
        [
            ((4, 3), (3, 5)),
            ((1, 4, 3), (1, 3, 5)),
            ((2, 4, 3), (3, 5)),
            ((3,), (2, 3, 5)),
            ((2, 1, 4, 3), (1, 6, 3, 5)),
            ((2, 6, 4, 3), (3,)),
        ],
    ),
    "aten.mm": (torch.mm, [((4, 3), (3, 5)), ((1, 3), (3, 1))]),
    "aten.bmm": (torch.bmm, [((2, 4, 3), (2, 3, 5)), ((1, 1, 3), (1, 3, 4))]),
    "aten.addmm": (torch.addmm, [((4, 5), (4, 3), (3, 5)), ((5,), (1, 3), (3, 5))]),
    "aten.baddbmm": (torch.baddbmm, [((2, 4, 5), (2, 4, 3), (2, 3, 5)), ((1, 4, 5), (1, 4, 3), (1, 3, 5))]),
    "aten.embedding": (
        lambda weight, indices: torch.embedding(weight, (indices * 0).long()),
        [((5, 3), (2, 3)), ((5, 3), (2, 3, 4))],
    ),
    "aten.layer_norm": (
        lambda x: torch.layer_norm(x, x.shape[-2:]),
        [((4, 3),), ((2, 4, 3),), ((2, 4, 5, 3),), ((2, 1, 4, 3),)],
    ),
    "aten.native_layer_norm": (
        lambda x: torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)[0],
        [((2, 4, 3),), ((2, 4, 5, 3),)],
    ),
    "aten.masked_fill.Scalar": (
        lambda x, m: torch.masked_fill(x, m > 0, 1.0),
        [((2, 4, 3),) * 2, ((2, 4, 5, 3), (5, 3))],
    ),
    "aten.masked_fill.Tensor": (
        lambda x, m: torch.masked_fill(x, m > 0, torch.ones(())),
        [((2, 4, 3),) * 2, ((2, 1, 5, 3), (2, 4, 5, 3))],
    ),
    "aten.softmax.int": (lambda x: torch.softmax(x, 1), [((2, 4, 3),), ((2, 4, 5, 3),), ((2, 1, 5, 3),)]),
    "aten.log_softmax.int": (lambda x: torch.log_softmax(x, -1), [((2, 4, 3),), ((2, 4, 5, 3),)]),
}


@pytest.mark.parametrize(
    "name", [name for name in NAMES if get_opdef(name).fixes_strides and get_opdef(name).operand_params]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_strides_fixed(name: str, dtype: torch.dtype) -> None:
    function, cases = STRIDES[name]
    for shapes in cases:
        operands = [torch.randn(shape).to(dtype) for shape in shapes]
        strides = {function(*variant).stride() for variant in itertools.product(*map(orders, operands))}
        assert len(strides) == 1, (shapes, strides)


@pytest.mark.parametrize("name", names_with(Trait.CONV))
def test_convolutions_have_three_operands(name: str) -> None:
    assert [p.name for p in get_opdef(name).operand_params] == ["input", "weight", "bias"]


@pytest.mark.parametrize("name", names_with(Trait.LAYOUT))
def test_layout_operators_take_one_tensor_and_keep_its_dtype(name: str) -> None:
    opdef = get_opdef(name)
    assert opdef.operand_params[0].kind is ParamKind.TENSOR
    assert {"tensor", "list"} >= set(opdef.results)
    assert opdef.has(Trait.PURE)


# Deterministic cases that no strategy draws: what is refused and why, and bounds that are symbols.

S = make_symbol("s")
F32 = torch.float32


def infer(name: str, *args: Any) -> tuple[Type, ...]:
    graph = Graph()

    def operand(arg: Any) -> Any:
        if isinstance(arg, list):
            return [operand(each) for each in arg]
        return graph.add_input(arg) if isinstance(arg, TensorType | OpaqueType) else arg

    bound = [operand(arg) for arg in args]
    _, attributes, _, types = bind_arguments(get_opdef(name), bound, {})
    rule = get_opdef(name).infer
    assert rule is not None
    return rule(types, attributes)


def test_symbolic_bounds_of_a_slice_lie_within_it() -> None:
    table = TensorType((512, 3), F32)
    assert infer("aten.slice.Tensor", table, 0, None, S) == (TensorType((S, 3), F32),)
    assert infer("aten.slice.Tensor", table, 0, S) == (TensorType((512 - S, 3), F32),)
    assert infer("aten.slice.Tensor", table, 0, 1, S - 1) == (TensorType((S - 2, 3), F32),)
    assert infer("aten.slice.Tensor", table, 0, None, S, 3) == (TensorType((FloorDiv(S + 2, 3), 3), F32),)


def test_what_nobody_knows_is_a_tensor_where_one_is_needed() -> None:
    x = TensorType((2, 3), F32)
    assert infer("aten.index.Tensor", x, [OpaqueType()]) == (UNKNOWN_TENSOR,)
    assert infer("aten.split_with_sizes", OpaqueType(), [1, 2]) == (UNKNOWN_TENSOR, UNKNOWN_TENSOR)
    assert infer("aten.chunk", OpaqueType(), 1) == (UNKNOWN_TENSOR,)


def test_nothing_splits_into_one_piece_of_any_size() -> None:
    empty = TensorType((0, 3), F32)
    assert infer("aten.split.Tensor", empty, S) == infer("aten.split.Tensor", empty, 2) == (empty,)


def test_ceil_mode_of_a_symbolic_size() -> None:
    (result,) = infer("aten.max_pool2d", TensorType((1, 3, S, S), F32), [3, 3], [2, 2], [1, 1], [1, 1], True)
    assert isinstance(result, TensorType)
    assert result.shape is not None
    for size in range(3, 12):
        pooled = torch.max_pool2d(torch.zeros(1, 3, size, size), 3, 2, 1, 1, True)
        assert tuple(d if isinstance(d, int) else int(d.subs({S: size})) for d in result.shape) == pooled.shape
    with pytest.raises(InferenceError, match="no one form for all sizes"):
        infer("aten.max_pool2d", TensorType((1, 3, S, S), F32), [1, 1], [2, 2], [0, 0], [1, 1], True)


def test_what_does_not_fit_is_refused_though_it_is_partly_unknown() -> None:
    weight = TensorType((8, 3, 3, 3), F32)
    with pytest.raises(InferenceError, match="input channels is 4, not 3"):
        infer("aten.conv2d", TensorType((None, 4, None, None), F32), weight)
    with pytest.raises(InferenceError, match="rank of 3 or 4"):
        infer("aten.conv2d", TensorType((None, None), F32), weight)
    with pytest.raises(InferenceError, match="last size of the input is 7, not 5"):
        infer("aten.linear", TensorType((None, 7), F32), TensorType((2, 5), F32))


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "message"),
    [
        ("aten.sum", (), {"dtype": 99}, "'dtype' of aten.sum must be a dtype, not 99"),
        ("aten.to.dtype", (None,), {}, "'dtype' of aten.to.dtype must be a dtype, not None"),
        ("aten.sum.dim_IntList", ([torch.float32],), {}, "'dim' of .* must be of type .*int.*, not .torch.float32,."),
        ("aten.clone", (), {"memory_format": torch.float32}, "must be a memory_format, not torch.float32"),
        ("aten.clone", (), {"memory_format": 3}, "must be a memory_format, not 3"),
        ("aten.add.Scalar", (torch.float32,), {}, "'other' of aten.add.Scalar must be of type number"),
        ("aten.softmax.int", (torch.strided,), {}, "'dim' of aten.softmax.int must be of type int"),
    ],
)
def test_dtypes_and_numbers_are_not_taken_for_each_other(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    """PyTorch takes them: `add(x, torch.float32)` adds 6, and a memory format of 99 ends the process."""
    x = Graph().add_input(TensorType((2, 3), torch.float32), "x")
    with pytest.raises(InferenceError, match=message):
        make_operation(name, x, *args, **kwargs)


def test_what_is_certain_of_unknown_types_is_kept() -> None:
    unknown = TensorType(None, None, None)
    weight = TensorType((8, 3, 3, 3), F32)
    assert infer("aten.relu", unknown) == (unknown,)
    assert infer("aten.conv2d", unknown, weight) == (TensorType(None, F32),)
    image = TensorType((None, 3, None, None), None)
    assert infer("aten.conv2d", image, weight) == (TensorType((None, 8, None, None), F32),)
    assert infer("aten.adaptive_avg_pool2d", image, [1, 1]) == (TensorType((None, 3, 1, 1), None),)
    assert infer("aten.eq.Scalar", unknown, 1) == (TensorType(None, torch.bool, None),)


def test_pieces_of_a_symbolic_size() -> None:
    x = TensorType((3 * S, 2), F32)
    assert infer("aten.split.Tensor", x, S) == (TensorType((S, 2), F32),) * 3
    for name, args in (("aten.split.Tensor", [2]), ("aten.unbind.int", [0])):
        with pytest.raises(InferenceError, match=r"depends on the size 3\*s"):
            infer(name, x, *args)


def test_fallback_refuses_what_holds_for_some_sizes_only() -> None:
    types, window = (TensorType((1, 3, S, S), F32),), {"kernel_size": (1, 1), "stride": (2, 2), "padding": (0, 0)}
    with pytest.raises(InferenceError, match="no one form for all sizes"):
        infer_with_fakes(get_opdef("aten.max_pool2d"), types, {**window, "dilation": (1, 1), "ceil_mode": True})
    vectors = (TensorType((S, S), F32),)
    with pytest.raises(InferenceError, match="needs the number"):
        infer_with_fakes(get_opdef("aten.adaptive_max_pool1d"), vectors, {"output_size": (S,)})


def test_rules_decide_what_is_slow_on_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention within windows, and a transformer's relative positions: milliseconds each, in every check."""
    monkeypatch.setattr("ir.ops.inference.support.infer_with_fakes", None)  # the rule alone decides
    windows, table = TensorType((2, 4, 9, 6, 8), F32), TensorType((9, 5, 8), F32)
    assert infer("aten.scaled_dot_product_attention", windows, windows, windows) == (windows,)
    einsum = get_opdef("aten.einsum").infer
    assert einsum is not None
    equation = {"equation": "bhqkc, qrc -> bhqr", "path": None}
    assert einsum(((TensorType((S, 4, 9, 6, 8), F32), table),), equation) == (TensorType((S, 4, 9, 5), F32),)


@pytest.mark.parametrize("name", ["aten.conv2d.padding", "aten.conv2d", "aten.conv_transpose2d.input"])
def test_convolutions_refuse_numbers_for_other_dimensions(name: str) -> None:
    """The kernels refuse them; on fake tensors the operators take them, and rules would trip over them."""
    x, w = TensorType((1, 2, 5, 5), torch.float32), TensorType((2, 2, 3, 3), torch.float32)
    builder = Builder(Graph([("x", x), ("w", w)]))
    for dilation in ((1, 1, 1), ()):
        with pytest.raises(InferenceError, match="over 2 dimensions takes 2 numbers"):
            builder.op(name, *builder.graph.inputs, None, dilation=dilation)
