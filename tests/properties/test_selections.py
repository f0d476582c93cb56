"""Passes on programs whose sizes depend on data: nothing moves across what defines them, and no bit changes."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings

from compiler.codegen.emit import emit
from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.programs.check import check_case
from fuzz.search.sound import Target
from fuzz.selections import selections
from ir.evaluate import evaluate
from ir.verify import verify
from passes.canonicalize import Canonicalize
from passes.cleanup.cse import EliminateCommonSubexpressions
from passes.cleanup.dce import EliminateDeadCode
from passes.fold.constants import FoldConstants
from passes.manager.manager import PassContext

PASSES = [Canonicalize(), EliminateCommonSubexpressions(), EliminateDeadCode(), FoldConstants()]


@pytest.mark.parametrize("pass_", PASSES, ids=lambda each: each.name)
@settings(max_examples=25)
@given(drawn=selections())
def test_passes_keep_every_bit(pass_, drawn):
    program, case = drawn
    verify(program)
    demanded = attrs.evolve(Target.of(pass_).properties, exact=True)
    check_case(pass_, case, demanded, program)


@settings(max_examples=25)
@given(drawn=selections())
def test_compiled_programs_keep_every_bit(drawn):
    program, case = drawn
    expected = evaluate(program, case.inputs)
    pipeline_of(TENSORRT_PATTERNS).run(program, PassContext())
    verify(program)
    found = emit(program).module(*case.inputs)
    for results in (evaluate(program, case.inputs), found if isinstance(found, tuple) else (found,)):
        assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True))
