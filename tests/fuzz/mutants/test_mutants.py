"""Mutants are in place for as long as they should be, and the suite finds them; `make mutants` runs all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import attrs
import pytest
from hypothesis import strategies as st

from fuzz.mutants import suite
from fuzz.mutants.curated import CURATED
from fuzz.mutants.equivalent import EQUIVALENT
from fuzz.mutants.literals import WriteLiterals
from fuzz.mutants.main import all_mutants, choose, known_results, main, score_table
from fuzz.mutants.mutation import Mutant, StaleMutantError, Subject, mutated
from fuzz.mutants.operators import OPERATORS, edits
from fuzz.mutants.subjects import Drawn
from fuzz.mutants.suite import MutantResult, run_all, run_mutant
from fuzz.programs.case import Case, positional_convention
from fuzz.rules.names import RULES, find_rule
from fuzz.search.sound import Target, assert_sound
from ir.errors import InputError
from ir.memory.layout import LayoutMap
from ir.ops.inference.reduction import reduce
from passes.canonicalize.identity import NoCast
from passes.canonicalize.permute import MergePermutes
from passes.fold.batch_norm import FoldBatchNormPattern


@pytest.fixture(scope="module")
def everything() -> dict[str, Mutant]:
    mutants = all_mutants()
    found = {mutant.name: mutant for mutant in mutants}
    assert len(found) == len(mutants)
    return found


def by_name(name: str) -> Mutant:
    return next(m for m in CURATED if m.name == name)


QUICK = by_name("types: permute the wrong way round")
COMPOSED = Mutant(
    "MergePermutes: the orders composed the wrong way round",
    "order",
    "passes.canonicalize.permute:MergePermutes.rewrite",
    "tuple(inner[d] for d in outer)",
    "tuple(outer[d] for d in inner)",
    Subject("rule", ("MergePermutes",)),
)
CLOSED = Mutant(
    "FoldBatchNormPattern: the layer is used elsewhere",
    "boolean",
    "passes.fold.batch_norm:FoldBatchNormPattern.closed",
    "True",
    "False",
    Subject("rule", ("FoldBatchNormPattern",)),
)


@pytest.mark.parametrize("mutant", CURATED, ids=lambda m: m.name)
def test_every_curated_mutant_applies(mutant: Mutant) -> None:
    with mutated(mutant):
        pass
    assert mutant.subject.kind in ("rule", "pass", "text", "types", "modules", "quant")


def test_mutants_are_made_of_everything(everything: dict[str, Mutant]) -> None:
    made = [m for m in everything.values() if m not in CURATED]
    assert {m.class_ for m in made} == set(OPERATORS)
    assert {m.subject.kind for m in made} == {"rule", "pass", "types", "quant"}
    tried = {name for m in made if m.subject.kind == "rule" for name in m.subject.names}
    assert tried == {*RULES, "fuzz.mutants.literals:WriteLiterals"}
    assert COMPOSED.target in {m.target for m in made}


def test_made_mutants_apply(everything: dict[str, Mutant]) -> None:
    made = [m for m in everything.values() if m.at is not None]
    for mutant in made[:: len(made) // 60]:
        with mutated(mutant):
            pass


def test_judgements_of_equivalence_are_of_mutants_that_there_are(everything: dict[str, Mutant]) -> None:
    assert [name for name in EQUIVALENT if name not in everything] == []
    assert all(EQUIVALENT.values())


def test_a_mutant_changes_the_code_and_is_undone() -> None:
    before = MergePermutes.rewrite.__code__
    with mutated(COMPOSED):
        assert MergePermutes.rewrite.__code__ is not before
    assert MergePermutes.rewrite.__code__ is before
    with pytest.raises(RuntimeError, match="inside"), mutated(COMPOSED):
        raise RuntimeError("inside")
    assert MergePermutes.rewrite.__code__ is before


def test_a_default_is_changed_and_put_back() -> None:
    step = Mutant("step", "integer", "ir.memory.layout:LayoutMap.step", "int = 0", "int = 1", Subject("text"))
    of_all = Mutant("r", "boolean", "ir.ops.inference.reduction:reduce", "bool = False", "bool = True", Subject("text"))
    with mutated(step), mutated(of_all):
        assert LayoutMap.step.__defaults__ == (1,)
        assert reduce.__kwdefaults__ == {"empty": True, "results": 1}
    assert LayoutMap.step.__defaults__ == (0,)
    assert reduce.__kwdefaults__ == {"empty": False, "results": 1}


def test_a_value_is_changed_and_put_back() -> None:
    with mutated(CLOSED):
        assert not FoldBatchNormPattern.closed
    assert FoldBatchNormPattern.closed
    assert "closed" not in vars(NoCast)
    with mutated(attrs.evolve(CLOSED, target="passes.canonicalize.identity:NoCast.closed", old="False", new="True")):
        assert NoCast.closed
    assert "closed" not in vars(NoCast)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old": "no such code"}, "occurs 0 times"),
        ({"old": "m"}, r"occurs \d+ times"),
        ({"at": 1}, "occurs 1 times"),
        ({"new": "tuple("}, "does not compile"),
        ({"target": "passes.canonicalize.permute:MergePermutes.gone"}, "there is no"),
        ({"target": "passes.fold.batch_norm:FoldBatchNormPattern.closed", "old": "False"}, "is True, not False"),
    ],
)
def test_a_stale_mutant_says_so(changes: dict[str, str], message: str) -> None:
    stale = attrs.evolve(COMPOSED, **changes)
    with pytest.raises(StaleMutantError, match=f"{COMPOSED.name}.*{message}"), mutated(stale):
        pass
    assert run_mutant(stale, max_examples=1).status == "stale"


@pytest.mark.parametrize(
    "name",
    [
        "passes.canonicalize.identity:NoCast.check: condition: never not same_dtype(x, op.result)",
        "passes.fold.constants:_fold: comparison: fill is not None -> fill is None",
        "text: operands in the reverse order",
        "types: permute the wrong way round",
        "SpellPermute: a rank that is not known is 2",
        "LinearActPattern: what is no activation",
    ],
)
def test_representative_mutants_are_found(name: str, everything: dict[str, Mutant]) -> None:
    result = run_mutant(everything[name], max_examples=400)
    assert result.status == "found", result
    assert 0 < result.examples <= 400


def test_what_changes_nothing_survives() -> None:
    same = attrs.evolve(COMPOSED, new=COMPOSED.old)
    result = run_mutant(same, max_examples=40)
    assert (result.status, result.message) == ("survived", "the same on 300 programs")


def test_a_rule_that_is_not_what_its_examples_say_is_found() -> None:
    target = "passes.canonicalize.permute:PermuteWithoutUnits.check"
    reason = '"the values between the reshapes are used elsewhere"'
    other = Mutant("other", "", target, reason, '"no"', Subject("rule", ("PermuteWithoutUnits",)))
    result = run_mutant(other, max_examples=1)
    assert (result.status, result.property) == ("found", "examples")
    assert "refuses its near miss for another reason: no" in result.message


@pytest.mark.long
def test_a_rule_that_takes_less_is_narrower_and_one_that_takes_nothing_is_found() -> None:
    target = "passes.canonicalize.permute:NoPermute.check"
    condition = "m.dims == tuple(range(len(m.dims)))"
    less = Mutant("less", "", target, condition, f"{condition} and len(m.dims) > 2", Subject("rule", ("NoPermute",)))
    assert run_mutant(less, max_examples=40).status == "narrower"
    nothing = run_mutant(attrs.evolve(less, new="False"), max_examples=40)
    assert (nothing.status, nothing.property) == ("found", "it fires")


def test_a_rule_of_inference_that_says_less_is_narrower() -> None:
    subject = Subject("types", operators=("aten.prelu",))
    less = Mutant(
        "less", "", "ir.ops.inference.elementwise:prelu", "count is None or count == 1", "count is None", subject
    )
    result = run_mutant(less, max_examples=60)
    assert (result.status, result.message.partition(" of ")[0]) == ("narrower", "it says less")
    same = run_mutant(attrs.evolve(less, new=less.old), max_examples=40)
    assert (same.status, same.message) == ("survived", "the same on 400 calls")
    split, target = Subject("types", operators=("aten.split_with_sizes",)), "ir.ops.inference.slicing:split_with_sizes"
    more = run_mutant(Mutant("more", "", target, "total(sizes), size", "size, size", split), max_examples=400)
    assert (more.status, more.property) == ("found", "types")
    # the pieces of (4, 0) are known, whatever is unknown of the whole
    refused = run_mutant(Mutant("refused", "", target, "s >= 0", "s > 0", split), max_examples=40)
    assert (refused.status, refused.property) == ("found", "types")


def test_processes_give_the_same_results() -> None:
    mutants = [QUICK, attrs.evolve(COMPOSED, name="stale", old="no such code")]
    results = {r.name: r for r in run_all(mutants, processes=2, max_examples=50)}
    alone = run_mutant(QUICK, max_examples=50)
    assert attrs.evolve(results[QUICK.name], seconds=0.0) == attrs.evolve(alone, seconds=0.0)
    assert results["stale"].status == "stale"


def test_what_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_GRACE", 2.0)
    endless = attrs.evolve(COMPOSED, new="tuple(iter(int, 1))")
    (result,) = run_all([endless], limit=1.0)
    assert (result.status, result.property) == ("found", "it ends")


def test_a_search_ends_in_time() -> None:
    result = run_mutant(attrs.evolve(COMPOSED, new=COMPOSED.old), max_examples=10**6, limit=0.5)
    assert (result.status, result.examples < 1000) == ("survived", True)


def test_what_is_found_as_the_time_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fails_late() -> None:
        calls.append(1)
        if len(calls) < 3:  # hypothesis tries it twice; then the unchanged code is tried
            raise ValueError

    monkeypatch.setattr(suite, "draws", lambda _: lambda draw: draw(st.just(fails_late)))
    monkeypatch.setattr(time, "process_time", lambda: 10.0 * len(calls))
    result = run_mutant(COMPOSED, limit=5.0)
    assert (result.status, result.property, result.examples) == ("found", "ValueError", 1)


def test_equivalent_and_narrower_mutants_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EQUIVALENT, "c", "it is")
    results = [
        MutantResult("a", "order", "rule A", "found", examples=3),
        MutantResult("b", "order", "rule A", "survived", examples=9),
        MutantResult("c", "order", "rule A", "survived"),
        MutantResult("d", "order", "rule A", "narrower"),
    ]
    table = score_table(results)
    shown = [next(iter(column.cells)) for column in table.columns]
    assert shown == ["order", "1", "2", "50.0 %", "3", "3", "1", "1"]


def test_a_run_is_resumed(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert known_results(report, [QUICK, COMPOSED], 9) == []
    found = MutantResult(QUICK.name, QUICK.class_, str(QUICK.subject), "found", examples=3)
    survived = MutantResult(COMPOSED.name, COMPOSED.class_, str(COMPOSED.subject), "survived", examples=9, seconds=5)
    report.write_text(json.dumps([attrs.asdict(found), attrs.asdict(survived)]))
    assert known_results(report, [QUICK, COMPOSED], 9) == [found, survived]
    assert known_results(report, [QUICK, COMPOSED], 10) == [found]
    assert known_results(report, [QUICK, COMPOSED], 10, limit=5) == [found, survived]
    assert known_results(report, [COMPOSED], 9) == [survived]
    assert main(["--only", QUICK.name, "--resume", "--report", str(report)]) == 0
    assert main(["--rule", "NoCast", "--resume"]) == 2


def test_mutants_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = choose(only=["NoCast.check: reason: return None, not copy_refusal"], classes=["reason"], rules=["NoCast"])
    assert one.subject == Subject("rule", ("NoCast",))
    few = choose(rules=["NoCast", "NoCopy"], sample=5, seed=1)
    assert few == choose(rules=["NoCast", "NoCopy"], sample=5, seed=1)
    assert len(few) == 5 and few != choose(rules=["NoCast", "NoCopy"], sample=5, seed=2)
    with pytest.raises(InputError, match="no mutant"):
        choose(only=["no such mutant"], rules=["NoCast"])
    assert main(["--rule", "NoCast", "--only", "no such mutant"]) == 2
    assert main(["--rule", "NoSuchRule"]) == 2
    assert main(["--rule", "NoCast", "--only", one.name, "--list"]) == 0
    assert one.name in capsys.readouterr().out
    with pytest.raises(InputError, match="nothing is not a subject"):
        run_subject(Subject("nothing"))


def run_subject(subject: Subject) -> None:
    result = run_mutant(attrs.evolve(COMPOSED, subject=subject), max_examples=1)
    if result.property == "InputError":
        raise InputError(result.message)


RULE = '''
from graphwright import Match, Pattern, PatternBuilder

class NoDoubleTranspose(Pattern):
    """x.transpose(a, b).transpose(a, b) = x"""

    def pattern(self, p: PatternBuilder):
        inner = p.op("aten.transpose.int", p.any("x"), name="inner")
        return p.op("aten.transpose.int", inner, name="outer")

    def check(self, m: Match):
        return None if same_dims(m.inner, m.outer) else "the dimensions differ"

    def rewrite(self, m: Match, b):
        return m.x

def same_dims(a, b):
    return a.attributes["dim0"] == b.attributes["dim0"] and a.attributes["dim1"] == b.attributes["dim1"]
'''


def test_a_rule_of_a_user_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules_of_mine.py").write_text(RULE)
    monkeypatch.syspath_prepend(tmp_path)
    mutants = {m.name.partition(":")[2]: m for m in choose(rules=["rules_of_mine:NoDoubleTranspose"])}
    assert {m.target for m in mutants.values()} == {
        "rules_of_mine:NoDoubleTranspose.check",
        "rules_of_mine:same_dims",
    }
    either = mutants["same_dims: connective: without a.attributes['dim0'] == b.attributes['dim0'] of `and`"]
    assert run_mutant(either, max_examples=400).status == "found"


UNUSUAL = """
from graphwright import Pattern

Lambdas = type("Lambdas", (Pattern,), {"pattern": lambda self, p: p.neg(p.any("x")), "rewrite": lambda self, m, b: m.x})
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "unusual:Lambdas"], "has no code to mutate"),
        (["--rule", "graphwright:Pattern"], "has no code to mutate"),
        (["--rule", "..unusual:Lambdas"], "does not name a module"),
        (["--rule", "not_python:Rule"], "raises SyntaxError on import"),
        (["--rule", "raising:Rule"], "raises ZeroDivisionError on import"),
        (["--rule", "NoCast", "--resume", "--report", "empty.json"], "is not a report of mutants"),
        (["--rule", "NoCast", "--resume", "--report", "list.json"], "is not a report of mutants"),
        (["--rule", "NoCast", "--resume", "--report", "."], "is not a report of mutants"),
        (["--rule", "NoCast", "--report", "missing/report.json"], "No such file or directory"),
        (["--processes", "0"], "0 is less than 1"),
        (["--max-examples", "0"], "0 is less than 1"),
        (["--sample", "-1"], "-1 is less than 1"),
        (["--limit", "0"], "0 is not a time"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {"unusual.py": UNUSUAL, "not_python.py": "1 +", "raising.py": "1 / 0", "empty.json": "", "list.json": "[1]"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as exit_:  # of argparse
        code = int(exit_.code or 0)
    printed = capsys.readouterr()
    assert code == 2
    assert message in " ".join((printed.out + printed.err).split())


SOURCE = '''
def check(m) -> str | None:
    """A docstring: 1 and 2."""
    assert m.rank == 4
    if not m.known or m.rank > 3:
        return f"of rank {m.rank + 1}"
    if m.same:
        return None
    made = m.op("aten.sum", m.x, -1, keepdim=True, name="y")
    return None if made in (torch.float32, 7) else Refusal("no", near=True)
'''


def test_operators_change_what_is_computed_and_nothing_else() -> None:
    assert [f"{edit.operator}: {edit.label}" for edit in edits(SOURCE.lstrip())] == [
        "condition: never not m.known or m.rank > 3",
        "connective: without not m.known of `or`",
        "connective: without m.rank > 3 of `or`",
        "connective: not m.known -> m.known",
        "comparison: m.rank > 3 -> m.rank >= 3",
        "integer: 3 -> 4",
        "integer: 3 -> 2",
        "reason: return None, not f'of rank {m.rank + 1}'",
        "condition: never m.same",
        "condition: always m.same",
        "keyword: without keepdim=True in m.op(...)",
        "order: m.x <-> -1 in m.op(...)",
        "integer: -1 -> 0",
        "integer: -1 -> -2",
        "boolean: True -> False",
        "reason: return None, not None if made in (torch.float32, 7) else Refusal('no', near=True)",
        "condition: never made in (torch.float32, 7)",
        "comparison: made in (torch.float32, 7) -> made not in (torch.float32, 7)",
        "dtype: torch.float32 -> torch.float64",
        "integer: 7 -> 8",
        "integer: 7 -> 6",
    ]


def test_operands_that_a_pattern_matches_in_both_orders_stay() -> None:
    source = """
def pattern(self, p: PatternBuilder) -> Node:
    x = p.mul(p.any("x"), p.any("y"))
    y = p.op(("aten.add.Tensor", "aten.mul.Tensor"), x, p.any("z"))
    return p.op("aten.where.self", p.any("c"), p.sub(y, x), x)
"""
    assert [edit.label for edit in edits(source.lstrip()) if edit.operator == "order"] == [
        "p.any('c') <-> p.sub(y, x) in p.op(...)",
        "p.sub(y, x) <-> x in p.op(...)",
        "y <-> x in p.sub(...)",
    ]
    rewritten = "def rewrite(self, m, b):\n    return b.op('aten.add.Tensor', m.x, m.y)\n"
    assert [edit.label for edit in edits(rewritten)] == ["m.x <-> m.y in b.op(...)"]


def test_the_order_of_what_is_looked_through_stays() -> None:
    source = """
def f(a, b):
    if a in (1, b) or isinstance(a, (int, float)) or a[0, b] not in {(a, b), *set((1, b))}:
        return any(c for c in (a, b))
"""
    assert [edit.label for edit in edits(source.lstrip()) if edit.operator == "order"] == ["0 <-> b", "a <-> b"]


def test_what_is_the_same_in_other_words_is_not_another_result() -> None:
    name = "passes.convert.classifier:_rebuild: condition: never result.is_known"
    target = Target.of(find_rule("FlattenLinearToConv1x1Pattern"))
    program = target.rules[0].examples[0].program()
    program.convention = positional_convention(program.graph)
    drawn = Drawn(target, Case.of(program, []))
    unchanged = drawn.rewritten()
    with mutated(choose([name])[0]):
        changed = drawn.rewritten()
    assert unchanged.text != changed.text
    assert drawn.finished(unchanged) == drawn.finished(changed)


def test_literals_of_patterns_are_held_to_the_operators() -> None:
    assert_sound(WriteLiterals)
    [mutant] = choose(only=["literals:_written_out: arithmetic: len(shape) - len(given) -> len(shape) + len(given)"])
    assert run_mutant(mutant, max_examples=400).status == "found"


def test_edits_are_at_their_place() -> None:
    source = "def f(a):\n    é = ('ü', 1)\n    return a + 1\n"
    last = edits(source)[-1]
    assert source[last.at :].startswith(last.old) and (last.old, last.new) == ("1", "0")
