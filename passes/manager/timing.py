"""Where the time of a pipeline goes: a tree of passes and rules, and a trace for Perfetto and chrome://tracing."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
from typing_extensions import override

from ir.errors import InputError
from ir.paths import checked_path
from ir.program import Program
from passes.manager.manager import Instrument, Pass, PassManager, PassResult
from passes.rewrite.pattern import Pattern

_MOST_RULES = 12


@attrs.define(eq=False)
class RuleTime:
    """What one rule took in one pass, over all of its runs.

    Attributes:
        seconds: wall time of matching, checking and rewriting.
        tried: at how many operations it was tried.
        matches: how many matches and near misses it found.
        rewrites: how many of these it rewrote.
    """

    seconds: float = 0.0
    tried: int = 0
    matches: int = 0
    rewrites: int = 0


@attrs.define(eq=False)
class PassTime:
    """What one pass of a pipeline took, over all of its runs.

    Attributes:
        title: its label, or else its name.
        seconds: wall time, of the passes in it too.
        runs: how often it ran.
        changes: how often it changed the program.
        passes: the passes in it.
        rules: the rules that it tried, by name.
    """

    title: str
    seconds: float = 0.0
    runs: int = 0
    changes: int = 0
    passes: dict[str, PassTime] = attrs.field(factory=dict)
    rules: dict[str, RuleTime] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Timing(Instrument):
    """Measures each pass and each rule: `print(timing)` is the tree, `timing.save_trace(path)` the course of time.

    The clock of the rules takes time itself: a pass that tries many rules is shown slower than it is.

    Attributes:
        seconds: wall time by the label of the pass, or its name. Managers are not counted, their passes are.
        passes: the tree: the passes that ran outside of any other.
    """

    seconds: Counter[str] = attrs.field(factory=Counter)
    passes: dict[str, PassTime] = attrs.field(factory=dict)
    _running: list[tuple[Pass, PassTime, float]] = attrs.field(factory=list)
    _events: list[dict[str, Any]] = attrs.field(factory=list)
    _start: float = attrs.field(factory=time.perf_counter)
    _stage: tuple[str, float] | None = None

    def stage(self, name: str) -> None:
        """Say that a stage begins, and the one before it ends: `transform(..., progress=timing.stage)`."""
        now = time.perf_counter()
        if self._stage is not None:
            self._add(*self._stage, now, _STAGES)
        self._stage = (name, now) if name else None

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Start the clock of a pass."""
        within = self._running[-1][1].passes if self._running else self.passes
        node = within.setdefault(pass_.title, PassTime(pass_.title))
        self._running.append((pass_, node, time.perf_counter()))

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Stop it."""
        _, node, start = self._running.pop()
        node.seconds += result.seconds
        node.runs += 1
        node.changes += result.changed
        if not isinstance(pass_, PassManager):
            self.seconds[pass_.title] += result.seconds  # type: ignore[assignment]
        self._add(
            node.title,
            start,
            start + result.seconds,
            _PASSES,
            changed=result.changed,
            operations_before=result.operations_before,
            operations_after=result.operations_after,
        )

    @override
    def failed(self, pass_: Pass, program: Program, error: Exception) -> None:
        """Stop the clock of a pass that raised."""
        if self._running and self._running[-1][0] is pass_:
            _, node, start = self._running.pop()
            now = time.perf_counter()
            node.seconds += now - start
            node.runs += 1
            self._add(node.title, start, now, _PASSES, failed=type(error).__name__)

    @override
    def tried(self, rule: Pattern, seconds: float, *, matches: int, rewrites: int) -> None:
        """Count a try of a rule."""
        found = self._running[-1][1].rules.setdefault(rule.name, RuleTime())
        found.seconds += seconds
        found.tried += 1
        found.matches += matches
        found.rewrites += rewrites
        if rewrites:
            now = time.perf_counter()
            self._add(rule.name, now - seconds, now, _PASSES)

    def _add(self, name: str, start: float, end: float, thread: int, **args: Any) -> None:
        micro = 1e6
        event = {"name": name, "ph": "X", "ts": (start - self._start) * micro, "dur": (end - start) * micro}
        self._events.append({**event, "pid": os.getpid(), "tid": thread, "args": args})

    def trace(self) -> dict[str, Any]:
        """Return the course of time as trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing show.

        Stages are one track; passes are another, in which each rewrite lies in its pass.
        """
        names = [
            {"name": "thread_name", "ph": "M", "pid": os.getpid(), "tid": thread, "args": {"name": name}}
            for thread, name in ((_STAGES, "stages"), (_PASSES, "passes and rewrites"))
        ]
        # of two that start together the longer one lies around the other
        events = sorted(self._events, key=lambda event: (event["ts"], -event["dur"]))
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON.

        Raises:
            InputError: when the file cannot be written.
        """
        file = checked_path(path, example="trace.json")
        try:
            file.write_text(json.dumps(self.trace()), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"the trace cannot be written to {path}: {error.strerror or error}",
                remedy="name a file in a folder that can be written",
            ) from error

    def __str__(self) -> str:
        total = sum(node.seconds for node in self.passes.values())
        lines = ["        time   share    runs  changed  tried  matches  rewrites"]
        lines += [_line(*row, total or 1.0) for node in self.passes.values() for row in _rows(node, 0)]
        return "\n".join(lines)


_STAGES, _PASSES = 1, 2

_Row = tuple[str, int, PassTime | RuleTime]


def _rows(node: PassTime, depth: int) -> Iterator[_Row]:
    yield node.title, depth, node
    for inner in node.passes.values():
        yield from _rows(inner, depth + 1)
    ranked = sorted(node.rules.items(), key=lambda item: (-item[1].rewrites, -item[1].seconds))
    shown = [item for i, item in enumerate(ranked) if i < _MOST_RULES or item[1].rewrites]
    for name, rule in shown:
        yield name, depth + 1, rule
    rest = [rule for _, rule in ranked[len(shown) :]]
    if rest:
        total = RuleTime(*(sum(values) for values in zip(*map(attrs.astuple, rest), strict=True)))
        yield f"{len(rest)} other rules", depth + 1, total


def _line(title: str, depth: int, row: PassTime | RuleTime, total: float) -> str:
    time_ = f"{row.seconds * 1e3:9.2f} ms {row.seconds / total:6.1%}"
    if isinstance(row, PassTime):
        counts = f"{row.runs:7} {row.changes:8} {'':6} {'':8} {'':9}"
    else:
        counts = f"{'':7} {'':8} {row.tried:6} {row.matches:8} {row.rewrites:9}"
    return f"{time_} {counts}  {'  ' * depth}{title}"
