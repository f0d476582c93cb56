"""The command line `python -m fuzz.mutants`: the choice of mutants, and the score."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from rich.console import Console
from rich.table import Table

from fuzz.mutants.curated import CURATED
from fuzz.mutants.equivalent import EQUIVALENT
from fuzz.mutants.made import mutants_of_inference, mutants_of_passes, mutants_of_quantizers, mutants_of_rules
from fuzz.mutants.mutation import Mutant
from fuzz.mutants.suite import LIMIT, SEED, MutantResult, run_all
from fuzz.rules.names import RULES, find_rule
from ir.errors import InputError


def all_mutants() -> list[Mutant]:
    """Return the curated mutants, and those of our rules, passes, type inference and quantizers."""
    found = {mutant.name: mutant for mutant in CURATED}
    made = (*mutants_of_rules(RULES, shared=True), *mutants_of_passes(), *mutants_of_inference())
    for mutant in (*made, *mutants_of_quantizers()):
        found.setdefault(mutant.name, mutant)
    return list(found.values())


def choose(
    only: Sequence[str] = (),
    classes: Sequence[str] = (),
    rules: Sequence[str] = (),
    sample: int | None = None,
    seed: int = SEED,
) -> list[Mutant]:
    """Return mutants in an order that depends on the seed; all by default.

    Args:
        only: the name of a mutant contains one of these texts.
        classes: the classes of faults.
        rules: names of rules, also `module:Class`: mutants of these rules, no curated ones.
        sample: the number of mutants.
        seed: of the sample.

    Raises:
        InputError: when there is none, or a rule cannot be found.
    """
    mutants = mutants_of_rules({name: find_rule(name) for name in rules}) if rules else all_mutants()
    if not mutants:
        raise InputError(
            f"{', '.join(rules)} has no code to mutate",
            remedy="name a rule whose `pattern`, `check` or `rewrite` is written in a file",
        )
    found = [
        m for m in mutants if (not only or any(n in m.name for n in only)) and (not classes or m.class_ in classes)
    ]
    if not found:
        known = sorted({m.class_ for m in mutants})
        raise InputError("no mutant is of that name and class", remedy=f"the classes are {', '.join(known)}")
    # by name, so that a sample does not change with other code
    return sorted(found, key=lambda mutant: random.Random(f"{seed} {mutant.name}").random())[:sample]


def counts(result: MutantResult) -> bool:
    """Return whether the suite should find a mutant: it is not equivalent, and not just narrower."""
    return result.status != "narrower" and result.name not in EQUIVALENT


def score_table(results: Sequence[MutantResult]) -> Table:
    """Return the score by class; equivalent and narrower mutants do not count."""
    table = Table(title="mutants found")
    for column in ("class", "found", "of", "score", "examples: median", "most", "equivalent", "narrower"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for class_ in (*sorted({r.class_ for r in results}), "all"):
        of_class = [r for r in results if class_ in ("all", r.class_)]
        counted = [r for r in of_class if counts(r)]
        needed = sorted(r.examples for r in counted if r.status == "found")
        table.add_row(
            class_,
            str(len(needed)),
            str(len(counted)),
            f"{100 * len(needed) / len(counted):.1f} %" if counted else "-",
            str(needed[len(needed) // 2]) if needed else "-",
            str(needed[-1]) if needed else "-",
            str(sum(r.name in EQUIVALENT for r in of_class)),
            str(sum(r.status == "narrower" and r.name not in EQUIVALENT for r in of_class)),
        )
    return table


def known_results(
    report: Path | None, mutants: Sequence[Mutant], max_examples: int, limit: float = LIMIT
) -> list[MutantResult]:
    """Return the results in a report of mutants that were found, or that survived as many examples or seconds.

    Raises:
        InputError: when no report is named, or the file is not a report.
    """
    if report is None:
        raise InputError("there is no report to resume from", remedy="name one with --report")
    wanted = {mutant.name for mutant in mutants}
    return [
        r
        for r in (_read(report) if report.exists() else ())
        if r.name in wanted
        and (
            r.status == "found"
            or (r.status in ("survived", "narrower") and (r.examples >= max_examples or r.seconds >= limit))
        )
    ]


def _read(report: Path) -> list[MutantResult]:
    try:
        return [MutantResult(**entry) for entry in json.loads(report.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{report} is not a report of mutants: {error}", remedy="name another file, or leave out --resume"
        ) from error


def _write(report: Path, results: Sequence[MutantResult]) -> None:
    """Write a report in one step: an interruption leaves the old one."""
    written = report.with_name(report.name + ".part")
    written.write_text(json.dumps([attrs.asdict(r) for r in results], indent=1) + "\n")
    written.replace(report)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a time")
    return number


def _resumed(options: argparse.Namespace, mutants: Sequence[Mutant]) -> list[MutantResult]:
    return known_results(options.report, mutants, options.max_examples, options.limit) if options.resume else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a mutant that counts was not found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.mutants", description="Test the fuzz suite by faults.")
    add = parser.add_argument
    add("--rule", action="append", default=[], dest="rules", metavar="RULE", help="of this rule, also module:Class")
    add("--only", action="append", default=[], metavar="TEXT", help="mutants whose name contains this")
    add("--class", action="append", default=[], dest="classes", metavar="CLASS", help="of this class")
    add("--sample", type=_at_least_one, metavar="N", help="that many of them")
    add("--seed", type=int, default=SEED, help="of the sample and of the searches")
    add("--list", action="store_true", help="print their names, and run none")
    add("--processes", type=_at_least_one, default=1, help="mutants at once")
    add("--max-examples", type=_at_least_one, default=2000, help="examples for each mutant")
    add("--limit", type=_seconds, default=LIMIT, help="seconds for each mutant")
    add("--report", type=Path, metavar="FILE", help="write all results as JSON")
    add("--resume", action="store_true", help="keep what the report says of as many examples")
    options = parser.parse_args(arguments)
    console = Console(markup=False, highlight=False)
    try:
        mutants = choose(options.only, options.classes, options.rules, options.sample, options.seed)
        results = _resumed(options, mutants)
        if options.report is not None and not options.list:
            _write(options.report, results)
    except (InputError, OSError) as error:
        console.print(str(error))
        return 2
    if options.list:
        for mutant in mutants:
            console.print(mutant.name, soft_wrap=True)
        return 0
    torch.set_num_threads(1)
    done = {result.name for result in results}
    left = [mutant for mutant in mutants if mutant.name not in done]
    searches = {"max_examples": options.max_examples, "limit": options.limit, "seed": options.seed}
    for result in run_all(left, processes=options.processes, **searches):
        results.append(result)
        what = result.property or result.message
        line = f"{len(results)}/{len(mutants)} {result.status:9} {result.examples:5} examples {result.seconds:6.1f} s"
        console.print(f"{line}  {result.name}  [{what}]", soft_wrap=True)
        if options.report is not None:
            _write(options.report, results)
    console.print(score_table(results))
    for result in results:
        if result.status != "found":
            reason = EQUIVALENT.get(result.name, result.message)
            console.print(f"{result.status}: {result.name} ({reason})", soft_wrap=True)
    return int(any(r.status != "found" and counts(r) for r in results))
