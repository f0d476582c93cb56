"""One test for each invariant: a valid program is broken in one way, and the verifier must say which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ir.builder import Builder
from ir.core import Graph
from ir.errors import VerificationError
from ir.locations import Location
from ir.opdef import OpDef, get_opdef
from ir.program import OutputLeaf, Program
from ir.types import UNKNOWN_TENSOR, OpaqueType, ScalarType, TensorType, Type, make_symbol, types_agree
from ir.verify import verify
from tests.ir.broken import BREAKAGES, the_op
from tests.ir.programs import conv_net, f32, program_of, rich_program


def test_good_programs_pass() -> None:
    verify(rich_program())
    verify(conv_net())
    verify(program_of(Graph()))


@pytest.mark.parametrize(("breakage", "message"), BREAKAGES, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_programs_are_refused(breakage: Callable[[Program], None], message: str) -> None:
    program = rich_program()
    breakage(program)
    with pytest.raises(VerificationError) as info:
        verify(program)
    assert message in info.value.message


def test_errors_show_the_operation_and_the_line_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text("import torch\n\n\ny = self.act(x).double_trouble()\n", encoding="utf-8")
    program = conv_net()
    relu = the_op(program, "aten.relu")
    relu.location = Location("act", "torch.nn.modules.activation.ReLU", str(source), 4)
    relu.result.type = f32(1)
    with pytest.raises(VerificationError, match=r"result 0 of aten\.relu has type f32") as info:
        verify(program)
    assert info.value.location == relu.location
    assert "at `act` (ReLU)" in str(info.value)
    context, line = info.value.__notes__
    assert "> %relu = aten.relu(%bn) : f32[1]" in context
    assert "  %pool = aten.adaptive_avg_pool2d(%relu)" in context
    assert line == f"{source}:4: y = self.act(x).double_trouble()"


@pytest.mark.parametrize(
    ("recorded", "inferred", "expected"),
    [
        (f32(2), f32(2), True),
        (f32(2), f32(3), False),
        (f32(2), f32(2, 1), False),
        (f32(2), TensorType((2,), torch.float64), False),
        (f32(2), TensorType((2,), torch.float32, torch.device("meta")), False),
        (f32(2, 3), f32(None, 3), True),
        (f32(2, 3), f32(None, 4), False),
        (f32(2, None), f32(None, 3), True),
        (f32(2), UNKNOWN_TENSOR, True),
        (UNKNOWN_TENSOR, f32(2), True),
        (f32(2), TensorType(None, torch.float32), True),
        (f32(2), TensorType(None, torch.int64), False),
        (f32(2 * make_symbol("a") + 2), f32(2 * (make_symbol("a") + 1)), True),
        (f32(make_symbol("a")), f32(make_symbol("b")), False),
        (ScalarType("int", 2), ScalarType("int"), True),
        (ScalarType("int", 2), ScalarType("int", 3), False),
        (ScalarType("int"), ScalarType("float"), False),
        (ScalarType("int"), f32(), False),
        (f32(2), OpaqueType(), True),
    ],
)
def test_unknown_parts_agree(recorded: Type, inferred: Type, expected: bool) -> None:
    assert types_agree(recorded, inferred) is expected
    assert types_agree(inferred, recorded) is expected


def test_unknown_types_pass() -> None:
    graph = Graph([("x", UNKNOWN_TENSOR), ("y", f32(None, 3))])
    builder = Builder(graph)
    graph.set_outputs([builder.add(builder.relu(graph.inputs[0]), graph.inputs[1])])
    verify(program_of(graph))


def test_slow_inference_is_asked_once_for_equal_questions() -> None:
    calls = []

    def kernel(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return x + 1

    relu = get_opdef("aten.relu")
    slow = OpDef("test.slow", relu.params, relu.results, target=kernel)
    graph = Graph([("x", f32(2)), ("y", f32(3))])
    builder = Builder(graph)
    value = graph.inputs[0]
    for _ in range(50):
        value = builder.call(slow, value)
    graph.set_outputs([value, builder.call(slow, graph.inputs[1])])
    verify(program_of(graph))
    assert len(calls) == 2  # neither making nor verifying an operation asks again


def parameters_in_disorder(p: Program) -> None:
    p.convention.parameters = p.convention.parameters[::-1]


def result_of_unknown_size(p: Program) -> None:
    p.convention.outputs = (*p.convention.outputs[:2], OutputLeaf(None, make_symbol("elsewhere")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (parameters_in_disorder, "Python does not allow parameters in this order"),
        (result_of_unknown_size, "the result uses symbol elsewhere, which the program does not declare"),
    ],
)
def test_a_broken_convention_is_refused(change: Callable[[Program], None], message: str) -> None:
    program = rich_program()
    change(program)
    with pytest.raises(VerificationError, match=message):
        verify(program)
