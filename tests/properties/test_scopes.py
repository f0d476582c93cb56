"""A scope that holds everything is none, and one that holds nothing lets nothing change."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.planning import Plan
from compiler.targets import find_target
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.programs.observation import quiet
from fuzz.rules.instances import instances
from fuzz.rules.orders import Drawn
from fuzz.strategies import programs
from ir.program import copy_program
from ir.text.printer import print_program
from passes.canonicalize import Canonicalize
from passes.cleanup.dce import EliminateDeadCode
from passes.fold.batch_norm import FoldBatchNorm
from passes.fold.freeze import FreezeWeights
from passes.manager.manager import PassManager
from passes.rewrite.pattern import instantiate

FEW = settings(max_examples=40)  # each runs the pipeline twice or three times
PIPELINE = pipeline_of(TENSORRT_PATTERNS).insert_before(
    "fuse", FoldBatchNorm(), FreezeWeights(), Canonicalize(inference=True)
)


def after(manager: PassManager, program: Any) -> str:
    changed = copy_program(program)
    with quiet():
        manager(changed)
    return print_program(changed)


def always(op: Any) -> bool:
    return True


@FEW
@given(programs(), st.sampled_from(["*", always]))
def test_a_scope_that_holds_everything_is_none(program: Any, key: str) -> None:
    expected = after(PIPELINE, program)
    # of unused constants, which are no operations, a predicate says nothing
    assert after(PassManager([PassManager(PIPELINE.passes, only=key), EliminateDeadCode()]), program) == expected
    one_by_one = PIPELINE
    for name in ("canonicalize", "convert", "fold-batch-norm", "freeze-weights", "fuse"):
        one_by_one = one_by_one.with_scope(name, only=key, skip="elsewhere")
    assert after(one_by_one.append(EliminateDeadCode()), program) == expected


@FEW
@given(
    programs(),
    st.sampled_from([{"skip": "*"}, {"only": "elsewhere"}, {"only": "layer*", "skip": ["x", "class:Module"]}]),
)
def test_a_scope_that_holds_nothing_lets_nothing_change(program: Any, scope: dict[str, Any]) -> None:
    before = print_program(program)
    assert after(PassManager(PIPELINE.passes, **scope), program) == before
    assert after(parse_pipeline(str(PassManager(PIPELINE.passes, **scope))), program) == before


@FEW
@given(programs(), st.integers(0, 1 << 16))
def test_what_is_in_one_scope_and_out_of_another_is_the_same(program: Any, number: int) -> None:
    drawn = Drawn(number)
    ways = (PassManager(PIPELINE.passes, **scope) for scope in ({"skip": drawn}, {"only": lambda op: not drawn(op)}))
    outside, inside = (after(PassManager([way, EliminateDeadCode()]), program) for way in ways)
    assert outside == inside


@FEW
@given(st.data())
def test_a_rewrite_that_is_switched_off_changes_nothing_before_it(data: st.DataObject) -> None:
    rule = data.draw(st.sampled_from(instantiate(TENSORRT_PATTERNS)))
    program = data.draw(instances(rule, near=False)).program
    with quiet():
        plan = Plan(find_target("tensorrt"), PIPELINE, program, {})
        before = plan.rewrites
        assume(before)
        number = data.draw(st.integers(0, len(before) - 1))
        plan.disable(before[number])
        after_it = plan.rewrites
        assert after_it[:number] == before[:number]
        assert after_it[number] == attrs.evolve(before[number], is_on=False)
        plan.enable(before[number])
        assert plan.rewrites == before
