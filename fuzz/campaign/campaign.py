"""Campaigns: many searches over many targets, in several processes, that can be stopped and resumed."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import attrs
import torch

from fuzz.campaign.coverage import Coverage
from fuzz.campaign.targets import resolve
from fuzz.search import judge
from fuzz.search.counterexample import UnsoundError
from fuzz.search.examples import hold_examples
from fuzz.search.sound import search, search_settings
from fuzz.search.soundness import Soundness
from ir.errors import InputError

_ENOUGH = 5
"""So many findings of a target, new or not, end its search in a run: they mostly have one cause."""


@attrs.frozen
class Unit:
    """A unit of work: one search."""

    target: str
    seed: int
    examples: int
    number: int = 0
    """Its number among the units of its target."""
    examples_first: bool = True
    """Whether the rules are checked against their examples before the search: once in a run."""


@attrs.frozen
class Found:
    """A counterexample in the state of a campaign."""

    target: str
    property: str
    message: str
    rewrite: str
    program: str
    """The text of the shrunk program."""
    file: str
    """A file that shows it, for `python -m fuzz replay`."""
    suffix: str
    seed: int
    examples: int
    """The number of programs that passed before."""

    def file_name(self) -> str:
        """Return the name of the file in the folder of a campaign."""
        return f"found_{self.key()}{self.suffix}"

    def key(self) -> str:
        """Return a key that is equal for equal findings: a hash of the rule, the property and the shrunk program."""
        rule = re.sub(r"number \d+ of \d+, ", "", self.rewrite).split(" at ")[0] or self.target
        return hashlib.sha256(f"{rule}\n{self.property}\n{self.program}".encode()).hexdigest()[:12]


@attrs.frozen
class UnitResult:
    """The result of a unit."""

    unit: Unit
    seconds: float
    coverage: Coverage
    found: Found | None
    error: str = ""
    """The error that ended the unit early, if it was not a finding."""


def freeze_imports() -> None:
    """Exclude imported objects from garbage collection, in a process that only fuzzes.

    Programs are cyclic, so collections are frequent. Scanning torch's modules each time takes a tenth of the time, and
    collecting thirty times as often as needed takes some more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def run_unit(unit: Unit, trace: Path | None = None) -> UnitResult:
    """Run a unit; the same unit gives the same result in every process.

    Args:
        unit: the unit.
        trace: a file to which each case is written before it runs.
    """
    torch.set_num_threads(1)
    judge.trace = trace
    start = time.monotonic()
    try:
        target = resolve(unit.target)
        if unit.examples_first:
            hold_examples(target.rules, target.properties)
        seen, counterexample = search(target, None, search_settings(unit.examples), seed=unit.seed)
    except UnsoundError as error:
        if error.counterexample is None:
            return UnitResult(unit, time.monotonic() - start, Coverage(), None, str(error))
        seen, counterexample = Soundness(), error.counterexample
    except Exception as error:  # noqa: BLE001 - one unit that fails must not end a campaign of hours
        text = f"{type(error).__name__}: {error}"
        return UnitResult(unit, time.monotonic() - start, Coverage(), None, text)
    if counterexample is None and not seen.examples:
        text = f"{unit.target}: no program could be built for it"
        return UnitResult(unit, time.monotonic() - start, Coverage(), None, text)
    found = None
    if counterexample is not None:
        found = Found(
            unit.target,
            counterexample.property,
            counterexample.message,
            counterexample.rewrite or "",
            counterexample.case.program,
            counterexample.file,
            counterexample.suffix,
            unit.seed,
            counterexample.examples,
        )
    return UnitResult(unit, time.monotonic() - start, Coverage.of(seen), found)


def run_alone(unit: Unit) -> UnitResult:
    """Run a unit in a process of its own; if the process dies, the result names the case."""
    with tempfile.TemporaryDirectory() as folder, _processes(1) as executor:
        trace = Path(folder) / "case.py"
        start = time.monotonic()
        try:
            with _interrupts_held():
                future = executor.submit(run_unit, unit, trace)
            return future.result()
        except BrokenExecutor:
            case = trace.read_text(encoding="utf-8") if trace.exists() else "no case yet"
            text = f"the process died, most likely in a kernel of PyTorch, on\n{case}"
            return UnitResult(unit, time.monotonic() - start, Coverage(), None, text)


def _processes(count: int) -> ProcessPoolExecutor:
    # a fork of a process that has used torch's threads may hang
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=freeze_imports)


@attrs.define(eq=False)
class Campaign:
    """The state of a campaign, kept in a folder if there is one."""

    folder: Path | None = None
    seeds: dict[str, list[int]] = attrs.field(factory=dict)
    """Target -> the numbers of its finished units; with several processes they finish in any order."""
    asked: dict[str, int] = attrs.field(factory=dict)
    """Target -> the number of programs that its units requested."""
    seconds: float = 0.0
    coverage: dict[str, Coverage] = attrs.field(factory=dict)
    """By target."""
    found: dict[str, Found] = attrs.field(factory=dict)
    """By key."""
    errors: list[str] = attrs.field(factory=list)
    """The errors that ended units early."""
    findings: Counter[str] = attrs.field(factory=Counter)
    """Target -> its findings in this run."""

    @classmethod
    def load(cls, folder: Path | None) -> Campaign:
        """Return the campaign that a folder holds, or a new one.

        Raises:
            InputError: when the folder's state is not readable.
        """
        campaign = cls(folder)
        if folder is None:
            return campaign
        state = folder / "state.json"
        if not state.exists():
            return campaign
        try:
            data = json.loads(state.read_text(encoding="utf-8"))
            campaign.seeds = {name: list(numbers) for name, numbers in data["seeds"].items()}
            campaign.asked = dict(data["asked"])
            campaign.errors = list(data["errors"])
            campaign.seconds = float(data["seconds"])
            campaign.coverage = {name: Coverage.from_json(item) for name, item in data["coverage"].items()}
            campaign.found = {key: Found(**item) for key, item in data["found"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{state} is not a campaign state: {error}", remedy="name another folder") from error
        return campaign

    def save(self) -> None:
        """Write the state and a file for each finding; an old state stays until the new one is complete."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} is not a folder: {error}", remedy="name another one") from error
        for found in self.found.values():
            (self.folder / found.file_name()).write_text(found.file, encoding="utf-8")
        partial = self.folder / "state.json.part"
        partial.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
        partial.replace(self.folder / "state.json")

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            "seeds": self.seeds,
            "asked": self.asked,
            "errors": self.errors,
            "seconds": self.seconds,
            "coverage": {name: coverage.to_json() for name, coverage in self.coverage.items()},
            "found": {key: attrs.asdict(found) for key, found in self.found.items()},
        }

    def add(self, result: UnitResult) -> bool:
        """Add a result; return whether it has a new finding."""
        unit = result.unit
        self.seeds.setdefault(unit.target, []).append(unit.number)
        self.asked[unit.target] = self.asked.get(unit.target, 0) + unit.examples
        self.seconds += result.seconds
        self.coverage.setdefault(unit.target, Coverage()).add(result.coverage)
        if result.error:
            self.errors.append(f"{unit.target}, seed {unit.seed}: {result.error}")
        found = result.found
        if found is None:
            return False
        self.findings[unit.target] += 1
        if found.key() in self.found:
            return False
        self.found[found.key()] = found
        return True

    @property
    def examples(self) -> int:
        """The number of programs that were checked."""
        return sum(coverage.examples for coverage in self.coverage.values())


def units(campaign: Campaign, targets: Sequence[str], *, seed: int, examples: int | None, batch: int) -> Iterator[Unit]:
    """Yield the remaining units, the targets in turn; endlessly without `examples`."""
    done_before = {target: set(campaign.seeds.get(target, ())) for target in targets}
    issued = dict.fromkeys(targets, 0)
    begun: set[str] = set()
    done = {target: campaign.asked.get(target, 0) for target in targets}
    while True:
        left = [
            target
            for target in targets
            if campaign.findings[target] < _ENOUGH and (examples is None or done[target] < examples)
        ]
        if not left:
            return
        for target in left:
            number = issued[target]
            while number in done_before[target]:
                number += 1
            issued[target] = number + 1
            size = batch if examples is None else min(batch, examples - done[target])
            done[target] += size
            yield Unit(target, seed + number, size, number, target not in begun)
            begun.add(target)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C inside the `with` block; processes started there ignore it: a terminal sends it to all of them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def run_campaign(
    campaign: Campaign,
    targets: Sequence[str],
    *,
    seed: int = 0,
    examples: int | None = None,
    seconds: float | None = None,
    processes: int = 1,
    batch: int = 250,
    executor: Executor | None = None,
    report: Callable[[UnitResult, bool], None] = lambda result, new: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Search until the examples of each target or the time are used up; the state is saved after each unit.

    Args:
        campaign: the campaign to continue.
        targets: as `fuzz.campaign.targets.resolve` takes them.
        seed: of the first unit of each target; the next units have the next seeds.
        examples: programs for each target, including those of earlier runs; None for no limit but the time.
        seconds: of wall time for this run.
        processes: worker processes; with 1, units run in this one.
        batch: programs in one unit.
        executor: runs the units, in place of processes of this machine.
        report: called with each result, and whether it has a new finding.
        stopped: tells whether the user has asked to stop: a unit in this process may swallow the interrupt.

    Raises:
        KeyboardInterrupt: when the user stopped it; unfinished units are not counted.
    """
    for target in targets:
        resolve(target)  # wrong names are reported before the work
    pending = units(campaign, targets, seed=seed, examples=examples, batch=batch)
    deadline = None if seconds is None else time.monotonic() + seconds

    def take(result: UnitResult) -> None:
        new = campaign.add(result)
        campaign.save()
        report(result, new)

    def in_time() -> bool:
        return deadline is None or time.monotonic() < deadline

    if executor is None and processes == 1:
        for unit in pending:
            if not in_time():
                return
            result = run_unit(unit)
            if stopped():
                raise KeyboardInterrupt
            take(result)
        return
    own = None
    if executor is None:
        own = executor = _processes(processes)
    running: dict[Future[UnitResult], Unit] = {}
    try:
        for unit in pending:
            if not in_time():
                break
            with _interrupts_held() if own is not None else nullcontext():
                running[executor.submit(run_unit, unit)] = unit
            while len(running) >= processes:
                try:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        take(future.result())
                        del running[future]
                except BrokenExecutor:
                    if own is None:
                        raise
                    # one unit killed its process, which ends the others too
                    own.shutdown(wait=False, cancel_futures=True)
                    lost, running = list(running.values()), {}
                    for each in lost:
                        take(run_alone(each))
                    own = executor = _processes(processes)
        for future, unit in running.items():
            try:
                take(future.result())
            except BrokenExecutor:
                if own is None:
                    raise
                take(run_alone(unit))
    finally:
        for future in running:
            future.cancel()
        if own is not None:
            with suppress(KeyboardInterrupt):
                own.shutdown(wait=False, cancel_futures=True)
