from __future__ import annotations

from collections import Counter

import pytest

from compiler.page.story import Story

pytestmark = pytest.mark.xdist_group("page")


def test_history_accounts_for_every_operation(result, history) -> None:
    """Replayed from the captured program, the steps end in the result."""
    present = set(range(history.captured.graph.num_operations))
    for step in history.steps:
        assert len(present) == step.operations_before
        for rewrite in step.rewrites:
            present |= set(rewrite.created)
            present -= set(rewrite.replaced)
        present = (present - set(step.removed)) | set(step.added)
        assert len(present) == step.operations_after
        assert step.changed or not (step.rewrites or step.removed or step.added)
    assert present == set(history.final)
    assert [history.operations[number].name for number in history.final] == [
        op.name for op in result.program.graph.operations()
    ]


def test_history_tells_of_the_rewrites_that_the_result_has(result, history) -> None:
    told = [rewrite for step in history.steps for rewrite in step.rewrites if rewrite.is_told]
    assert Counter(rewrite.rule for rewrite in told) == Counter(result.counts())
    for rewrite, match in zip(told, result.matches, strict=True):
        created = [history.operations[number].name for number in rewrite.created]
        assert created == [op.name for op in match.created]


def test_operations_are_followed_both_ways(result, history) -> None:
    story = Story(history)
    captured = range(history.captured.graph.num_operations)
    forward = {(number, end) for number in captured for end in story.became(number)[1]}
    backward = {(start, number) for number in history.final for start in story.came_from(number)[1]}
    assert forward == backward
    names = {number: history.operations[number].name for number in history.final}
    norms = [number for number in captured if history.operations[number].name == "aten.batch_norm"]
    for norm in norms:
        deeds, ends = story.became(norm)
        assert [names[end] for end in ends] == ["fused.conv_bn_act"]
        assert deeds[-1].rewrite is not None and deeds[-1].rewrite.rule == "ConvBNActPattern"
    dead = next(number for number in captured if history.operations[number].name == "aten.abs")
    assert story.became(dead)[1] == ()
