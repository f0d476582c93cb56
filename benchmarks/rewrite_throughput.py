"""Operations a second of pattern rewriting: ours beside xdsl, Inductor's PatternMatcherPass and onnxscript's rewriter.

The task is relu(relu(x)) = relu(x) over a chain of n operations; `rewrite_tools.py` has the tools. Each runs in its own
process, in turns for each size, so that a busy machine slows all alike. The table has the median of the repeats; the
ratio to xdsl at its fastest is the median of the ratios within a turn.

    python -m benchmarks.rewrite_throughput [--sizes 1000 2000 ...] [--repeats 5] [--gc-off] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "graphwright": "graphwright, driver",
    "graphwright-pass": "graphwright, PassManager with records",
    "xdsl": "xdsl, one sweep",
    "xdsl-fixpoint": "xdsl, to a fixpoint",
    "inductor": "Inductor PatternMatcherPass",
    "onnxscript": "onnxscript rewriter",
}
BASELINE = "xdsl"
SIZES = (1000, 2000, 4000, 8000, 16000, 32000, 64000)


@attrs.frozen
class Sample:
    """One measurement: seconds of building and rewriting a chain of `size` operations."""

    tool: str
    size: int
    build: float
    rewrite: float


class Worker:
    """A tool in a process of its own."""

    def __init__(self, tool: str, gc_off: bool) -> None:
        self.tool = tool
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rewrite_tools", tool, *(["--gc-off"] if gc_off else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )

    def measure(self, size: int) -> Sample:
        """Measure once.

        Raises:
            RuntimeError: when the process ended; it has printed why.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{size}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.tool} ended with status {self.process.wait()}")
        seconds = json.loads(line)
        return Sample(self.tool, size, seconds["build"], seconds["rewrite"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def run(tools: Sequence[str], sizes: Sequence[int], repeats: int, gc_off: bool) -> list[Sample]:
    """Measure all tools in turns."""
    samples: list[Sample] = []
    workers = [Worker(tool, gc_off) for tool in tools]
    try:
        for worker in workers:
            worker.measure(sizes[0])  # after the first answers, imports are done
        with Progress(transient=True) as progress:
            for size in progress.track(sizes, description="measuring"):
                for turn in range(repeats):
                    shift = turn % len(workers)
                    samples.extend([worker.measure(size) for worker in workers[shift:] + workers[:shift]])
    finally:
        for worker in workers:
            worker.close()
    return samples


def seconds(samples: Iterable[Sample], tool: str, size: int, what: str = "rewrite") -> list[float]:
    """Return the times of one tool at one size, in order."""
    return [getattr(s, what) for s in samples if s.tool == tool and s.size == size]


def growth(samples: Sequence[Sample], tool: str, sizes: Sequence[int]) -> float:
    """Return the exponent k of time ~ n**k, fitted to the medians: 1 is linear."""
    if len(sizes) < 2:
        return math.nan
    logs = [math.log(statistics.median(seconds(samples, tool, size))) for size in sizes]
    return statistics.linear_regression([math.log(size) for size in sizes], logs).slope


def table(samples: Sequence[Sample], tools: Sequence[str], sizes: Sequence[int], what: str) -> Table:
    """Return the table of thousands of operations a second, with the ratio to the baseline in brackets."""
    verb = {"rewrite": "rewritten", "build": "built"}[what]
    result = Table(title=f"thousand operations {verb} a second (ratio to {TOOLS[BASELINE]})", title_justify="left")
    result.add_column("tool")
    for size in sizes:
        result.add_column(f"n = {size}", justify="right")
    if what == "rewrite":
        result.add_column("growth", justify="right")
    for tool in tools:
        cells = []
        for size in sizes:
            times = seconds(samples, tool, size, what)
            cell = f"{size / statistics.median(times) / 1e3:.0f}"
            if BASELINE in tools:
                base = seconds(samples, BASELINE, size, what)
                cell += f" ({statistics.median([b / t for b, t in zip(base, times, strict=True)]):.2f})"
            cells.append(cell)
        if what == "rewrite":
            cells.append(f"n^{growth(samples, tool, sizes):.2f}")
        result.add_row(TOOLS[tool], *cells)
    return result


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="multiples of 4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--gc-off", action="store_true", help="switch Python's garbage collector off while measuring")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    arguments = parser.parse_args()
    samples = run(arguments.tools, arguments.sizes, arguments.repeats, arguments.gc_off)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for what in ("rewrite", "build"):
        console.print(table(samples, arguments.tools, arguments.sizes, what))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([attrs.asdict(s) for s in samples], indent=1) + "\n")


if __name__ == "__main__":
    main()
