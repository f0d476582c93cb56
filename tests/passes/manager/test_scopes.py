"""Passes in a scope, and passes of one name told apart: text, edits, and what a scope is held to."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
from torch import nn

from ir.errors import InputError, ParseError, PassError
from passes.apply import Convert, Fuse
from passes.canonicalize import Canonicalize
from passes.cleanup.cse import EliminateCommonSubexpressions
from passes.cleanup.dce import EliminateDeadCode
from passes.fold.batch_norm import FoldBatchNorm
from passes.fuse.conv import ConvBNActPattern, ConvBNPattern
from passes.manager.instruments import Statistics
from passes.manager.manager import Fixpoint, Pass, PassContext, PassManager, Verify, run_pass
from passes.quant.place import PlaceQuantizers
from passes.quant.remove import RemoveQuantizers
from passes.quant.unify import UnifyQuantizers
from passes.rewrite.pattern import scoped
from passes.rewrite.rewriter import Rewriter
from passes.rewrite.scope import names_of_type
from tests.passes.rewrite.test_patterns import ReluRelu
from tests.passes.rewrite.test_scope import ops, placed

KNOWN = (Canonicalize, Convert, Fuse, FoldBatchNorm, EliminateDeadCode, Verify)


def parse(text: str) -> PassManager:
    return PassManager.parse(text, passes=KNOWN, patterns=(ConvBNPattern, ConvBNActPattern, ReluRelu))


@pytest.mark.parametrize(
    ("manager", "text"),
    [
        (PassManager([FoldBatchNorm(skip="head")]), "fold-batch-norm{skip=head}"),
        (
            PassManager([Fuse([ConvBNPattern], only=["a.*", "b c"], skip=nn.Linear, label="late")]),
            'fuse{patterns=ConvBNPattern only=a.*,"b c" skip=class:torch.nn.modules.linear.Linear label=late}',
        ),
        (
            PassManager([Fuse([scoped(ConvBNActPattern, skip="head"), ConvBNPattern])]),
            "fuse{patterns=ConvBNActPattern(skip=head),ConvBNPattern}",
        ),
        (
            PassManager([Fuse([scoped(scoped(ConvBNPattern, skip="head"), only=["x}", "y"], skip="x.0")])]),
            'fuse{patterns=ConvBNPattern(skip=head)(only="x}",y skip=x.0)}',
        ),
        (
            PassManager([Fixpoint([Convert([ReluRelu])], only="body", max_rounds=3)], skip="head"),
            "sequence(fixpoint(convert{patterns=ReluRelu}){max-rounds=3 only=body}){skip=head}",
        ),
        (PassManager([Canonicalize(inference=True, skip="h")]), "canonicalize{inference=true skip=h}"),
    ],
)
def test_scopes_have_a_text(manager: PassManager, text: str) -> None:
    assert str(manager) == text
    assert parse(text) == manager
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-batch-norm{skip=?<f>}", "a predicate has no text: give this scope in Python"),
        ("fold-batch-norm{skip=a,?,b}", "expected a glob of module paths"),
        ("fold-batch-norm{skip=a,?class:}", "expected a glob of module paths"),
        ("fold-batch-norm{skip=?}", "expected a glob of module paths"),
        ('fold-batch-norm{skip=?"a}', "the quote is never closed"),
        ("fuse{patterns=ConvBNPattern(skip=a?}", "expected `only=`, `skip=` or `\\)`"),
        ("fuse{patterns=ConvBNPattern?(skip=a", "`\\(` is never closed"),
        ("fuse{patterns=ConvBNPattern(?skp=a)}", "expected `only=`, `skip=` or `\\)`"),
        ("fuse{patterns=ConvBNPattern(skip=a ?skip=b)}", "'skip' is given twice"),
        ("fold-batch-norm?{skip=a", "`{` is never closed"),
        ("?verify{skip=head}", "pass `verify` takes no scope: it looks at all"),
        ("?fuse{patterns=ConvBNPattern label=a.b}", "the label of pass `fuse` is 'a.b'"),
    ],
)
def test_faulty_scopes_are_refused_where_they_stand(text: str, message: str) -> None:
    at = text.index("?")
    with pytest.raises(ParseError, match=message) as caught:
        parse(text.replace("?", "", 1))
    assert caught.value.column == at + 1


def test_a_predicate_is_shown_and_has_no_text() -> None:
    def small(op: object) -> bool:
        return True

    manager = PassManager([FoldBatchNorm(skip=small)])
    assert str(manager).endswith("small>}")
    assert manager == PassManager([FoldBatchNorm(skip=[small])]) != PassManager([FoldBatchNorm()])
    with pytest.raises(ParseError, match="a predicate has no text"):
        parse(str(manager))


def test_passes_of_one_name_are_edited_apart() -> None:
    late = Fuse([ConvBNPattern], label="late")
    manager = PassManager(
        [Canonicalize(), Fixpoint([Convert([ReluRelu]), Canonicalize()]), Fuse([ConvBNPattern]), late]
    )
    assert str(manager.without("canonicalize[1]")) == str(manager).replace("},canonicalize)", "})")
    assert manager.without("canonicalize[-1]") == manager.without("canonicalize[1]")
    assert str(manager.replace("canonicalize[0]", Verify())).startswith(
        "verify,fixpoint(convert{patterns=ReluRelu},can"
    )
    assert manager.without("late") == manager.without("fuse[1]") == PassManager(manager.passes[:-1])
    scoped_late = manager.with_scope("late", skip="head")
    assert scoped_late.passes == (*manager.passes[:-1], attrs.evolve(late, skip="head"))
    again = scoped_late.with_scope("fuse[-1]", only="body", skip="neck")
    assert again.passes[-1] == attrs.evolve(late, only="body", skip=("head", "neck"))
    assert manager.with_scope("fuse", skip="head").passes[2:] == (
        Fuse([ConvBNPattern], skip="head"),
        attrs.evolve(late, skip="head"),
    )
    for wrong, message in (
        ("fuse[2]", r"there are 2 passes named 'fuse' .* and none is fuse\[2\]"),
        ("fixpoint[1]", r"there is one pass named 'fixpoint'"),
        ("late2", "there is no pass named 'late2'"),
        ("fuse[x]", r"'fuse\[x\]' names no passes"),
        (3, "3 names no passes"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            manager.without(wrong)
        assert caught.value.remedy
    with pytest.raises(InputError, match="has an `only` already"):
        again.with_scope("late", only="other")


def test_labels_tell_passes_apart_in_reports() -> None:
    statistics = Statistics()
    manager = PassManager([Convert([ReluRelu], label="first"), Convert([ReluRelu])]).with_instruments(statistics)
    context = manager(placed("a", "a"))
    assert dict(statistics.runs) == {"first": 1, "convert": 1}
    assert [(result.name, result.label) for result in context.results] == [
        ("convert", "first"),
        ("convert", ""),
        ("sequence", ""),
    ]


def paths(manager: PassManager, *given: str, context: PassContext | None = None) -> list[str]:
    p = placed(*given)
    manager(p, context)
    return [op.location.parts[0].module_path for op in ops(p)]


def test_the_scope_of_a_manager_holds_for_its_passes() -> None:
    inner = Convert([ReluRelu], only=["body", "neck"])
    given = ("body", "body", "neck", "neck", "head", "head")
    assert paths(PassManager([inner]), *given) == ["body", "head", "head"]
    assert paths(PassManager([inner], skip="neck"), *given) == ["body", "neck", "neck", "head", "head"]
    assert paths(PassManager([Fixpoint([PassManager([inner])], only="neck")]), *given)[:3] == ["body", "body", "neck"]
    assert paths(PassManager([Canonicalize(), Verify()], skip="head"), *given) == ["body", "head", "head"]
    assert paths(PassManager([Canonicalize(skip="head")]), *given) == ["body", "head", "head"]


def test_a_class_means_what_is_in_its_modules() -> None:
    context = PassContext()
    context.log.modules = {"": names_of_type(nn.Module), "neck": names_of_type(nn.Sequential)}
    found = paths(
        PassManager([Convert([ReluRelu], skip=nn.Sequential)]), "body", "body", "neck.0", "neck.0", context=context
    )
    assert found == ["body", "neck.0", "neck.0"]
    rule = scoped(ReluRelu, only="class:Sequential")
    assert (
        paths(PassManager([Convert([rule])]), "body", "body", "neck.0", "neck.0", context=context)[:2] == ["body"] * 2
    )


@attrs.frozen
class RelusToNeg(Pass):
    """Replaces each relu, heeding its scope or not; promises that none is left in it."""

    name: ClassVar[str] = "relus-to-neg"
    heeds: bool = True
    edits: bool = False

    def run(self, program, context):
        b = Rewriter(program)
        for op in list(program.graph.operations()):
            if not self.heeds or self.scope.holds(op):
                if self.edits:
                    b.set_attribute(op, "other", 3)
                else:
                    b.anchor, b.location = op, op.location
                    b.replace(op, b.neg(op.operands[0]))

    def ensures(self, program):
        left = [
            op.location.where for op in program.graph.operations() if op.name == "aten.relu" and self.scope.holds(op)
        ]
        return f"relu at {left} is left" if left else None


def test_passes_of_ones_own_ask_their_scope_and_are_held_to_it() -> None:
    p = placed("body", "head")
    PassManager([RelusToNeg(only=["body", "head"])], skip="head")(p)
    assert [op.name for op in ops(p)] == ["aten.neg", "aten.relu"]
    p = placed("body", "head")
    with pytest.raises(
        PassError, match=r"`relus-to-neg` erased aten.relu at `head`, which its scope leaves out"
    ) as caught:
        run_pass(RelusToNeg(heeds=False, skip="head"), p, PassContext())
    assert "self.scope.holds(op)" in str(caught.value)
    with pytest.raises(PassError, match=r"`relus-to-neg` changed aten.relu at `body`, which .* \(only=head\)"):
        run_pass(RelusToNeg(heeds=False, edits=True, only="head"), placed("body"), PassContext())


@pytest.mark.parametrize("cls", [Verify, PlaceQuantizers, UnifyQuantizers, RemoveQuantizers])
def test_what_takes_no_scope_says_why(cls: type[Pass]) -> None:
    with pytest.raises(InputError, match=f"pass `{cls.name}` takes no scope: ") as caught:
        cls(skip="head")
    assert caught.value.remedy


@pytest.mark.parametrize("body", [{"__annotations__": {"only": str}, "only": ""}, {"label": property(str)}])
def test_an_option_that_every_pass_has_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(PassError, match=f"the pass class Counts has a `{list(body)[-1]}` of its own"):
        type("Counts", (Pass,), {"name": "counts", **body})


def test_cleanups_stay_in_their_scope() -> None:
    p = placed("body", "head")
    first = p.graph.inputs[0]
    for op in ops(p):
        op.set_operand(0, first)  # two equal operations, the first of them dead
    run_pass(EliminateCommonSubexpressions(skip="head"), p, PassContext())
    run_pass(EliminateDeadCode(only="head"), p, PassContext())
    assert len(ops(p)) == 2
    run_pass(EliminateDeadCode(only="body"), p, PassContext())
    assert [op.location.module_path for op in ops(p)] == ["head"]
