"""Mutants are in place for as long as they should be, and the suite finds them; `make mutants` runs all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import attrs
import pytest

from fuzz.mutants.mutation import Mutant, StaleMutantError, Subject, mutated
from fuzz.mutants.suite import MUTANTS, MutantResult, choose, known_results, main, run_all, run_mutant, score_table
from fuzz.rules.names import RULES
from ir.errors import InputError
from passes.canonicalize.identity import NoCast
from passes.canonicalize.permute import MergePermutes
from passes.fold.batch_norm import FoldBatchNormPattern

ISSUE_CLASSES = {
    "dropped condition",
    "wrong axis",
    "lost attribute",
    "skipped use check",
    "swapped operands",
    "wrong dtype promotion",
    "view for a copy",
    "stale type",
    "merged random call",
    "dead write removed",
}
OWN_CLASSES = {"unknown type", "another kind"}


def by_name(name: str) -> Mutant:
    return next(m for m in MUTANTS if m.name == name)


COMPOSED = by_name("MergePermutes: the orders composed the wrong way round")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_every_mutant_applies(mutant: Mutant) -> None:
    with mutated(mutant):
        pass
    assert mutant.subject.kind in ("rule", "pass", "text", "types", "modules")
    if mutant.subject.kind == "rule":
        assert mutant.subject.name in RULES


def test_there_are_enough_of_every_class() -> None:
    names = Counter(m.name for m in MUTANTS)
    assert [name for name, count in names.items() if count > 1] == []
    assert sum(not m.equivalent for m in MUTANTS) >= 100
    assert {m.class_ for m in MUTANTS} == ISSUE_CLASSES | OWN_CLASSES


def test_a_mutant_changes_the_code_and_is_undone() -> None:
    before = MergePermutes.rewrite.__code__
    with mutated(COMPOSED):
        assert MergePermutes.rewrite.__code__ is not before
    assert MergePermutes.rewrite.__code__ is before
    with pytest.raises(RuntimeError, match="inside"), mutated(COMPOSED):
        raise RuntimeError("inside")
    assert MergePermutes.rewrite.__code__ is before


def test_a_value_is_changed_and_put_back() -> None:
    mutant = by_name("FoldBatchNormPattern: the layer is used elsewhere")
    with mutated(mutant):
        assert not FoldBatchNormPattern.closed
    assert FoldBatchNormPattern.closed
    assert "closed" not in vars(NoCast)
    with mutated(attrs.evolve(mutant, target="passes.canonicalize.identity:NoCast.closed", old="False", new="True")):
        assert NoCast.closed
    assert "closed" not in vars(NoCast)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old": "no such code"}, "occurs 0 times"),
        ({"old": "m"}, r"occurs \d+ times"),
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
        "NoCast: any memory format",
        "eliminate-common-subexpressions: attributes do not count",
        "text: operands in the reverse order",
        "types: keepdim is lost",
        "SpellPermute: a rank that is not known is 2",
        "LinearActPattern: what is no activation",
    ],
)
def test_representative_mutants_are_found(name: str) -> None:
    result = run_mutant(by_name(name), max_examples=400)
    assert result.status == "found", result
    assert 0 < result.examples <= 400


def test_what_changes_nothing_survives() -> None:
    same = attrs.evolve(COMPOSED, new=COMPOSED.old)
    assert run_mutant(same, max_examples=40).status == "survived"


def test_processes_give_the_same_results() -> None:
    quick = by_name("types: keepdim is lost")
    mutants = [quick, attrs.evolve(COMPOSED, name="stale", old="no such code")]
    results = {r.name: r for r in run_all(mutants, processes=2, max_examples=50)}
    alone = run_mutant(quick, max_examples=50)
    assert attrs.evolve(results[quick.name], seconds=0.0) == attrs.evolve(alone, seconds=0.0)
    assert results["stale"].status == "stale"


def test_what_takes_too_long_is_ended() -> None:
    endless = attrs.evolve(COMPOSED, new="tuple(iter(int, 1))")
    (result,) = run_all([endless], limit=2.0)
    assert result.status == "timeout"


def test_equivalent_mutants_do_not_count() -> None:
    results = [
        MutantResult("a", "wrong axis", "rule A", "found", examples=3),
        MutantResult("b", "wrong axis", "rule A", "survived", examples=9),
        MutantResult("c", "wrong axis", "rule A", "survived", equivalent="it is"),
    ]
    table = score_table(results)
    assert [next(iter(column.cells)) for column in table.columns[:4]] == ["wrong axis", "1", "2", "50.0 %"]


def test_a_run_is_resumed(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    quick = by_name("types: keepdim is lost")
    assert known_results(report, [quick, COMPOSED], 9) == []
    found = MutantResult(quick.name, quick.class_, str(quick.subject), "found", examples=3)
    survived = MutantResult(COMPOSED.name, COMPOSED.class_, str(COMPOSED.subject), "survived", examples=9)
    report.write_text(json.dumps([attrs.asdict(found), attrs.asdict(survived)]))
    assert known_results(report, [quick, COMPOSED], 9) == [found, survived]
    assert known_results(report, [quick, COMPOSED], 10) == [found]
    assert known_results(report, [COMPOSED], 9) == [survived]
    assert main(["--only", quick.name, "--resume", "--report", str(report)]) == 0
    assert main(["--only", quick.name, "--resume"]) == 2


def test_mutants_are_chosen_by_name_and_class() -> None:
    assert COMPOSED in choose(only=["orders composed"], classes=["swapped operands"])
    with pytest.raises(InputError, match="no mutant"):
        choose(only=["no such mutant"])
    assert main(["--only", "no such mutant"]) == 2
    with pytest.raises(InputError, match="no subject"):
        run_subject(Subject("nothing"))


def run_subject(subject: Subject) -> None:
    result = run_mutant(attrs.evolve(COMPOSED, subject=subject), max_examples=1)
    if result.property == "InputError":
        raise InputError(result.message)
