"""Equal bytes in every process: programs, the results of passes, and the emitted code.

The order of sets depends on PYTHONHASHSEED, which differs between processes by default. Two processes with different
seeds must write the same.

    python -m fuzz.programs.determinism PROGRAMS SEED     writes the transcript of this process
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import attrs
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed

from compiler.codegen.emit import emit
from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.programs.case import Case
from fuzz.programs.observation import quiet
from fuzz.programs.strategy import programs
from ir.errors import GraphwrightError, InputError
from ir.program import Program
from ir.text.printer import print_program
from passes.canonicalize import Canonicalize
from passes.manager.manager import Pass, PassContext, run_pass

STAGES = ("drawn", "canonicalized", "compiled", "report", "emitted", "state")
"""Texts of each program: as drawn, after passes, their reports, the emitted code, and its state."""
HASH_SEEDS = ("1", "20231")


@attrs.frozen
class Unlike:
    """The first program for which two processes wrote different texts."""

    number: int
    stage: str
    first: str
    second: str

    def __str__(self) -> str:
        lines = zip(self.first.splitlines(), self.second.splitlines(), strict=False)
        where = next((f"{a!r} and {b!r}" for a, b in lines if a != b), "one goes on where the other ends")
        return f"program {self.number}, {self.stage}: two processes write {where}"


def transcript(count: int, seed: int) -> list[tuple[str, ...]]:
    """Return the texts of drawn programs, one for each of `STAGES`."""
    written: list[tuple[str, ...]] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis_seed(seed)
    @given(programs())
    def write(program: Program) -> None:
        written.append(_stages(program))

    with quiet():
        write()
    return written


def _stages(program: Program) -> tuple[str, ...]:
    drawn = print_program(program)
    canonical = Case.of(program, ()).build()
    texts = [drawn, _after(Canonicalize(), canonical)[0]]
    texts += _after(pipeline_of(TENSORRT_PATTERNS), program)
    try:
        module = emit(program).module
    except GraphwrightError as error:
        return (*texts, str(error), "")
    parts = [f"{name}: {type(part).__name__} {part.extra_repr()}" for name, part in module.named_modules()]
    return (*texts, "\n".join([module.code, *parts]), "\n".join(module.state_dict()))


def _after(pass_: Pass, program: Program) -> tuple[str, str]:
    context = PassContext()
    run_pass(pass_, program, context)
    log = context.log
    return print_program(program), "\n".join(
        map(str, [*log.matches, *log.remarks, *log.counts, *log.refusals, *log.misses])
    )


def compare_processes(count: int, seed: int, hash_seeds: Sequence[str] = HASH_SEEDS) -> Unlike | None:
    """Return the first program for which processes with these hash seeds write different texts, or None.

    Raises:
        InputError: when a process fails.
    """
    command = [sys.executable, "-m", "fuzz.programs.determinism", str(count), str(seed)]
    path = os.pathsep.join(filter(None, sys.path))
    environments = [{**os.environ, "PYTHONHASHSEED": each, "PYTHONPATH": path} for each in hash_seeds]
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for environment in environments
    ]
    outputs = [run.communicate() for run in runs]
    for run, (_, errors) in zip(runs, outputs, strict=True):
        if run.returncode:
            raise InputError(f"`{' '.join(command)}` failed: {errors[-2000:]}")
    first, *others = (json.loads(output) for output, _ in outputs)
    return next((unlike for other in others if (unlike := compare(first, other)) is not None), None)


def compare(first: Sequence[Sequence[str]], second: Sequence[Sequence[str]]) -> Unlike | None:
    """Return the first difference of two transcripts, or None."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        for stage, one, two in zip(STAGES, a, b, strict=True):
            if one != two:
                return Unlike(number, stage, one, two)
    if len(first) != len(second):
        return Unlike(min(len(first), len(second)), "drawn", f"{len(first)} programs", f"{len(second)} programs")
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(transcript(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
