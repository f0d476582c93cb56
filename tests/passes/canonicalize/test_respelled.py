"""Patterns over operators that canonicalization writes as others: a warning that names the canonical spelling."""

from __future__ import annotations

import warnings

import pytest
import torch

from ir.opdef import get_opdef, operators_with
from ir.types import TensorType
from passes.apply import Convert, Fuse
from passes.canonicalize import CANONICALIZATION_RULES, Canonicalize
from passes.canonicalize.respelled import canonical_name, respelled_operators
from passes.manager.manager import Fixpoint, PassContext, PassManager
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.remarks import GraphwrightWarning
from tests.passes.building import f32, names, program


class ReluView(Pattern):
    """view(relu(x)) = neg(x), which is not so"""

    def pattern(self, p):
        return p.view(p.relu(p.any("x")), name="view")

    def rewrite(self, m, b):
        return b.call("aten.reshape", b.neg(m.x), m.view.attributes["size"])


class ReluReshape(ReluView):
    """reshape(relu(x)) or view(relu(x))"""

    def pattern(self, p):
        return p.one_of(p.view(p.relu(p.any("x")), name="view"), p.exp(p.any("x"), name="view"))


def viewed(rows=2):
    return program([f32(rows, 6)], lambda b, x: b.view(b.relu(x), (rows, 2, 3)))


@pytest.mark.parametrize(
    "pipeline",
    [
        PassManager([Canonicalize(), Convert([ReluView])]),
        PassManager([Canonicalize(), Fuse([ReluView])]),
        PassManager([Canonicalize(), Fixpoint([Convert([ReluView]), Canonicalize()])]),
    ],
    ids=str,
)
def test_a_pattern_that_cannot_match_any_more_is_warned_of_once(pipeline):
    p, context = viewed(), PassContext()
    with pytest.warns(GraphwrightWarning) as caught:
        pipeline(p, context)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith("ReluView skipped: it matches nothing after `canonicalize`")
    assert "aten.view (write aten.reshape)" in text
    (remark,) = context.log.remarks
    assert (remark.kind, remark.rule) == ("skipped", "ReluView")


@pytest.mark.parametrize(
    "pipeline",
    [
        PassManager([Convert([ReluView]), Canonicalize()]),
        PassManager([Fixpoint([Convert([ReluView]), Canonicalize()])]),
        PassManager([Canonicalize(), Fuse([ReluReshape])]),
        PassManager([Fuse([ReluView])]),
    ],
    ids=str,
)
def test_patterns_that_can_match_are_not_warned_of(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(viewed())


def test_a_view_of_unknown_shape_stays_and_may_match():
    unknown = TensorType(None, torch.float32)
    p = program([unknown], lambda b, x: b.view(b.neg(x), (-1, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PassManager([Canonicalize(), Convert([ReluView])])(p)
    assert "aten.view" in names(p)


def test_names_of_what_is_written_otherwise():
    class InPlace(ReluView):
        """mul_(relu_(x), y)"""

        def pattern(self, p):
            return p.op("aten.mul_.Tensor", p.op("aten.relu_", p.any("x")))

    class Longer(ReluView):
        """exp(transpose(chunk(x)))"""

        def pattern(self, p):
            return p.exp(p.transpose(p.chain(["aten.view"], p.op(("aten.chunk", "aten.split.Tensor"), p.any("x")))))

    assert respelled_operators(InPlace()) == {"aten.mul_.Tensor": "aten.mul.Tensor", "aten.relu_": "aten.relu"}
    assert respelled_operators(Longer()) == {
        "aten.transpose.int": "aten.permute",
        "aten.chunk": "aten.split_with_sizes",
        "aten.split.Tensor": "aten.split_with_sizes",
    }
    assert respelled_operators(ReluReshape()) == {}
    assert canonical_name(get_opdef("aten.__and__.Tensor")) is None


def test_every_respelled_operator_is_the_root_of_a_canonicalization():
    """The table claims nothing that no rule does, and what it says to write stays."""
    variants = [variant for rule in instantiate(CANONICALIZATION_RULES) for variant in compile_rule(rule)]
    respelled = operators_with(lambda facts: facts.synonym or facts.spelled)
    assert len(respelled) > 50
    for name in respelled:
        canonical = canonical_name(get_opdef(name))
        assert canonical is not None
        assert any(variant.accepts(get_opdef(name)) for variant in variants), name
        assert canonical_name(get_opdef(canonical)) is None
