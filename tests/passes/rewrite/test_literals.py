"""A literal of a pattern matches what it means: in canonical programs, and in those that are written otherwise."""

from __future__ import annotations

import pytest
import sympy
import torch

from graphwright import Match, Pattern
from ir.types import TensorType
from passes.canonicalize import Canonicalize
from passes.manager.manager import PassContext, run_pass
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.matching import RuleIndex
from tests.passes.building import f32, program


def matches(node, p):
    """Return whether a pattern that is made by `node` matches somewhere in a program."""

    class Rule(Pattern):
        """found(x)"""

        def pattern(self, p):
            return node(p)

        def check(self, m):
            found.append(m)
            return "it is only looked for"

        def rewrite(self, m, b):
            raise AssertionError

    found: list[Match] = []
    run_worklist(p, RuleIndex((Rule(),)), RewriteLog())
    return bool(found)


def softmax(dim):
    return lambda b, x: b.call("aten.softmax.int", x, dim)


def mean(*dims):
    return lambda b, x: b.call("aten.mean.dim", x, dims, True)


def selected(dim, index):
    return lambda b, x: b.call("aten.select.int", x, dim, index)


SAME = {
    "the last dimension": (lambda p: p.softmax(p.any(), dim=-1), softmax(2)),
    "the last dimension, counted from the back": (lambda p: p.softmax(p.any(), dim=2), softmax(-1)),
    "a list of one": (lambda p: p.op("aten.mean.dim", p.any(), dim=(-1,)), mean(2)),
    "a number for a list": (lambda p: p.op("aten.mean.dim", p.any(), dim=-1), mean(2)),
    "several": (lambda p: p.op("aten.mean.dim", p.any(), dim=(-1, -2)), mean(1, 2)),
    "several in another order": (lambda p: p.op("aten.mean.dim", p.any(), dim=(2, 1)), mean(1, -1)),
    "an order": (lambda p: p.permute(p.any(), dims=(0, -1, -2)), lambda b, x: b.permute(x, (0, 2, 1))),
    "a transposition": (lambda p: p.permute(p.any(), dims=(0, -1, 1)), lambda b, x: b.transpose(x, -2, -1)),
    "a list of operands": (lambda p: p.op("aten.cat", [p.any(), p.any()], dim=-1), lambda b, x: b.cat([x, x], 2)),
    "one more dimension": (lambda p: p.op("aten.stack", [p.any(), p.any()], dim=-1), lambda b, x: b.stack([x, x], 3)),
    "what stays as it is": (lambda p: p.roll(p.any(), dims=(2,)), lambda b, x: b.roll(x, (1,), (-1,))),
    "a split": (
        lambda p: p.op("aten.split_with_sizes", p.any(), dim=-1),
        lambda b, x: b.call("aten.chunk", x, 2, -1)[0],
    ),
    "the last element": (lambda p: p.op("aten.select.int", p.any(), dim=-1, index=-1), selected(2, 3)),
    "a size left out": (lambda p: p.reshape(p.any(), shape=(2, -1)), lambda b, x: b.reshape(x, (2, 12))),
    "a size that stays": (lambda p: p.expand(p.any(), size=(5, -1, 3, 4)), lambda b, x: b.expand(x, (5, 2, 3, 4))),
    "a stride left out": (
        lambda p: p.max_pool2d(p.any(), kernel_size=2, stride=()),
        lambda b, x: b.call("aten.max_pool2d", x, (2, 2)),
    ),
    "an int for a float": (lambda p: p.leaky_relu(p.any(), negative_slope=2), lambda b, x: b.leaky_relu(x, 2)),
    "an int for a probability": (lambda p: p.dropout(p.any(), p=1), lambda b, x: b.dropout(x, 1, True)),
}
OTHER = {
    "another dimension": (lambda p: p.softmax(p.any(), dim=-1), softmax(1)),
    "one of several": (lambda p: p.op("aten.mean.dim", p.any(), dim=-1), mean(1, 2)),
    "several of which one": (lambda p: p.op("aten.mean.dim", p.any(), dim=(-1, -2)), mean(2)),
    "another order": (lambda p: p.permute(p.any(), dims=(0, -1, -2)), lambda b, x: b.permute(x, (1, 0, 2))),
    "an order that is not sorted": (lambda p: p.roll(p.any(), dims=(1, 2)), lambda b, x: b.roll(x, (1, 1), (2, 1))),
    "the dimension before the new one": (
        lambda p: p.op("aten.stack", [p.any(), p.any()], dim=-1),
        lambda b, x: b.stack([x, x], 2),
    ),
    "out of range": (lambda p: p.softmax(p.any(), dim=-4), softmax(2)),
    "a truth value": (lambda p: p.softmax(p.any(), dim=True), softmax(1)),
    "a float": (lambda p: p.softmax(p.any(), dim=2.0), softmax(2)),
    "another element": (lambda p: p.op("aten.select.int", p.any(), dim=-1, index=-1), selected(2, 2)),
    "another size": (lambda p: p.reshape(p.any(), shape=(3, -1)), lambda b, x: b.reshape(x, (2, 12))),
    "another rank": (lambda p: p.reshape(p.any(), shape=(2, -1, 1)), lambda b, x: b.reshape(x, (2, 12))),
    "a size that is expanded": (lambda p: p.expand(p.any(), size=(-1, -1)), lambda b, x: b.expand(b.sum(x), (5, 2))),
    "another stride": (
        lambda p: p.max_pool2d(p.any(), kernel_size=2, stride=()),
        lambda b, x: b.call("aten.max_pool2d", x, (2, 2), (1, 1)),
    ),
    "repetitions, which are no dimensions": (
        lambda p: p.tile(p.any(), dims=(1, -1)),
        lambda b, x: b.tile(x, (1, 2)),
    ),
    "an int for a number that may be either": (
        lambda p: p.op("aten.add.Scalar", p.any(), other=1),
        lambda b, x: b.call("aten.add.Scalar", x, 1.0),
    ),
}


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_a_literal_matches_what_it_means_and_nothing_else(name, canonical):
    node, body = (SAME | OTHER)[name]
    p = program([f32(2, 3, 4)], body)
    if canonical:
        run_pass(Canonicalize(), p, PassContext())
    elif name in ("a transposition", "a split"):
        return  # these are other operators before
    assert matches(node, p) == (name in SAME)


def test_dimensions_of_an_unknown_rank_match_as_they_are_written():
    unknown = TensorType(None, torch.float32)
    for given, expected in ((-1, True), (2, False)):
        p = program([unknown], softmax(given))
        assert matches(lambda p: p.softmax(p.any(), dim=-1), p) == expected


def test_a_symbolic_size_may_be_left_out():
    n = sympy.Symbol("n", integer=True, positive=True)
    p = program([f32(n, 3, 4)], lambda b, x: b.reshape(x, (n, 12)))
    assert matches(lambda p: p.reshape(p.any(), shape=(-1, 12)), p)
    assert not matches(lambda p: p.reshape(p.any(), shape=(12, -1)), p)
