"""Time and memory of each stage of `transform` on real models, each model in a process of its own.

Time is a ratio: the CPU time of each stage to that of `torch.export.export` on the same model, the minimum of several
rounds. Both are called in turns in one process. CPU time depends less on the load of the machine than the wall clock.
Real runs of the model are stages of their own and not part of the sum.

Memory is the peak of resident memory that a stage adds; a copy of the weights would show as their size. The last
columns are the peak of the whole compilation above the built model, what is still held at the end beside both modules,
and the bytes of new weights that share no storage with old ones (folded constants).

A small model warms both up first, unless `--cold` asks for the first calls of a process.

    python -m benchmarks.compile_time [--models resnet18 ...] [--zoo FILE] [--rounds 3] [--cold] [--json FILE]

`--zoo` names the models in a file, one a line: those of torchvision, or of timm, which must be installed then.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.models import REAL_MODELS, example_input, import_torchvision, real_model
from compiler.driver import transform

ROOT = Path(__file__).resolve().parent.parent
REAL_RUNS = ("observe", "check", "run")
"""Stages that run the model on real tensors."""
MIB = 2**20


# --- measuring, in the process of one model --------------------------------------------------------------------------


def _status(field: str) -> int:
    """Return a memory field of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def _trim() -> None:
    """Return free memory to the system, so that its next use shows."""
    ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Return the resident memory in bytes, without garbage and free memory."""
    gc.collect()
    _trim()
    return _status("VmRSS")


def _name(stage: str) -> str:
    """Return a stage's name in the table; all conversions are `convert`."""
    return "convert" if stage.startswith("convert") else stage


class Meter:
    """Measures stages: receives the name of each as it begins.

    Args:
        memory: whether to measure memory too; it takes time.
    """

    def __init__(self, *, memory: bool) -> None:
        self.times: dict[str, float] = {}
        """Stage -> CPU seconds."""
        self.peaks: dict[str, int] = {}
        self.peak = 0
        """Peak of resident memory above the base."""
        self.base = resident() if memory else 0
        self._memory = memory
        self._name = ""
        self._start = 0.0
        self._resident = 0

    def begin(self, stage: str) -> None:
        """End the running stage and begin another."""
        now = time.process_time()
        if self._name:
            self.times[self._name] = self.times.get(self._name, 0.0) + now - self._start
        if self._memory:
            self._begin_memory()
        self._name = _name(stage)
        self._start = time.process_time()

    def _begin_memory(self) -> None:
        if self._name:
            peak = _status("VmHWM")
            self.peak = max(self.peak, peak - self.base)
            self.peaks[self._name] = max(self.peaks.get(self._name, 0), peak - self._resident)
        _trim()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
        self._resident = _status("VmRSS")


def build(name: str, batch: int) -> tuple[Any, Any]:
    """Make a model of torchvision or timm with random weights in eval mode, and its input."""
    if name in REAL_MODELS:
        return real_model(name), example_input(batch=batch)
    import_torchvision()  # also where its extension does not fit this PyTorch, which timm's import would not survive
    import timm

    torch.manual_seed(0)
    model: Any = timm.create_model(name).eval()
    return model, torch.randn(batch, *model.pretrained_cfg["input_size"])


def _cpu_seconds(action: Callable[[], Any]) -> float:
    gc.collect()
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(model_name: str, batch: int, rounds: int, limit: float, cold: bool) -> dict[str, Any]:
    """Compile one model in this process; return sizes, memory of the stages, and their CPU time beside torch.export's.

    Args:
        model_name: a model of torchvision or timm.
        batch: size of the batch.
        rounds: how often `torch.export` and `transform` take turns.
        limit: seconds; a model that takes longer to compile has one round only.
        cold: measure the first calls in this process.
    """
    model, x = build(model_name, batch)
    with torch.no_grad():
        copy.deepcopy(model)(x)  # loads PyTorch's kernels; tables of the model itself stay empty

    def export() -> None:
        torch.export.export(model, (x,))

    if cold:
        rounds = 1
    else:
        tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()).eval()
        transform(tiny, (x,))  # loads torch.export and our tables
        torch.export.export(tiny, (x,))
    exports = [_cpu_seconds(export)]
    times: list[dict[str, float]] = []
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
    meter = Meter(memory=True)
    start = time.perf_counter()
    result = transform(model, (x,), progress=meter.begin)
    meter.begin("")
    seconds = time.perf_counter() - start
    growth = resident() - meter.base
    own = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*result.model.parameters(), *result.model.buffers())
    }
    times.append(meter.times)
    for _ in range(rounds - 1 if seconds <= limit else 0):
        exports.append(_cpu_seconds(export))
        gc.collect()
        round_ = Meter(memory=False)
        transform(model, (x,), progress=round_.begin)
        round_.begin("")
        times.append(round_.times)
    return {
        "model": model_name,
        "weights": sum(storage.nbytes() for storage in tensors.values()),
        "copied": sum(size for pointer, size in own.items() if pointer not in tensors),
        "operations": sum(result.operations_before.values()),
        "seconds": seconds,
        "peak": meter.peak,
        "growth": growth,
        "peaks": meter.peaks,
        "export": min(exports),
        "times": {stage: min(each[stage] for each in times) for stage in meter.times},
    }


# --- reporting -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Summary:
    """The measurements of one model."""

    model: str
    weights: int
    copied: int
    operations: int
    seconds: float
    """Of one `transform`, by the wall clock."""
    peak: int
    growth: int
    peaks: dict[str, int]
    export: float
    """CPU seconds of torch.export."""
    times: dict[str, float]
    """Stage -> CPU seconds."""

    def ratio(self, stage: str) -> float:
        """Return the time of a stage as a multiple of torch.export's."""
        return self.times.get(stage, 0.0) / self.export

    @property
    def total(self) -> float:
        """The time of all stages but real runs, as a multiple of torch.export's."""
        return sum(self.ratio(stage) for stage in self.times if stage not in REAL_RUNS)


def _stages(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(stage for summary in summaries for stage in summary.times))


def time_table(summaries: Sequence[Summary]) -> Table:
    """Return the table of CPU time: torch.export's in milliseconds, all else as multiples of that."""
    table = Table(title="CPU time of each stage, torch.export's on the same model = 1", title_justify="left")
    stages = _stages(summaries)
    names = [f"({stage})" if stage in REAL_RUNS else stage for stage in stages]
    for name in ("model", "operations", "torch.export, ms", *names, "sum"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for summary in summaries:
        cells = [f"{ratio:.2f}" for ratio in (*map(summary.ratio, stages), summary.total)]
        table.add_row(summary.model, str(summary.operations), f"{summary.export * 1e3:.0f}", *cells)
    for what, function in (("median", statistics.median), ("worst", max)):
        columns = [[summary.ratio(stage) for summary in summaries] for stage in stages]
        cells = [f"{function(c):.2f}" for c in (*columns, [summary.total for summary in summaries])]
        table.add_row(what, "", "", *cells, style="bold")
    return table


def memory_table(summaries: Sequence[Summary]) -> Table:
    """Return the table of peak memory, in MiB."""
    table = Table(title="peak memory that each stage adds to what it found, MiB", title_justify="left")
    stages = _stages(summaries)
    for name in ("model", "weights", *stages, "peak of all", "kept at the end", "new weights"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for summary in summaries:
        sizes = (summary.peak, summary.growth, summary.copied)
        table.add_row(
            summary.model,
            f"{summary.weights / MIB:.1f}",
            *(f"{summary.peaks[stage] / MIB:.1f}" if stage in summary.peaks else "" for stage in stages),
            *(f"{size / MIB:.1f}" for size in sizes),
        )
    return table


def cpu() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def host() -> str:
    """Describe the machine."""
    load = os.getloadavg()[0]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.node()}: {cpu()}, {os.cpu_count()} cores, load {load:.1f}; {versions}"


def _run(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one model in a process of its own; a failure is in `error`."""
    options = ["--batch", str(arguments.batch), "--rounds", str(arguments.rounds), "--limit", str(arguments.limit)]
    command = [sys.executable, "-m", "benchmarks.compile_time", "--worker", model, *options]
    command += ["--cold"] if arguments.cold else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=10 * arguments.limit,
        )
    except subprocess.TimeoutExpired:
        return {"model": model, "error": f"not done after {10 * arguments.limit:.0f} seconds"}
    if done.returncode:
        return {"model": model, "error": done.stderr.strip()}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(REAL_MODELS), help="models of torchvision or timm")
    parser.add_argument("--zoo", type=Path, help="take the names of the models from this file; # begins a comment")
    parser.add_argument("--rounds", type=int, default=3, help="how often torch.export and transform take turns")
    parser.add_argument("--limit", type=float, default=60.0, help="leave out models that take more seconds to compile")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="measure the first calls in a process")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        warnings.simplefilter("ignore")
        measured = measure(arguments.worker, arguments.batch, arguments.rounds, arguments.limit, arguments.cold)
        print(json.dumps(measured))
        return
    models = list(arguments.models)
    if arguments.zoo is not None:
        names = [line.partition("#")[0].strip() for line in arguments.zoo.read_text().splitlines()]
        models = [name for name in names if name]
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(host())
    runs = [_run(model, arguments) for model in track(models, description="compiling", transient=True)]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(runs, indent=1) + "\n")
    measured_runs = [Summary(**run) for run in runs if "error" not in run]
    summaries = [summary for summary in measured_runs if summary.seconds <= arguments.limit]
    if summaries:
        console.print(time_table(summaries))
        console.print(memory_table(summaries))
    for run in runs:
        if "error" in run:
            console.print(f"{run['model']} failed: {run['error'].splitlines()[-1] if run['error'] else 'no message'}")
        elif run["seconds"] > arguments.limit:
            console.print(f"{run['model']} left out: it took {run['seconds']:.0f} seconds")


if __name__ == "__main__":
    main()
