"""Placing quantizers, uniting and removing them: on generated programs, for every target."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from compiler.pipeline import pipeline_of
from compiler.targets import TARGETS
from fuzz.programs.case import Case
from fuzz.programs.check import check_case
from fuzz.programs.properties import Unusable
from fuzz.search.sound import Target
from fuzz.strategies import input_tensors, programs
from ir.program import Program
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.text.parser import parse_program
from ir.verify import verify
from passes.manager.manager import PassManager
from passes.quant.place import PlaceQuantizers, is_quantized, place
from passes.quant.remove import RemoveQuantizers
from passes.quant.unify import UnifyQuantizers, unify_quantizers

OPERATORS = tuple(
    f"aten.{name}"
    for name in (
        *("conv2d", "conv1d", "conv_transpose2d.input", "linear", "batch_norm", "relu", "relu6", "gelu", "sigmoid"),
        *(
            "add.Tensor",
            "mul.Tensor",
            "cat",
            "max_pool2d",
            "avg_pool2d",
            "adaptive_avg_pool2d",
            "layer_norm",
            "softmax.int",
        ),
        *("reshape", "permute", "slice.Tensor", "split_with_sizes", "dropout", "scaled_dot_product_attention"),
    )
)
PROGRAMS = st.one_of(programs(operators=OPERATORS), programs(operators=OPERATORS, symbolic=True))


@pytest.fixture(autouse=True)
def _quiet_kernels() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels, about operands that the strategies chose
        yield


def quantized(program: Program, target: str) -> list[str]:
    """Quantize a program; return the names of the scales that Q reads, in order."""
    pipeline_of(TARGETS[target].patterns)(program)
    placement = place(program, target)
    verify(program)
    assert bool(placement.placed) == is_quantized(program)
    return [op.input("scale").name for op in program.graph.operations() if op.opdef is QUANTIZE]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=30)
@given(program=PROGRAMS)
def test_a_placed_program_holds_its_invariants(target: str, program: Program) -> None:
    """Each value has one quantizer of a type, no DQ is dead, the text is all of it, sharing changes no type."""
    scales = quantized(program, target)
    assert len(scales) == len(set(scales))
    quantizers = [op for op in program.graph.operations() if op.opdef is QUANTIZE]
    assert max(Counter((op.input("x"), op.attributes["dtype"]) for op in quantizers).values(), default=1) == 1
    assert not any(op.opdef is DEQUANTIZE and op.result.is_unused for op in program.graph.operations())
    text = str(program)
    assert str(parse_program(text)) == text
    found = unify_quantizers(program, target)
    verify(program)
    assert {op.input("scale").name for op in quantizers} == {found.names.get(name, name) for name in scales}
    assert all(name in program.weights for name in found.names.values())
    assert not any(name in program.weights for name in found.names)
    assert unify_quantizers(program, target).names == {}


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=15)
@given(data=st.data())
def test_without_its_quantizers_a_program_computes_what_it_did(target: str, data: st.DataObject) -> None:
    """Every property of the fuzzer's, bit for bit: results, strides, gradients, text."""
    program = data.draw(PROGRAMS)
    inputs = data.draw(input_tensors(program))
    passes = [
        *pipeline_of(TARGETS[target].patterns),
        PlaceQuantizers(target),
        UnifyQuantizers(target),
        RemoveQuantizers(),
    ]
    pass_ = PassManager(passes)
    case = Case.of(program, inputs)
    demanded = Target.of(pass_).properties
    try:
        check_case(pass_, case, demanded, program)
    except Unusable:
        reject()
