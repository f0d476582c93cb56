"""The report of a compilation, as data and for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import attrs
import torch
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compiler.driver import StageTime, TransformResult
from compiler.equality.accuracy import Accuracy
from ir.errors import InputError
from ir.locations import Location
from passes.rewrite.remarks import MatchRecord, Remark

_MAX_PLACES = 4
_MAX_NAMES = 6


@attrs.frozen
class RewriteCount:
    """How often one pattern replaced one sequence of operations."""

    pattern: str
    kind: str
    """`conversion`, `fusion` or `rewrite`."""
    operations: tuple[str, ...]
    """The operators it replaced, in order."""
    created: tuple[str, ...]
    """The operators that took their place, in order."""
    count: int


@attrs.frozen
class KeptGroup:
    """Operations of one operator that stay unfused for one reason."""

    operation: str
    reason: str
    """The reason; places and types that differ within the group are `…`."""
    places: tuple[str, ...]
    """Where they are, in program order: module paths; for the root module its class, file and line."""


@attrs.frozen
class Report:
    """What one compilation did. Compares by value; `to_json` gives it as plain data."""

    model: str
    """The model's name."""
    rewrites: tuple[RewriteCount, ...]
    """How often each rule was applied, in the order of the passes."""
    operations_before: tuple[tuple[str, int], ...]
    """Operators of the captured program and how many there are of each."""
    operations_after: tuple[tuple[str, int], ...]
    """The same of the result."""
    kept: tuple[KeptGroup, ...]
    """Operations that stay unfused, grouped by reason."""
    stages: tuple[StageTime, ...]
    """Wall time of each stage in seconds."""
    accuracy: Accuracy | None
    """The measured difference, or None where nothing was run."""
    accuracy_note: str
    """Why there is no `accuracy`."""
    matches: tuple[MatchRecord, ...]
    """The places that were rewritten."""
    remarks: tuple[Remark, ...]
    """Why rules did not rewrite other places."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as dicts, lists, strings and numbers, ready for `json.dump`."""
        return {
            "model": self.model,
            "torch": torch.__version__,
            "rewrites": [attrs.asdict(entry) for entry in self.rewrites],
            "operations": {"before": dict(self.operations_before), "after": dict(self.operations_after)},
            "kept": [attrs.asdict(entry) for entry in self.kept],
            "accuracy": None if self.accuracy is None else _accuracy_json(self.accuracy),
            "accuracy_note": self.accuracy_note,
            "stages": [{"name": stage.name, "seconds": stage.seconds} for stage in self.stages],
            "matches": [_match_json(match) for match in self.matches],
            "remarks": [_remark_json(remark) for remark in self.remarks],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield render(self, options.max_width)


def make_report(
    result: TransformResult, *, model: str = "model", accuracy: Accuracy | None = None, accuracy_note: str = ""
) -> Report:
    """Return the report of a compilation.

    Args:
        result: what `transform` returned.
        model: the model's name, for the title.
        accuracy: what `measure_accuracy` measured.
        accuracy_note: why nothing was measured.

    Raises:
        InputError: when an argument is something else.
    """
    _expect("make_report", result, TransformResult, "pass what `transform` returned")
    _expect("make_report", model, str, "pass the name of the model: `make_report(result, model='resnet50')`")
    _expect("make_report", accuracy, Accuracy | None, "pass what `measure_accuracy` returned")
    _expect("make_report", accuracy_note, str, "pass a text that says why nothing was measured")
    return Report(
        model=model,
        rewrites=count_rewrites(result.matches),
        operations_before=_ranked(result.operations_before.items()),
        operations_after=_ranked(result.operations_after.items()),
        kept=group_kept(result.remarks),
        stages=tuple(result.stages),
        accuracy=accuracy,
        accuracy_note=accuracy_note,
        matches=tuple(result.matches),
        remarks=tuple(result.remarks),
    )


def _expect(function: str, given: Any, wanted: Any, remedy: str) -> None:
    if not isinstance(given, wanted):
        raise InputError(f"{function} was given {given!r}", remedy=remedy)


def _ranked(counts: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts, key=lambda entry: (-entry[1], entry[0])))


def count_rewrites(matches: Iterable[MatchRecord]) -> tuple[RewriteCount, ...]:
    """Count applied rewrites by pattern, replaced and created operators, in order of first application."""
    counts: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], int] = {}
    for match in matches:
        replaced, created = (tuple(op.name for op in ops) for ops in (match.replaced, match.created))
        key = match.pattern.__name__, match.kind, replaced, created
        counts[key] = counts.get(key, 0) + 1
    return tuple(RewriteCount(*key, count) for key, count in counts.items())


def group_kept(remarks: Iterable[Remark]) -> tuple[KeptGroup, ...]:
    """Group the remarks of kind `kept` by operator and reason, the largest groups first.

    Reasons that differ only in places (in backticks) and tensor types form one group.
    """
    groups: dict[tuple[str, str], list[Remark]] = {}
    for remark in remarks:
        if remark.kind == "kept":
            groups.setdefault((remark.operation, _without_places(_reason(remark))), []).append(remark)
    kept = []
    for (operation, general), members in groups.items():
        reasons = dict.fromkeys(map(_reason, members))
        reason = next(iter(reasons)) if len(reasons) == 1 else general
        kept.append(KeptGroup(operation, reason, tuple(_place(remark.location) for remark in members)))
    return tuple(sorted(kept, key=lambda group: -len(group.places)))


def _place(location: Location) -> str:
    if location.module_path or not location.file:
        return location.where
    return f"{location.class_name or 'root'}, {PurePath(location.file).name}:{location.line}"


def _reason(remark: Remark) -> str:
    return remark.reason or remark.message


def _without_places(reason: str) -> str:
    return re.sub(r"\b(\?|[a-z]+\d+\w*|bool)\[[^\]]*\](@\S+)?", "…", re.sub(r"`[^`]*`", "`…`", reason))


def _accuracy_json(accuracy: Accuracy) -> dict[str, Any]:
    outputs = [
        # JSON has no NaN and no infinity
        {key: _number(value) for key, value in attrs.asdict(output).items()}
        | {"allowed": _number(output.allowed), "is_within_bound": output.is_within_bound}
        for output in accuracy.outputs
    ]
    return {
        "dtype": accuracy.dtype,
        "outputs": outputs,
        "others_equal": accuracy.others_equal,
        "is_within_bound": accuracy.is_within_bound,
    }


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _match_json(match: MatchRecord) -> dict[str, Any]:
    return {
        "pattern": match.pattern.__name__,
        "module_path": match.location.module_path,
        "source": match.location.source,
        "modules": [part.module_path for part in match.location.parts],
        "replaced": [op.name for op in match.replaced],
        "created": [op.name for op in match.created],
    }


def _remark_json(remark: Remark) -> dict[str, Any]:
    return {
        "kind": remark.kind,
        "rule": remark.rule,
        "operation": remark.operation,
        "module_path": remark.location.module_path,
        "source": remark.location.source,
        "message": remark.message,
    }


# --- the terminal ----------------------------------------------------------------------------------------------------


def render(report: Report, width: int = 80) -> RenderableType:
    """Return the report for `rich.console.Console.print` on a terminal of `width` columns."""
    parts: list[RenderableType] = [_heading(report)]
    for kind, title in (("conversion", "converted"), ("fusion", "fused"), ("rewrite", "rewritten")):
        entries = [entry for entry in report.rewrites if entry.kind == kind]
        if entries:
            parts.append(_rewrite_table(title, entries))
        elif kind != "rewrite":
            parts.append(Text(f"{title}: nothing", style="dim"))
    parts.append(_operation_table(report))
    if report.kept or any(entry.kind == "fusion" for entry in report.rewrites):
        parts.append(_kept_table(report.kept))
    parts.append(_accuracy_table(report))
    parts.append(_stage_table(report.stages))
    for part in parts:
        if isinstance(part, Table):
            _keep_names_whole(part, width)
    return Group(*(part for entry in parts for part in (entry, Text(""))))


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report to a console (by default to standard output).

    Raises:
        InputError: when it is not a report.
    """
    _expect("print_report", report, Report, "pass what `make_report(result)` returned")
    (console or Console()).print(report)


def print_remarks(remarks: Iterable[Remark], console: Console | None = None) -> None:
    """Print remarks, one a line."""
    console = console or Console()
    for remark in remarks:
        console.print(str(remark), markup=False, highlight=False, soft_wrap=True)


def _heading(report: Report) -> Text:
    before = sum(count for _, count in report.operations_before)
    after = sum(count for _, count in report.operations_after)
    text = Text(report.model, style="bold")
    text.append(f"  {before} operations → {after}", style="not bold")
    return text


def _table(*columns: tuple[str, str]) -> Table:
    """Return an empty table of (title, justification); a `wide` column takes the remaining width."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
    for title, justify in columns:
        if justify == "wide":
            table.add_column(title, ratio=1, overflow="fold")
        else:
            right = justify == "right"
            table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table


def _keep_names_whole(table: Table, width: int) -> None:
    """Keep names on one line, unless that leaves the wide column less than a third of the width."""
    lengths = [max(map(cell_len, map(str, (column.header, *column.cells))), default=0) for column in table.columns]
    narrow = [length for column, length in zip(table.columns, lengths, strict=True) if column.ratio is None]
    if sum(narrow) + 2 * len(narrow) <= width - width // 3:
        for column in table.columns:
            column.no_wrap = column.ratio is None


def _rewrite_table(title: str, entries: list[RewriteCount]) -> Table:
    table = _table((title, "right"), ("by", "left"), ("operations", "wide"))
    for entry in entries:
        text = " → ".join(_abridged([_short(name) for name in entry.operations]))
        if entry.kind != "fusion":
            text += f"\n[dim]became[/] {', '.join(map(_short, entry.created)) or 'nothing'}"
        table.add_row(str(entry.count), entry.pattern, text)
    return table


def _abridged(names: list[str]) -> list[str]:
    if len(names) <= _MAX_NAMES:
        return names
    half = _MAX_NAMES // 2
    return [*names[:half], f"… {len(names) - 2 * half} more …", *names[-half:]]


def _operation_table(report: Report) -> Table:
    table = _table(("operations", "left"), ("before", "right"), ("after", "right"))
    before, after = dict(report.operations_before), dict(report.operations_after)
    for name in [*before, *(name for name in after if name not in before)]:
        table.add_row(name, *(str(counts[name]) if name in counts else "[dim]·[/]" for counts in (before, after)))
    table.add_section()
    table.add_row("in all", str(sum(before.values())), str(sum(after.values())), style="bold")
    return table


def _kept_table(kept: tuple[KeptGroup, ...]) -> RenderableType:
    if not kept:
        return Text("not fused: nothing", style="dim")
    table = _table(("not fused", "right"), ("operation", "left"), ("reason", "wide"))
    for group in kept:
        places = ", ".join(_merged(group.places))
        table.add_row(str(len(group.places)), group.operation, f"{escape(group.reason)}\n[dim]{escape(places)}[/]")
    return table


def _merged(places: tuple[str, ...]) -> list[str]:
    """Return a short list of places; those that differ only in numbers are merged: `layers.*.add (12 times)`."""
    groups: dict[str, list[str]] = {}
    for place in places:
        general = re.sub(r"\d+", "*", place) if len(places) > _MAX_PLACES else place
        groups.setdefault(general, []).append(place)
    texts = []
    for general, members in groups.items():
        name = members[0] if len(set(members)) == 1 else general
        texts.append(f"{name} ({len(members)} times)" if len(members) > 1 else name)
    return texts if len(texts) <= _MAX_PLACES else [*texts[:_MAX_PLACES], f"and {len(texts) - _MAX_PLACES} others"]


def _accuracy_table(report: Report) -> RenderableType:
    if report.accuracy is None:
        return Text(f"error: not measured{f' ({report.accuracy_note})' if report.accuracy_note else ''}", style="dim")
    accuracy, worst = report.accuracy, report.accuracy.worst
    if worst is None:
        return Text(f"error: no floating-point output; all others {'equal' if accuracy.others_equal else 'DIFFER'}")
    table = _table(("error against float64", "left"), ("largest", "right"), ("relative", "right"))
    for name, value in (
        (f"original in {accuracy.dtype}", worst.original_error),
        (f"emitted in {accuracy.dtype}", worst.emitted_error),
        ("emitted in float64", worst.difference),
    ):
        table.add_row(name, f"{value:.2e}", f"{value / worst.scale:.2e}" if worst.scale else "")
    within = accuracy.is_within_bound
    wanted = "as exact as the original" if not worst.intended else "within what it differs by on purpose"
    verdict = f"{wanted} (at most {worst.allowed:.2e})" if within else f"NOT {wanted}"
    if not worst.same_nonfinite:
        verdict += ": NaN or infinity sit in other places"
    if not accuracy.others_equal:
        verdict += ": an integer or bool output differs"
    return Group(table, Text(verdict, style="green" if within else "bold red"))


def _stage_table(stages: tuple[StageTime, ...]) -> Table:
    total = sum(stage.seconds for stage in stages)
    table = _table(("stage", "left"), ("seconds", "right"), ("share", "right"))
    for stage in stages:
        table.add_row(stage.name, f"{stage.seconds:.3f}", f"{stage.seconds / total:.0%}" if total else "")
    table.add_section()
    table.add_row("in all", f"{total:.3f}", "", style="bold")
    return table


def _short(name: str) -> str:
    """Return an operator's name without dialect and overload: `aten.add.Tensor` is `add`."""
    return name.split(".")[1] if "." in name else name
