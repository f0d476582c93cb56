"""Time and memory of each stage of `transform` on the real models, each model in a process of its own.

Every stage is timed by wall clock and in CPU time (which a busy machine disturbs less), in milliseconds and as a share
of capture. Memory is the peak of resident memory that a stage adds to what it found; a copy of the weights would show
there as their size. The last columns: the peak of the whole compilation above the built model that has run once, what
of it is still held at the end beside the old and the new module, and the bytes of the new module's weights that share
no storage with the old ones (folded constants).

A small model is compiled first, unless `--cold` asks for the first compilation of a process, in which torch.export
and our tables of operators are loaded as well.

    python benchmarks/compile_time.py [--models resnet18 ...] [--repeats 3] [--batch 2] [--cold] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "vgg11_bn",
    "densenet121",
    "vit_b_16",
    "swin_t",
)
STAGES = ("capture", "lower", "canonicalize", "convert", "fuse", "verify", "emit")
MIB = 2**20


# --- measuring, in the process of one model --------------------------------------------------------------------------


def _status(field: str) -> int:
    """Return a memory field of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def _trim() -> None:
    """Give the memory that is free back to the system, so that using it again shows."""
    ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Return the resident memory in bytes, that of garbage and of free memory not counted."""
    gc.collect()
    _trim()
    return _status("VmRSS")


class _Meter:
    """Receives the name of each stage as it begins; measures the one before."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.base = resident()
        self.peak = 0
        """Peak of resident memory above the base."""
        self._name = ""
        self._wall = self._cpu = 0.0
        self._resident = 0

    def begin(self, name: str) -> None:
        """End the running stage and begin another."""
        cpu, wall = time.process_time(), time.perf_counter()
        if self._name:
            peak = _status("VmHWM")
            self.peak = max(self.peak, peak - self.base)
            self.stages[self._name] = {
                "wall": wall - self._wall,
                "cpu": cpu - self._cpu,
                "peak": peak - self._resident,
            }
        self._name = name
        _trim()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
        self._resident = _status("VmRSS")
        self._cpu, self._wall = time.process_time(), time.perf_counter()


def _name(stage: str) -> str:
    """Return a stage's name in the table; what follows the first canonicalization and converts is `convert`."""
    return "convert" if stage.startswith("convert") else stage


def measure(model_name: str, batch: int, cold: bool) -> dict[str, Any]:
    """Compile one model once in this process; return sizes, and time and memory of the stages."""
    import torch

    from compiler.driver import transform
    from compiler.realmodels import example_input, real_model

    model, x = real_model(model_name), example_input(batch=batch)
    with torch.no_grad():
        model(x)  # PyTorch's kernels are loaded and have their buffers
    if not cold:
        tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()).eval()
        transform(tiny, (x,))  # so are torch.export and our tables
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
    meter = _Meter()
    result = transform(model, (x,), progress=lambda stage: meter.begin(_name(stage)))
    meter.begin("")
    growth = resident() - meter.base
    own = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*result.model.parameters(), *result.model.buffers())
    }
    return {
        "model": model_name,
        "weights": sum(storage.nbytes() for storage in tensors.values()),
        "copied": sum(size for pointer, size in own.items() if pointer not in tensors),
        "operations": sum(result.operations_before.values()),
        "peak": meter.peak,
        "growth": growth,
        "stages": meter.stages,
    }


# --- reporting -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Summary:
    """One model: medians of the repeats."""

    model: str
    weights: int
    copied: int
    operations: int
    peak: float
    growth: float
    stages: dict[str, dict[str, float]]

    def after_capture(self, what: str) -> float:
        """Return the seconds of everything but capture."""
        return sum(values[what] for stage, values in self.stages.items() if stage != "capture")


def summarize(runs: Sequence[dict[str, Any]]) -> Summary:
    """Return the medians of several runs of one model."""
    first = runs[0]
    stages = {
        stage: {what: statistics.median([r["stages"][stage][what] for r in runs]) for what in values}
        for stage, values in first["stages"].items()
    }
    peak, growth = (statistics.median([r[what] for r in runs]) for what in ("peak", "growth"))
    return Summary(first["model"], first["weights"], first["copied"], first["operations"], peak, growth, stages)


def time_table(summaries: Sequence[Summary], what: str) -> Table:
    """Return the table of milliseconds, with the share of capture in percent in brackets."""
    clock = {"wall": "wall clock", "cpu": "CPU time"}[what]
    table = Table(title=f"milliseconds of each stage, {clock} (percent of capture)", title_justify="left")
    table.add_column("model")
    table.add_column("operations", justify="right")
    for stage in (*STAGES, "all after capture"):
        table.add_column(stage, justify="right")
    for summary in summaries:
        capture = summary.stages["capture"][what]
        times = [summary.stages[stage][what] if stage in summary.stages else 0.0 for stage in STAGES[1:]]
        cells = [f"{t * 1e3:.0f} ({t / capture:.1%})" for t in (*times, summary.after_capture(what))]
        table.add_row(summary.model, str(summary.operations), f"{capture * 1e3:.0f}", *cells)
    return table


def memory_table(summaries: Sequence[Summary]) -> Table:
    """Return the table of peak memory, in MiB."""
    table = Table(title="peak memory that each stage adds to what it found, MiB", title_justify="left")
    for name in ("model", "weights", *STAGES, "peak of all", "kept at the end", "new weights"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for summary in summaries:
        peaks = [f"{summary.stages[s]['peak'] / MIB:.1f}" if s in summary.stages else "" for s in STAGES]
        table.add_row(
            summary.model,
            f"{summary.weights / MIB:.1f}",
            *peaks,
            f"{summary.peak / MIB:.1f}",
            f"{summary.growth / MIB:.1f}",
            f"{summary.copied / MIB:.1f}",
        )
    return table


def _run(model: str, batch: int, cold: bool) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, __file__, "--worker", model, "--batch", str(batch), *(["--cold"] if cold else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"compiling {model} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="measure the first compilation of a process")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--worker", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.worker, arguments.batch, arguments.cold)))
        return
    jobs = [model for _ in range(arguments.repeats) for model in arguments.models]
    runs = [_run(job, arguments.batch, arguments.cold) for job in track(jobs, description="compiling", transient=True)]
    summaries = [summarize([run for run in runs if run["model"] == model]) for model in arguments.models]
    console = Console(width=None if sys.stdout.isatty() else 170)
    for what in ("wall", "cpu"):
        console.print(time_table(summaries, what))
    console.print(memory_table(summaries))
    slow = [s.model for s in summaries if s.after_capture("cpu") >= s.stages["capture"]["cpu"]]
    console.print(f"everything after capture takes longer than capture on: {', '.join(slow) or 'no model'}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
