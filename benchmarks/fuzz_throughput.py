"""Examples a second and core that `assert_sound` checks for single rules, and where the time goes.

An example is drawn, checked in every memory layout with gradients, and counted by hypothesis. Times are CPU times of
one process; the goal is 100 examples a second for a single rule.

    python -m benchmarks.fuzz_throughput [--examples 300] [--rules NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
import torch._dynamo  # torch loads it with the first ShapeEnv: not a part of any rule's time
from hypothesis import Phase, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Column, Table

from fuzz.campaign.campaign import freeze_imports
from fuzz.programs.check import check_case
from fuzz.rules.instances import instances
from fuzz.rules.names import RULES
from fuzz.search import judge, sound
from fuzz.search.counterexample import UnsoundError
from passes.rewrite.pattern import Pattern

GOAL = 100.0


@attrs.frozen
class Sample:
    """What one rule took: CPU seconds in all, for drawing and for checking; the rest is hypothesis's own."""

    rule: str
    examples: int
    changed: int
    seconds: float
    drawing: float
    checking: float

    @property
    def rate(self) -> float:
        """Examples a second."""
        return self.examples / self.seconds


def measure(rule: type[Pattern], examples: int) -> Sample:
    """Check a rule on a number of examples and return the CPU times."""
    drawn = instances(rule())
    spent = {"drawing": 0.0, "checking": 0.0}

    @st.composite
    def timed(draw: st.DrawFn) -> Any:
        start = time.process_time()
        try:
            return draw(drawn)
        finally:
            spent["drawing"] += time.process_time() - start

    original = check_case

    def timed_check(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            spent["checking"] += time.process_time() - start

    chosen = settings(sound.search_settings(examples), derandomize=True, phases=[Phase.generate])
    vars(judge)["check_case"] = timed_check
    try:
        start = time.process_time()
        # the search alone: `assert_sound` raises when a rule has not fired on few examples
        seen, found = sound.search(sound.Target.of(rule), timed(), chosen)
        seconds = time.process_time() - start
    finally:
        vars(judge)["check_case"] = original
    if found is not None:
        raise UnsoundError(found)
    return Sample(rule.__name__, seen.examples, seen.changed, seconds, spent["drawing"], spent["checking"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rules and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--rules", nargs="*", default=())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [rule for rule in RULES.values() if not options.rules or rule.__name__ in options.rules]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(chosen[0], 30)  # what is made once
        freeze_imports()  # as a campaign's processes do
        samples = [measure(rule, options.examples) for rule in chosen]
    table = Table(Column("rule", no_wrap=True), *("per s", "goal", "changed", "draw", "check", "engine"))
    for sample in sorted(samples, key=lambda s: -s.rate):
        rest = sample.seconds - sample.drawing - sample.checking
        shares = [f"{100 * part / sample.seconds:.0f}%" for part in (sample.drawing, sample.checking, rest)]
        table.add_row(
            sample.rule,
            f"{sample.rate:.0f}",
            f"{sample.rate / GOAL:.2f}",
            f"{100 * sample.changed / sample.examples:.0f}%",
            *shares,
        )
    console = Console()
    console.print(table)
    rates = [sample.rate for sample in samples]
    reached = sum(rate >= GOAL for rate in rates)
    console.print(f"median {statistics.median(rates):.0f} examples/s; {reached} of {len(rates)} rules reach {GOAL:.0f}")
    if options.json is not None:
        options.json.write_text(json.dumps([attrs.asdict(sample) for sample in samples], indent=1))


if __name__ == "__main__":
    main()
