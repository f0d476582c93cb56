"""Rules that are wrong: the error names the rule, the line of its code, the fault and the place in the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from ir.compare import programs_equal
from ir.errors import GraphwrightError, PatternError
from ir.text.parser import parse_program
from ir.verify import verify
from passes.fuse.base import FusionPattern
from passes.rewrite.driver import RewriteLog, run_sweep, run_worklist
from passes.rewrite.matching import RuleIndex
from passes.rewrite.pattern import Pattern, instantiate
from passes.rewrite.remarks import GraphwrightWarning
from tests.passes.building import f32, names, program

HERE = Path(__file__).resolve()


class Relu(Pattern):
    """relu(x) = ..."""

    def pattern(self, p):
        return p.relu(p.any("x"), name="relu")

    def rewrite(self, m, b):
        return b.neg(m.x)


def fault_of(rule: Pattern, run: Any = run_worklist) -> PatternError:
    """Return the error that a rule raises on relu(relu(x))."""
    p = program([f32(2, 3)], lambda b, x: b.relu(b.relu(x)))
    with pytest.raises(PatternError) as caught:
        run(p, RuleIndex([rule]), RewriteLog())
    assert type(rule).__name__ in caught.value.message
    return caught.value


def line_of(text: str) -> int:
    """Return the number of the only line of this file that ends in a comment `# text`."""
    (found,) = [i for i, line in enumerate(HERE.read_text().splitlines(), 1) if line.endswith(f"# {text}")]
    return found


@pytest.mark.parametrize("run", [run_worklist, run_sweep])
def test_a_rewrite_that_returns_none_and_changes_nothing(run):
    class Silent(Relu):
        def rewrite(self, m, b):  # silent
            pass

    error = fault_of(Silent(), run)
    assert f"rewrite of Silent ({HERE}:{line_of('silent')}) returned None and changed nothing" in error.message
    assert error.location is not None and error.location.module_path == "block"
    assert "return the value that replaces the root's result" in str(error)


@pytest.mark.parametrize("run", [run_worklist, run_sweep])
def test_a_forgotten_return_is_named(run):
    class Forgets(Relu):
        def rewrite(self, m, b):
            b.neg(b.gelu(m.x))

    class ReturnsTheOld(Relu):
        def rewrite(self, m, b):
            b.neg(b.gelu(m.x))
            return m.relu

    error = fault_of(Forgets(), run)
    assert "built aten.gelu, aten.neg and returned None, so nothing uses" in error.message
    assert "is a `return` missing?" in str(error)
    assert "returned what was there before, so nothing uses" in fault_of(ReturnsTheOld(), run).message


def test_none_stays_legal_with_an_edit_of_its_own():
    class ByRewriter(Relu):
        def rewrite(self, m, b):
            b.replace_value(m.relu.result, b.neg(m.x))

    class InPlace(Pattern):
        """neg(x) * 2 = neg(x) * 3"""

        def pattern(self, p):
            return p.op("aten.mul.Scalar", p.any("x"), other=2, name="mul")

        def rewrite(self, m, b):
            m.mul.set_attribute("other", 3)  # behind the rewriter's back: the revision still tells

    p = program([f32(2)], lambda b, x: b.relu(b.call("aten.mul.Scalar", x, 2)))
    assert run_worklist(p, RuleIndex([ByRewriter(), InPlace()]), RewriteLog()) == 2
    assert names(p) == ["aten.mul.Scalar", "aten.neg"]
    assert p.graph.first is not None and p.graph.first.attributes["other"] == 3


@pytest.mark.parametrize(
    ("returned", "shown"), [(3, "returned 3,"), ((None,), r"returned (None,),"), ("x", "returned 'x',")]
)
def test_a_rewrite_that_returns_no_value(returned, shown):
    class Odd(Relu):
        def rewrite(self, m, b):
            return returned

    assert shown in fault_of(Odd()).message


def test_the_line_that_raised_is_that_of_the_rule():
    def helper(x):
        raise ZeroDivisionError(f"oops {x}")  # helper

    class Checks(Relu):
        def check(self, m):
            return helper(1)

    class Rewrites(Relu):
        def rewrite(self, m, b):
            return m.nothing  # nothing

    class Asks(Pattern):
        """relu(x)"""

        def pattern(self, p):
            return p.relu(p.any("x", where=lambda value: value.shape == ()))  # where

        def rewrite(self, m, b):
            return b.neg(m.x)

    error = fault_of(Checks())
    assert f"check of Checks ({HERE}:{line_of('helper')}) raised ZeroDivisionError: oops 1" in error.message
    assert error.location is not None and error.location.source == "user.py:7"
    assert f"rewrite of Rewrites ({HERE}:{line_of('nothing')}) raised AttributeError" in fault_of(Rewrites()).message
    assert f"pattern of Asks ({HERE}:{line_of('where')}) raised AttributeError" in fault_of(Asks()).message


def test_errors_of_our_own_name_the_rule_too():
    class Misspelt(Relu):
        def rewrite(self, m, b):
            return b.clampp(m.x, 0)  # misspelt

    class Misused(Relu):
        def rewrite(self, m, b):
            return b.softmax(m.x, 1, dimension=1)  # misused

    class Misfit(Relu):
        def rewrite(self, m, b):
            return b.matmul(m.x, m.x)  # misfit

    class Reshaped(Relu):
        def rewrite(self, m, b):  # reshaped
            return b.reshape(m.x, (6,))

    for rule, message in (
        (Misspelt(), "no ATen operator named 'clampp'"),
        (Misused(), "has no argument dimension; it has self, dim, dtype"),
        (Misfit(), "matmul"),
        (Reshaped(), "cannot be replaced by one of type f32[6]"),
    ):
        error = fault_of(rule)
        line = line_of(type(rule).__name__.lower())
        assert f"rewrite of {type(rule).__name__} ({HERE}:{line}) failed: " in error.message
        assert message in error.message
        assert isinstance(error.__cause__, GraphwrightError)


def test_a_fault_in_what_a_rule_inherits_points_at_its_class():
    class Inherits(FusionPattern):
        """fused.twice"""

        kind = "twice"
        parts = ("relu",)

        def pattern(self, p):  # inherits
            return p.relu(p.any("input"), name="relu")

        def check(self, m):
            m.captures["relu"] = 3
            m.ops.clear()

    assert f"rewrite of Inherits ({HERE}:{line_of('inherits')}) failed" in fault_of(Inherits(), run_sweep).message


def test_a_warning_made_an_error_passes_through():
    class Warns(Relu):
        def check(self, m):
            warnings.warn("careful", GraphwrightWarning, stacklevel=2)

    p = program([f32(2)], lambda b, x: b.relu(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(GraphwrightWarning, match="careful"):
            run_worklist(p, RuleIndex([Warns()]), RewriteLog())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: p.clampp(p.any("x")), "no ATen operator named 'clampp'; did you mean 'aten.clamp'?"),
        (lambda p: p.op("aten.add.Tensr"), "no operator named 'aten.add.Tensr'; did you mean 'aten.add.Tensor'?"),
        (lambda p: p.op("mylib.myop"), "no operator named 'mylib.myop'"),
        (lambda p: p.op(()), "() names no operators"),
        (lambda p: p.op(3), "3 names no operators"),
        (lambda p: p.relu("x"), "'x' as an operand of aten.relu is not a pattern"),
        (lambda p: p.cat([p.any(), 3]), "3 as an operand of aten.cat is not a pattern"),
        (lambda p: p.one_of(), "one pattern or more"),
        (lambda p: p.one_of(p.relu(), 3), "3 as an alternative is not a pattern"),
        (lambda p: p.softmax(p.any("x"), dimm=1), "no attribute 'dimm'; did you mean 'dim'? known: dim, dtype"),
        (lambda p: p.op("aten.relu", inputt=p.any("x")), "no common operand 'inputt'"),
        (lambda p: p.relu(p.any("x"), p.any("y")), "aten.relu takes fewer than 2 operands"),
        (
            lambda p: p.op(("aten.relu", "aten.neg"), p.any("x"), result=1),
            "aten.relu and aten.neg: there is no result 1",
        ),
        (lambda p: p.softmax(p.any("x"), p.any("dim")), "aten.softmax.int takes fewer than 2 operands"),
        (lambda p: p.op("aten.add", p.any("x"), p.any("y")), "aten.add is TorchScript's overload"),
        (lambda p: p.neg(p.abs(p.any("x"), name="a"), name="a"), "two parts of the pattern are named 'a'"),
        (lambda p: None, "returned None, not a pattern"),
        (lambda p: p.any("x"), "may match without any operation"),
        (lambda p: p.chain(["aten.relu"], p.any("x")), "a chain that may be empty"),
    ],
)
def test_an_ill_formed_pattern_names_the_rule_and_its_line(build, message):
    class IllFormed(Relu):
        def pattern(self, p):
            return build(p)  # ill-formed

    with pytest.raises(PatternError) as caught:
        RuleIndex([IllFormed()])
    source = str(caught.value).partition(" (")[2].partition(")")[0]
    assert str(caught.value).startswith("the pattern of IllFormed (") and source.startswith(f"{HERE}:")
    assert message in caught.value.message
    if "operator named" in message:
        assert '`p.op("mylib.myop", ...)`' in str(caught.value)


@pytest.mark.parametrize("chained", [False, True])
def test_a_condition_returns_a_reason_or_none(chained):
    class Conditional(Relu):
        def pattern(self, p):
            x, is_relu = p.any("x"), lambda op: op.name == "aten.relu"
            return (
                p.chain(["aten.relu"], x, minimum=1, where=is_relu) if chained else p.op("aten.relu", x, where=is_relu)
            )

    error = fault_of(Conditional())
    assert "the condition `where` of aten.relu returned True" in error.message
    assert "return None where it holds" in str(error)


def test_a_condition_on_a_value_is_true_or_false():
    class Conditional(Relu):
        def pattern(self, p):
            return p.relu(p.any("x", where=lambda value: None if value.is_weight else "no weight"))

    error = fault_of(Conditional())
    assert "the condition `where` of the value 'x' returned 'no weight'" in error.message
    assert "return True or False" in str(error)


def test_a_class_that_needs_arguments_is_no_pattern_by_itself():
    class Parametric(Relu):
        def __init__(self, limit):
            self.limit = limit

    with pytest.raises(PatternError, match=r"Parametric cannot be made without arguments.*limit"):
        instantiate([Parametric])
    given = Parametric(3)
    assert instantiate([given]) == (given,)


def test_a_pattern_class_needs_both_methods():
    class NoPattern(Pattern):
        """?"""

        def rewrite(self, m, b):
            return m.x

    class NoRewrite(Pattern):
        """relu(x)"""

        def pattern(self, p):
            return p.relu(p.any("x"))

    for rule, method in ((NoPattern(), "pattern"), (NoRewrite(), "rewrite")):
        with pytest.raises(PatternError, match=rf"class .*{type(rule).__name__} has no `{method}`[^\0]*define"):
            RuleIndex([rule])


def test_a_region_without_names_of_parts_says_nothing_of_them():
    class Fuses(Pattern):
        """relu(neg(x)) = region(x)"""

        is_fusion = True

        def pattern(self, p):
            return p.relu(p.neg(p.any("x")), name="relu")

        def rewrite(self, m, b):
            return b.fuse("turned", m.ops, parts=parts(m))

    for parts, text in ((lambda m: None, None), (lambda m: {}, None), (lambda m: {m.relu: "act"}, ("", "act"))):  # noqa: B007 - `rewrite` calls it
        p = program([f32(2)], lambda b, x: b.relu(b.neg(x)))
        run_worklist(p, RuleIndex([Fuses()]), RewriteLog())
        assert p.graph.first.attributes.get("parts") == text
        assert ("parts" in str(p)) is (text is not None)
        verify(p)
        assert programs_equal(parse_program(str(p)), p) is None


@pytest.mark.parametrize(
    ("fuse", "message"),
    [
        (lambda m, b: b.fuse("a", m.ops, parts={m.relu: "training"}), "the part 'training' .* attribute of this name"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.relu: "forward"}), "the part 'forward' .* attribute of this name"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.relu: "kind"}), "the part 'kind' .* attribute of this name"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.relu: "a.b"}), r"the part 'a\.b' .* not an identifier"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.relu: ""}), "the part '' .* not an identifier"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.relu: 3}), "the part 3 .* not an identifier"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.x: "relu"}), "key .* of `parts` is not an operation"),
        (lambda m, b: b.fuse("a", m.ops, parts={"relu": m.relu}), "key 'relu' of `parts` is not an operation"),
        (lambda m, b: b.fuse("a", m.ops, parts=("relu",)), r"the parts are \('relu',\), not a mapping"),
        (lambda m, b: b.fuse("a", m.ops, parts={m.x.users[0]: "relu"}), None),
        (lambda m, b: b.fuse("a", m.ops, parts={b.op("aten.neg", m.x): "neg"}), "aten.neg in `parts` is not among"),
        (lambda m, b: b.fuse("a", m.ops, inputs={m.relu: "input"}), "key .* of `inputs` is not a value"),
        (lambda m, b: b.fuse("a", m.ops, inputs={m.x: "in.put"}), r"'in\.put' in the inputs"),
        (lambda m, b: b.fuse("a", m.ops, inputs={m.x: ("q", "")}), "'' in the inputs"),
        (lambda m, b: b.fuse("a", m.ops, quantization_points=["0"]), "'0' in the quantization points"),
        (lambda m, b: b.fuse("a b", m.ops), "the kind 'a b' of a region"),
        (lambda m, b: b.fuse("a", []), "would hold no operations"),
        (lambda m, b: b.fuse("a", [m.x]), "is not an operation"),
    ],
)
def test_a_region_with_impossible_names_is_refused(fuse, message):
    class Region(Relu):
        is_fusion = True

        def rewrite(self, m, b):
            return fuse(m, b)

    p = program([f32(2)], lambda b, x: b.relu(x))
    if message is None:
        assert run_sweep(p, RuleIndex([Region()]), RewriteLog()) == 1
        assert names(p) == ["fused.a"]
    else:
        with pytest.raises(PatternError, match=message):
            run_sweep(p, RuleIndex([Region()]), RewriteLog())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"parts": ("conv", "training")}, "'training'"),
        ({"parts": ("a.b",)}, r"'a\.b'"),
        ({"parts": "conv"}, "the parts of a region are 'conv', not a list"),
        ({"inputs": ("x y",)}, "'x y' in the inputs"),
        ({"quantization_points": ("",)}, "'' in the quantization points"),
        ({"kind": "conv bn"}, "the kind 'conv bn'"),
    ],
)
def test_a_fusion_with_impossible_names_is_refused_when_declared(members, message):
    with pytest.raises(PatternError, match=rf"the fusion .*Declared: .*{message}"):
        type("Declared", (FusionPattern,), members)
