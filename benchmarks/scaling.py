"""Time of each stage of `transform` against the number of operations, on a tower of blocks of convolutions and linears.

The tower is an FX graph with the types of ShapeProp, which takes no `torch.export`: its lowering, canonicalization,
fusion and emission are ours alone. With `--export N` towers of up to N operations are captured as modules as well, and
what `torch.export` takes stands in a column of its own. Each size has a process of its own, whose CPU time is measured.

    python -m benchmarks.scaling [--sizes 1000 3000 10000 30000 100000] [--export 3000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from benchmarks.compile_time import MIB, Meter, host
from compiler.driver import transform

ROOT = Path(__file__).resolve().parent.parent
SIZES = (1000, 3000, 10000, 30000, 100000)
_WIDTH = 4


class Block(nn.Module):
    """Two convolutions with a residual, then two linear layers with another: 14 operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.BatchNorm2d(_WIDTH), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 1, bias=False), nn.BatchNorm2d(_WIDTH))
        self.norm = nn.LayerNorm(_WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the shape of `x`, f32[batch, 4, 4, 4]."""
        x = torch.relu(x + self.second(self.first(x)))
        y = self.norm(x.transpose(1, 3))
        y = self.down(torch.nn.functional.gelu(self.up(y))) * 0.5
        moved: torch.Tensor = x + y.transpose(1, 3)
        return moved


OPERATIONS = 14
"""Operations of a block."""


def tower(operations: int) -> nn.Module:
    """Return blocks of at least so many operations in all, ten to a stage."""
    blocks = [Block() for _ in range(-(-operations // OPERATIONS))]
    return nn.Sequential(*(nn.Sequential(*blocks[i : i + 10]) for i in range(0, len(blocks), 10))).eval()


@attrs.frozen
class Sample:
    """The measurements of one size."""

    operations: int
    after: int
    peak: int
    """Bytes above the model at most."""
    times: dict[str, float]
    """Stage -> CPU seconds."""
    export: float | None = None
    """CPU seconds of capturing the tower as a module."""


def measure(size: int, *, export: bool) -> Sample:
    """Compile a tower in this process."""
    torch.manual_seed(0)
    x = torch.randn(1, _WIDTH, 4, 4)
    transform(tower(1), (x,))  # loads torch.export and our tables
    model = tower(size)
    graph = torch.fx.symbolic_trace(model)
    ShapeProp(graph).propagate(x)
    meter = Meter(memory=True)
    result = transform(graph, progress=meter.begin)
    meter.begin("")
    taken = None
    if export:
        captured = Meter(memory=False)
        transform(model, (x,), check=False, progress=captured.begin)
        captured.begin("")
        taken = captured.times["capture"]
    before, after = (sum(counts.values()) for counts in (result.operations_before, result.operations_after))
    return Sample(before, after, meter.peak, meter.times, taken)


def table(samples: Sequence[Sample]) -> Table:
    """Return the table: microseconds for each operation, in all stages."""
    stages = list(dict.fromkeys(stage for sample in samples for stage in sample.times))
    made = Table(title="CPU microseconds for each operation", title_justify="left")
    for name in ("operations", "after", *stages, "sum", "seconds", "MiB", "torch.export"):
        made.add_column(name, justify="right")
    for sample in samples:
        each = [1e6 * sample.times.get(stage, 0.0) / sample.operations for stage in stages]
        total = sum(sample.times.values())
        made.add_row(
            *(str(sample.operations), str(sample.after), *(f"{t:.0f}" for t in each), f"{sum(each):.0f}"),
            *(f"{total:.1f}", f"{sample.peak / MIB:.0f}"),
            "" if sample.export is None else f"{1e6 * sample.export / sample.operations:.0f}",
        )
    return made


def _run(size: int, export: bool) -> Sample:
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--worker",
        str(size),
        "--export",
        str(size if export else 0),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Sample(**fields)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="operations of the towers")
    parser.add_argument("--export", type=int, default=3000, help="capture modules of at most so many operations too")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        warnings.simplefilter("ignore")
        print(json.dumps(attrs.asdict(measure(arguments.worker, export=arguments.export >= arguments.worker))))
        return
    samples = [_run(size, size <= arguments.export) for size in arguments.sizes]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([attrs.asdict(sample) for sample in samples], indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(host())
    console.print(table(samples))


if __name__ == "__main__":
    main()
