"""The command `python -m fuzz`, also `graphwright-fuzz`: looks for rewrites that change what programs mean."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from fuzz.campaign.campaign import Campaign, UnitResult, freeze_imports, run_campaign
from fuzz.campaign.ray_campaign import RayExecutor
from fuzz.campaign.survey import kinds_named, survey, table_of, write_found
from fuzz.campaign.targets import PASSES, VARIANTS, resolve
from fuzz.programs.determinism import compare_processes
from fuzz.rules.instances import expanded_pattern
from fuzz.rules.names import RULES
from fuzz.search.replay import replay_all
from fuzz.search.sound import Target
from ir.errors import GraphwrightError, InputError

_DESCRIPTION = """\
Applies rules, passes and whole pipelines to programs that are drawn for them, and compares what comes out with what
went in: values, dtypes, shapes, strides, shared memory, gradients, statistics, random numbers, the text form.

Without options, every rule is tried. The command ends with status 0 when nothing was found, with 1 when something was
(each case is a file in the folder given by --state), with 2 when it was called wrongly, and with 130 when it was
stopped by Ctrl-C with nothing found.
"""
_EXAMPLES = """\
examples:
  graphwright-fuzz                                          every rule, 1000 programs each
  graphwright-fuzz --rules ConvBNPattern,mine.rules:MyRule  two rules, one of your own
  graphwright-fuzz --passes all --time 2h --processes 4 --state campaign
  graphwright-fuzz --pipeline "canonicalize,fuse{patterns=ConvBNPattern}" --examples 5000
  graphwright-fuzz kinds --kind "hidden state"              modules of one kind, and what becomes of them
  graphwright-fuzz replay                                   the corpus of what was found before
  graphwright-fuzz determinism --examples 500               two processes must write the same bytes
"""
_INTERRUPTED = 128 + signal.SIGINT
"""The exit status that shells know: what was not tried was not found right."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 1 where something was found, 2 for a wrong call, 130 for Ctrl-C."""
    console = Console(markup=False, highlight=False)
    options = _parser().parse_args(arguments)
    try:
        if options.command == "replay":
            return _replay(options.files, console)
        if options.command == "determinism":
            return _determinism(options, console)
        if options.command == "kinds":
            return _kinds(options, console)
        return _search(options, console)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except GraphwrightError as error:
        Console(stderr=True, markup=False, highlight=False).print(f"graphwright-fuzz: {error}", style="red")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "graphwright-fuzz",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("search", "replay", "determinism", "kinds"),
        default="search",
        help="search by default",
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="for replay: files, all by default")
    what = parser.add_argument_group("what is tried")
    what.add_argument("--rules", metavar="NAMES", help="rules with commas between, `package.module:Class`, or `all`")
    what.add_argument("--passes", metavar="NAMES", help="passes with commas between, or `all`")
    what.add_argument("--pipeline", metavar="TEXT", action="append", default=[], help="a pipeline, or a target's name")
    what.add_argument("--inflated", action="store_true", help="passes also on programs with rules applied in reverse")
    what.add_argument(
        "--reordered", action="store_true", help="passes also with rules in other orders, in drawn scopes"
    )
    what.add_argument("--modules", action="store_true", help="passes also on whole modules, through both captures")
    what.add_argument(
        "--kind", metavar="NAME", action="append", default=[], help="for kinds: modules of this kind or family alone"
    )
    effort = parser.add_argument_group("how long")
    effort.add_argument("--examples", type=int, metavar="N", help="programs for each target (1000 without --time)")
    effort.add_argument("--time", metavar="T", help="90s, 15m, 2h: of wall time")
    effort.add_argument("--processes", type=int, default=1, metavar="N", help="worker processes")
    effort.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same programs")
    effort.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help="work on a Ray cluster (extra [ray])")
    output = parser.add_argument_group("results")
    output.add_argument("--state", type=Path, metavar="DIR", help="keep the state and the cases here; go on from there")
    output.add_argument("--report", type=Path, metavar="FILE", help="write coverage and findings as JSON")
    return parser


def _targets(options: argparse.Namespace) -> list[str]:
    rules, passes = options.rules, options.passes
    if rules is None and passes is None and not options.pipeline:
        rules = "all"
    targets = [f"rule {name}" for name in (RULES if rules == "all" else _names(rules))]
    # commas inside of braces belong to a pass's options
    targets += PASSES if passes == "all" else re.findall(r"[^,{]+(?:\{[^}]*\})?", passes or "")
    targets = list(dict.fromkeys([*targets, *options.pipeline]))
    pipelines = [target for target in targets if not target.startswith("rule ")]
    targets += [f"{word} {target}" for word in VARIANTS if getattr(options, word) for target in pipelines]
    if not targets:
        raise InputError(
            "nothing is named that could be tried", remedy="name rules, passes or a pipeline, or leave all out"
        )
    return targets


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise InputError(f"--time {text!r} is not a time", remedy="write 90s, 15m or 2h")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not seconds:
        raise InputError("--time 0 leaves no time for anything")
    return seconds


def _search(options: argparse.Namespace, console: Console) -> int:
    targets, seconds = _targets(options), _seconds(options.time)
    examples = options.examples
    if examples is None and seconds is None:
        examples = 1000
    for name, value in (("--examples", examples), ("--processes", options.processes)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is less than 1")
    for target in targets:
        resolve(target)
    if options.files:
        raise InputError(f"{options.files[0]}: a search takes no files", remedy="write `replay` in front of them")
    if options.report is not None and not options.report.parent.is_dir():
        raise InputError(f"--report {options.report}: there is no folder {options.report.parent}")
    campaign = Campaign.load(options.state)
    campaign.save()  # a folder that cannot be written is told before the work
    if campaign.seeds:
        console.print(f"going on from {options.state}: {campaign.examples} programs, {len(campaign.found)} found")
    executor, processes = _executor(options)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
    )
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, stop) if in_main else None
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None if examples is None else examples * len(targets), counts="")

        def show(result: UnitResult, new: bool) -> None:
            counts = f"{campaign.examples} programs, {len(campaign.found)} found"
            bar.update(task, completed=campaign.examples, description=result.unit.target[:40], counts=counts)
            if not console.is_terminal:
                console.print(f"{result.unit.target}, seed {result.unit.seed}: {counts}")
            if new and result.found is not None:
                console.print(
                    f"found: {result.unit.target}: {result.found.property}: {result.found.message}", style="red"
                )

        try:
            run_campaign(
                campaign,
                targets,
                seed=options.seed,
                examples=examples,
                seconds=seconds,
                processes=processes,
                executor=executor,
                report=show,
                stopped=lambda: stopped,
            )
        except KeyboardInterrupt:
            stopped = True
            console.print("stopped; the same command with the same --state goes on from here")
        finally:
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
            if executor is not None:
                executor.shutdown(cancel_futures=True)
    print_summary(campaign, targets, console)
    if options.report is not None:
        options.report.write_text(json.dumps(campaign.to_json(), indent=1), encoding="utf-8")
    if campaign.found or campaign.errors:
        return 1
    return _INTERRUPTED if stopped else 0


def _executor(options: argparse.Namespace) -> tuple[Executor | None, int]:
    if options.ray is None:
        return None, options.processes
    executor = RayExecutor(options.ray)
    return executor, max(options.processes, executor.workers)


def print_summary(campaign: Campaign, targets: Sequence[str], console: Console) -> None:
    """Print coverage by target and by operator, and what was found."""
    table = Table(
        Column("target", overflow="fold"),
        Column("programs", justify="right"),
        Column("changed", justify="right"),
        Column("refused most often by", overflow="fold"),
        Column("never fired", overflow="fold"),
    )
    operators: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for target in targets:
        coverage = campaign.coverage.get(target)
        if coverage is None:
            continue
        operators += coverage.operators
        changed += coverage.changed_operators
        reasons = [f"{text.partition(': ')[2]} ({count})" for text, count in coverage.refused.most_common(1)]
        share = f"{100 * coverage.changed / max(1, coverage.examples):.0f}%"
        never = _never_fired(resolve(target), coverage.variants)
        table.add_row(target.removeprefix("rule "), str(coverage.examples), share, *(reasons or [""]), never)
    console.print(table)
    rare = [f"{name} ({count})" for name, count in operators.most_common()[:-11:-1]]
    console.print(
        f"{len(operators)} operators in the programs, {len(changed)} in changed ones; rarest: {', '.join(rare)}"
    )
    rate = campaign.examples / campaign.seconds if campaign.seconds else 0.0
    console.print(f"{campaign.examples} programs, {rate:.0f} a second and process; {len(campaign.found)} found")
    for error in campaign.errors:
        console.print(f"  ended before its time: {error}", style="red", soft_wrap=True)
    for found in campaign.found.values():
        place = "" if campaign.folder is None else f" {campaign.folder / found.file_name()}"
        console.print(
            f"  {found.target}: {found.property}: {found.message}, after {found.examples} programs{place}",
            soft_wrap=True,
        )


def _never_fired(target: Target, variants: Counter[str]) -> str:
    silent = []
    for rule in target.rules:
        numbers = [n for n in range(len(expanded_pattern(rule))) if not variants[f"{rule.name}, alternative {n}"]]
        if numbers:
            silent.append(f"{len(numbers)} of {len(expanded_pattern(rule))} alternatives")
    return ", ".join(silent)


def _determinism(options: argparse.Namespace, console: Console) -> int:
    count = 200 if options.examples is None else options.examples
    if count < 1:
        raise InputError(f"--examples {count} is less than 1")
    unlike = compare_processes(count, options.seed)
    if unlike is not None:
        console.print(str(unlike), style="red", soft_wrap=True)
        return 1
    console.print(f"two processes write the same of {count} programs: text, passes, reports and code")
    return 0


def _kinds(options: argparse.Namespace, console: Console) -> int:
    count, folder = 300 if options.examples is None else options.examples, options.state
    if count < 1:
        raise InputError(f"--examples {count} is less than 1")
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} is not a folder: {error}", remedy="name another one") from error
    target = resolve("standard")
    rows = survey(target, kinds_named(options.kind), examples=count, seed=options.seed, seconds=_seconds(options.time))
    console.print(table_of(rows))
    if folder is not None:
        write_found(rows, target, folder)
    return 1 if any(row.wrong for row in rows) else 0


def _replay(files: Sequence[Path], console: Console) -> int:
    for path in files:
        if not path.is_file():
            raise InputError(f"there is no file {path}")
    failures = replay_all(files)
    for path, message in failures:
        console.print(f"{path}: {message}", style="red", soft_wrap=True)
    console.print("all hold" if not failures else f"{len(failures)} do not hold")
    return 1 if failures else 0


if __name__ == "__main__":
    freeze_imports()
    sys.exit(main())
