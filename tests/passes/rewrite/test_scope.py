"""Scopes: which operations a key means, rules in a scope, and what is left out."""

from __future__ import annotations

import pytest
from torch import nn

from ir.core import Operation
from ir.errors import InputError, PatternError
from ir.locations import Location, merge_locations
from ir.program import Program
from passes.apply import Convert, Fuse
from passes.fuse.conv import ConvBNPattern
from passes.manager.manager import PassManager
from passes.rewrite.driver import RewriteLog, run_worklist
from passes.rewrite.matching import RuleIndex, compile_rule
from passes.rewrite.pattern import Pattern, scoped, unscoped
from passes.rewrite.scope import Scope, as_keys, format_keys, names_of_type, parse_keys
from tests.passes.building import f32, names, program
from tests.passes.rewrite.test_patterns import ReluRelu


def placed(*paths: str, module_class: str = "torch.nn.modules.activation.ReLU") -> Program:
    """A chain of relus, one in the module of each path."""

    def body(b, x):
        for number, path in enumerate(paths):
            b.location = Location(path, module_class, "user.py", number + 1)
            x = b.relu(x)
        return x

    return program([f32(2)], body)


def ops(p: Program) -> list[Operation]:
    return list(p.graph.operations())


@pytest.mark.parametrize(
    ("scope", "held"),
    [
        (Scope(), ["head", "head.act", "headless", "body.0", "body.1.act", ""]),
        (Scope(only="*"), ["head", "head.act", "headless", "body.0", "body.1.act", ""]),
        (Scope(only="head"), ["head", "head.act"]),
        (Scope(skip="head"), ["headless", "body.0", "body.1.act", ""]),
        (Scope(only="head*"), ["head", "head.act", "headless"]),
        (Scope(only=["body.*", "head"], skip="body.1"), ["head", "head.act", "body.0"]),
        (Scope(only="body.[1-9]"), ["body.1.act"]),
        (Scope(only="*.act"), ["head.act", "body.1.act"]),
        (Scope(skip=nn.ReLU), []),
        (Scope(only=nn.Module, skip="class:LeakyReLU"), ["head", "head.act", "headless", "body.0", "body.1.act", ""]),
        (Scope(only=lambda op: op.location.line > 4), ["body.1.act", ""]),
        (Scope(only="body").within(Scope(skip="*.act")), ["body.0"]),
        (Scope(only="body").within(Scope(only="head")), []),
    ],
    ids=str,
)
def test_a_key_means_modules_and_all_that_is_in_them(scope: Scope, held: list[str]) -> None:
    p = placed("head", "head.act", "headless", "body.0", "body.1.act", "")
    assert [op.location.module_path for op in ops(p) if scope.holds(op)] == held


def test_an_operation_of_several_places_is_in_a_scope_with_all_of_them() -> None:
    p = placed("head", "body")
    first, second = ops(p)
    first.location = merge_locations((first.location, second.location))
    assert not Scope(skip="head").holds(first) and not Scope(skip="body").holds(first)
    assert not Scope(only="head").holds(first)
    assert Scope(only=["head", "body"]).holds(first) and Scope(skip="other").holds(first)


def test_classes_mean_what_is_in_their_modules_where_the_model_is_known() -> None:
    class Block(nn.Module):
        pass

    class Special(Block):
        pass

    modules = {"a": names_of_type(Special), "a[0]": names_of_type(Block), "b": names_of_type(nn.Module)}
    p = placed("a", "a.act", "b.act", "a[0].act")
    scope = Scope(skip=Block)
    assert all(map(scope.holds, ops(p)))  # each operation knows the class of its own module only
    bound = scope.bound(modules)
    assert [bound.holds(op) for op in ops(p)] == [False, False, True, False]
    assert [Scope(only=Special).bound(modules).holds(op) for op in ops(p)] == [True, True, False, False]
    none = Scope(only="class:Absent").bound(modules)
    assert not any(map(none.holds, ops(p)))  # a class without modules is no empty `only`


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (nn.ReLU(), "a ReLU is in a scope.*"),
        (int, "the class int in a scope is no class of modules"),
        ("", "the text '' in a scope names nothing"),
        (["a", "class:"], "the text 'class:' in a scope names nothing"),
        (3, "3 is no scope"),
        ([3], "3 in a scope names no places"),
    ],
)
def test_what_is_no_key_is_refused(keys: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        as_keys(keys)
    assert caught.value.remedy


def test_a_class_goes_by_any_name_that_it_is_imported_under() -> None:
    full = "class:torch.nn.modules.activation.ReLU"
    assert as_keys("class:torch.nn.ReLU") == as_keys(nn.ReLU) == as_keys(full) == (full,)
    assert as_keys("class:ReLU") == ("class:ReLU",)


@pytest.mark.parametrize("keys", [("head",), ("layer4.*", "a b", 'q"u'), ("class:torch.nn.ReLU",), ("<x", "a,b")])
def test_keys_have_a_text(keys: tuple[str, ...]) -> None:
    assert parse_keys(format_keys(keys)) == keys


def test_predicates_answer_yes_or_no() -> None:
    (op,) = ops(placed("head"))
    with pytest.raises(InputError, match=r"the predicate <.*<lambda>> of a scope returned 3 of aten.relu"):
        Scope(only=lambda op: 3).holds(op)
    with pytest.raises(InputError, match=r"raised ZeroDivisionError of aten.relu") as caught:
        Scope(skip=lambda op: 1 / 0 > 1).holds(op)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_match_that_lies_partly_in_the_scope_is_left_alone() -> None:
    p = placed("body.0", "body.1", "head")
    log = RewriteLog()
    run_worklist(p, RuleIndex([ReluRelu()]), log, record=True, scope=Scope(skip="head"))
    assert names(p) == ["aten.relu"] * 2
    assert [op.location.parts[-1].module_path for op in ops(p)] == ["body.1", "head"]
    (remark,) = (r for r in log.remarks if r.kind == "outside")
    assert remark.rule == "ReluRelu"
    assert remark.message == "aten.relu at `head` is left out by skip=head"


def test_dead_code_outside_of_the_scope_stays() -> None:
    p = placed("head", "body")
    p.graph.set_outputs([p.graph.inputs[0]])
    run_worklist(p, RuleIndex([ReluRelu()]), RewriteLog(), scope=Scope(skip="head"))
    assert [op.location.module_path for op in ops(p)] == ["head"]


def test_a_scoped_pattern_goes_by_its_name_and_is_the_same_for_the_same_scope() -> None:
    skipping = scoped(ConvBNPattern, skip=["head", nn.Linear])
    assert issubclass(skipping, ConvBNPattern) and skipping is not ConvBNPattern
    assert skipping is scoped(ConvBNPattern, skip=("head", "class:torch.nn.modules.linear.Linear"))
    assert skipping().name == "ConvBNPattern" and unscoped(skipping) is ConvBNPattern
    assert skipping().scope == Scope(skip=("head", "class:torch.nn.modules.linear.Linear"))
    assert len(compile_rule(skipping())) == len(compile_rule(ConvBNPattern()))
    twice = scoped(skipping, only="body")
    assert str(twice().scope) == "only=body skip=head,class:torch.nn.modules.linear.Linear"
    assert unscoped(twice) is ConvBNPattern
    with pytest.raises(PatternError, match="unknown pattern"):
        scoped(nn.ReLU, skip="head")  # type: ignore[type-var]


def test_a_pattern_object_keeps_its_parameters_in_a_scope() -> None:
    class Named(ReluRelu):
        def __init__(self, title: str) -> None:
            self.title = title

    rule = Named("here")
    skipping = scoped(rule, skip="head")
    assert skipping.title == "here" and str(skipping.scope) == "skip=head"
    assert rule.scope.is_everywhere
    p = placed("body", "body", "head")
    context = PassManager([Convert([skipping])])(p)
    assert names(p) == ["aten.relu"] * 2
    assert [match.pattern for match in context.log.matches] == [Named]


def test_rules_may_have_a_scope_of_their_own() -> None:
    class OnlyInBody(ReluRelu):
        only = "body"

    p = placed("head", "head", "body", "body")
    context = PassManager([Convert([OnlyInBody])])(p)
    assert [op.location.module_path for op in ops(p)] == ["head", "head", "body"]
    assert [match.pattern for match in context.log.matches] == [OnlyInBody]


def test_a_shorter_pattern_may_match_where_a_longer_one_is_left_out() -> None:
    class Three(Pattern):
        is_fusion = True

        def pattern(self, p):
            return p.relu(p.relu(p.relu(p.any("x"))))

        def rewrite(self, m, b):
            b.fuse("three", m.ops)

    class Two(Three):
        def pattern(self, p):
            return p.relu(p.relu(p.any("x")))

        def rewrite(self, m, b):
            b.fuse("two", m.ops)

    p = placed("body", "body", "head")
    PassManager([Fuse([Three, Two])], skip="head")(p)
    assert names(p) == ["fused.two", "aten.relu"]
    p = placed("body", "body", "head")
    PassManager([Fuse([scoped(Three, skip="head"), Two])])(p)
    assert names(p) == ["fused.two", "aten.relu"]
