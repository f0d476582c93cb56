"""What does not fit is refused with an error of ours, which keeps its remedy on the way."""

from __future__ import annotations

import re
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from ir.attributes import normalize_attribute
from ir.builder import Builder, make_operation
from ir.core import Graph, Value
from ir.errors import InferenceError, InputError, ParseError, VerificationError
from ir.expressions import linear_solution
from ir.fake import infer_with_fakes
from ir.opdef import get_opdef
from ir.ops.inference import support
from ir.ops.inference.support import floor_div
from ir.program import SymbolRange
from ir.schemas import schema_constant
from ir.text.parser import parse_program
from ir.types import TensorType, make_symbol, simplify_dim
from ir.verify import verify
from tests.passes.building import f32, program

S = make_symbol("s")


@pytest.fixture(scope="module")
def library() -> torch.library.Library:
    return torch.library.Library("graphwright_refusals", "FRAGMENT")


@pytest.mark.parametrize(
    ("type_", "code", "expected"),
    [
        ("ScalarType", 7, torch.float64),
        ("ScalarType", 11, torch.bool),
        ("ScalarType", 15, torch.bfloat16),
        ("ScalarType?", 6, torch.float32),
        ("MemoryFormat?", 2, torch.channels_last),
        ("Layout?", 0, torch.strided),
    ],
)
def test_defaults_of_a_library_are_dtypes(library: Any, type_: str, code: int, expected: Any) -> None:
    name = f"default_{type_.rstrip('?')}_{code}"
    library.define(f"{name}(Tensor x, {type_} y={code}) -> Tensor")
    assert get_opdef(f"graphwright_refusals.{name}").defaults == {"y": expected}


def test_codes_are_those_of_the_dispatcher(library: Any) -> None:
    seen: list[torch.dtype] = []

    def kernel(x: torch.Tensor, y: torch.dtype) -> torch.Tensor:
        seen.append(y)
        return x

    library.define("codes(Tensor x, ScalarType y) -> Tensor")
    library.impl("codes", kernel, "CPU")
    for code in range(46):
        torch.ops.graphwright_refusals.codes(torch.zeros(()), code)
    assert [schema_constant(code, "ScalarType") for code in range(46)] == seen


@pytest.mark.parametrize(("code", "type_"), [(99, "ScalarType"), (-1, "Optional[ScalarType]"), (4, "MemoryFormat")])
def test_an_unknown_code_is_refused(code: int, type_: str) -> None:
    with pytest.raises(InputError, match=f"{code} as the default .* is not the number of a"):
        schema_constant(code, type_)


def test_attributes_of_no_kind_are_refused() -> None:
    graph = Graph([("x", TensorType((2, 3), torch.float32))])
    n = Builder(graph).call("aten.sym_size.int", graph.inputs[0], 0)
    with pytest.raises(InputError, match=r"argument 'size' of aten\.reshape|argument 'shape' of aten\.reshape"):
        make_operation("aten.reshape", graph.inputs[0], [n, object()])


def test_pieces_of_no_size_are_refused() -> None:
    x = Graph([("x", TensorType((S, 2), torch.float32))]).inputs[0]
    with pytest.raises(InferenceError):
        make_operation("aten.split.Tensor", x, 0)


@pytest.mark.parametrize(
    ("expr", "solution"),
    [
        (2 * S + 3, (S, 2, 3)),
        (S, (S, 1, 0)),
        (floor_div(8, S), None),
        (floor_div(S, 8), None),
        (S * S + S, None),
        (S // 2, None),
    ],
)
def test_linear_solutions(expr: Any, solution: Any) -> None:
    assert linear_solution(expr) == solution


def test_whatever_a_rule_raises_is_an_error_of_inference() -> None:
    def rule(types: Any, attributes: Any) -> Any:
        raise ZeroDivisionError

    opdef = attrs.evolve(get_opdef("aten.relu"), facts=attrs.evolve(get_opdef("aten.relu").facts, infer=rule))
    with pytest.raises(InferenceError, match=r"aten\.relu does not take .*ZeroDivisionError"):
        make_operation(opdef, Graph([("x", f32(2))]).inputs[0])


def test_remedies_are_kept() -> None:
    x = TensorType((1, 3, S, S), torch.float32)
    remedy = "compile with fixed sizes in place of the symbolic ones"

    def build(b: Builder, value: Value, ceil_mode: bool) -> Value:
        pooled: Value = b.max_pool2d(value, [1, 1], [2, 2], [0, 0], [1, 1], ceil_mode)
        return pooled

    with pytest.raises(InferenceError) as from_builder:
        program([x], lambda b, value: build(b, value, True))
    assert from_builder.value.location is not None
    built = program([x], lambda b, value: build(b, value, False))
    built.symbols[S] = SymbolRange(2, 64)
    text = re.sub(r"\} : f32.*", ", ceil_mode=True}", str(built))
    assert text.count("ceil_mode") == 1
    with pytest.raises(ParseError) as from_parser:
        parse_program(text)
    (op,) = built.graph.operations()
    op.set_attribute("ceil_mode", True)
    with pytest.raises(VerificationError) as from_verifier:
        verify(built)
    for caught in (from_builder, from_parser, from_verifier):
        assert caught.value.remedy == remedy


def test_what_is_created_is_on_the_default_device() -> None:
    with torch.device("meta"):
        for op in (make_operation("aten.arange", 3), make_operation("aten.zeros", [3])):
            assert op.result.tensor_type.device == torch.device("meta")


@pytest.mark.parametrize(
    ("given", "expected"), [(np.int64(3), 3), (np.float32(0.5), 0.5), (np.complex64(1j), 1j), ([np.uint8(2)], (2,))]
)
def test_numbers_of_numpy_are_plain_ones(given: Any, expected: Any) -> None:
    found = normalize_attribute(given)
    assert found == expected and type(found) is type(expected)
    if isinstance(given, np.integer):
        assert type(simplify_dim(given)) is int


def test_a_refusal_is_the_same_the_second_time() -> None:
    x, weight = f32(2, 3), f32(4, 5)
    messages = []
    for _ in range(2):
        with pytest.raises(InferenceError) as caught:
            infer_with_fakes(get_opdef("aten.linear"), (x, weight, None), {})
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "aten.linear does not take operands (f32[2, 3], f32[4, 5], None)" in messages[0]


def test_a_refused_operator_of_a_library_is_accepted_once_it_has_a_fake_kernel(library: Any) -> None:
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: x + x, "CPU")
    with pytest.raises(InferenceError):
        infer_with_fakes(get_opdef("graphwright_refusals.doubled"), (f32(2),), {})
    torch.library.register_fake("graphwright_refusals::doubled", torch.empty_like, lib=library)
    assert infer_with_fakes(get_opdef("graphwright_refusals.doubled"), (f32(2),), {}) == (f32(2),)


_SDPA = {"dropout_p": 0.0, "is_causal": False, "enable_gqa": False}
_NORM = {"normalized_shape": (3,)}
_CONV = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}


@pytest.mark.parametrize(
    ("name", "types", "attributes", "message"),
    [
        ("linear", (f32(2, 3), f32(4, 5), None), {}, "the last size of the input is 3, not 5"),
        (
            "matmul",
            (f32(2, 3), TensorType((3, 4), torch.float64)),
            {},
            "the dtypes torch.float32, torch.float64 differ",
        ),
        (
            "scaled_dot_product_attention",
            (f32(S, 2), f32(S, 3), f32(S, 2), None),
            _SDPA,
            "the size of a key is 2, not 3",
        ),
        (
            "scaled_dot_product_attention",
            (f32(3, 2), f32(3, 2), f32(3, 2), None),
            _SDPA | {"enable_gqa": True},
            "grouped heads need a rank of at least 3",
        ),
        ("conv1d", (f32(1, 2, 5), f32(2, 2, 1, 1), None), _CONV, "a rank of 3 is needed, not 4"),
        ("layer_norm", (TensorType((2, 3), torch.int64), None, None), _NORM, "floats are needed, not torch.int64"),
    ],
)
def test_what_a_rule_knows_to_misfit_is_not_run(
    name: str, types: tuple[Any, ...], attributes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "infer_with_fakes", None)
    rule = get_opdef(f"aten.{name}").infer
    assert rule is not None
    with pytest.raises(InferenceError, match=message):
        rule(types, attributes)


def test_attention_on_which_the_kernel_reads_what_is_not_there_is_refused() -> None:
    """It divides by the number of heads, which ends the process, and reads values beyond the end of their memory."""
    attention = get_opdef("aten.scaled_dot_product_attention")
    graph = Graph([("q", f32(1, 2, 3, 4)), ("k", f32(1, 0, 5, 4)), ("v", f32(1, 2, 5, 4)), ("w", f32(1, 2, 6, 4))])
    q, k, v, w = graph.inputs
    with pytest.raises(InferenceError, match="the key has no heads"):
        Builder(graph).op(attention, q, k, v, None, enable_gqa=True)
    with pytest.raises(InferenceError, match="the number of values is 5, not 6"):
        Builder(graph).op(attention, q, v, w, None)
    with pytest.raises(InferenceError, match="there are 5 keys and 6 values"):
        infer_with_fakes(
            attention,
            (f32(1, 2, 3, 4), f32(1, 2, 5, 4), f32(1, 2, 6, 4), None),
            _SDPA | {"scale": None, "train_dropout_p": 0.0},
        )


def test_a_batch_of_one_is_as_large_as_that_of_the_keys() -> None:
    rule = get_opdef("aten.scaled_dot_product_attention").infer
    assert rule is not None
    query, key = f32(1, 3, 4), TensorType((None, 5, 4), torch.float32)
    assert rule((query, key, key, None), _SDPA) == (TensorType((None, 3, 4), torch.float32),)
    assert rule((f32(2, 3, 4), key, key, None), _SDPA) == (f32(2, 3, 4),)
