"""The report of a quantization: each place, how well its grid fits, and why it is in integers or not."""

from __future__ import annotations

import io
import math
from typing import Any

import attrs
import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_INTEGERS = {torch.uint8: "u8", torch.int8: "s8"}
_ROLES = {"input": "→ ", "weight": "weight of ", "output": "behind "}


@attrs.frozen
class PlaceReport:
    """One place.

    Attributes:
        value: the value or weight that is quantized; empty of a region that stays in float.
        region: the kind of the region, or the operator.
        module: its place in the user's model.
        role: `input`, `weight`, `output`, or `region` for all of one that stays in float.
        type: the type of the integers, with the bits where they are fewer than 8; empty in float.
        scale: the name of the scale.
        scale_value: the scale; of a weight, that of the channel with the largest.
        zero_point: the zero point.
        sqnr: the power of the value over that of the rounding error, in dB.
        saturated: the part of the values beyond the ends of the grid.
        output_sqnr: the same of the outputs, where only this scale is used; None where it was not measured.
        reason: why it is in integers, or in float.
        source: what that rests on.
    """

    value: str
    region: str
    module: str
    role: str
    type: str
    scale: str
    scale_value: float | None
    zero_point: int | None
    sqnr: float | None
    saturated: float | None
    output_sqnr: float | None
    reason: str
    source: str

    @property
    def is_placed(self) -> bool:
        """Whether it is in integers."""
        return bool(self.scale)


@attrs.frozen
class QuantizationReport:
    """What a quantization did. Compares by value; `to_json` gives it as plain data.

    Attributes:
        model: the model's name.
        target: the name of the target.
        calls: how many calls of the calibration data there were.
        observer: how ranges were chosen.
        sqnr: the power of the outputs in float over that of the difference, all quantized, in dB.
        measured: on how many calls of the calibration data.
        places: the worst first; those in float last.
        remarks: what was corrected, unified, widened or left out.
    """

    model: str
    target: str
    calls: int
    observer: str
    sqnr: float
    measured: int
    places: tuple[PlaceReport, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as dicts, lists, strings and numbers, ready for `json.dump`; infinity is a string."""
        plain: dict[str, Any] = _plain(attrs.asdict(self))
        return plain

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _rendered(self)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def worst_first(places: list[PlaceReport]) -> tuple[PlaceReport, ...]:
    """Return places by the error they make at the outputs, else by their own; those in float last."""

    def key(place: PlaceReport) -> tuple[bool, float, float]:
        output = math.inf if place.output_sqnr is None else place.output_sqnr
        return not place.is_placed, output, math.inf if place.sqnr is None else place.sqnr

    return tuple(sorted(places, key=key))


def type_name(dtype: torch.dtype, ends: tuple[int, int]) -> str:
    """Return the name of a type of integers: `u8`, `s8`, `s4` for fewer bits."""
    name = _INTEGERS[dtype]
    bits = max(ends[1], -ends[0]).bit_length() + (dtype is torch.int8)
    return name if ends[0] < -ends[1] or bits > 8 or dtype is torch.uint8 else f"{name[0]}{bits}"


def _rendered(report: QuantizationReport) -> Group:
    placed = [place for place in report.places if place.is_placed]
    kept = [place for place in report.places if not place.is_placed]
    head = Text(f"{report.model} for {report.target}", style="bold")
    head.append(
        f"  {len({place.scale for place in placed})} quantizers, {report.observer}, {report.calls} calls; "
        f"outputs {_decibels(report.sqnr)}{' dB' * math.isfinite(report.sqnr)} on {report.measured} of them",
        style="not bold",
    )
    parts: list[Any] = [head, Text("")]
    if placed:
        parts += [_placed_table(placed), Text("")]
    if kept:
        parts += [_kept_table(kept), Text("")]
    if report.remarks:
        parts += [Text("\n".join(report.remarks), style="dim"), Text("")]
    return Group(*parts[:-1])


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="cyan")
    for title, justify in columns:
        if justify == "wide":
            table.add_column(title, ratio=1, overflow="fold")
        else:
            table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold", no_wrap=True)
    return table


def _placed_table(places: list[PlaceReport]) -> Group:
    """Return a row for each scale, and below the reasons, which are few, by number."""
    is_measured = any(place.output_sqnr is not None for place in places)
    columns = [("quantizer", "left"), ("regions", "wide"), ("type", "left"), ("scale", "right"), ("SQNR", "right")]
    columns += [("output", "right")] if is_measured else []
    table = _table(*columns, ("saturated", "right"), ("why", "right"))
    by_scale: dict[str, list[PlaceReport]] = {}
    for place in places:
        by_scale.setdefault(place.scale, []).append(place)
    reasons: dict[str, int] = {}
    for scale, users in by_scale.items():
        first = users[0]
        numbers = dict.fromkeys(reasons.setdefault(place.reason, len(reasons) + 1) for place in users)
        cells = [
            escape(scale.removesuffix(".scale")),
            escape(", ".join(dict.fromkeys(f"{_ROLES[place.role]}{place.region}" for place in users))),
            first.type,
            "" if first.scale_value is None else f"{first.scale_value:.3g}",
            _decibels(first.sqnr),
        ]
        cells += [_decibels(first.output_sqnr)] if is_measured else []
        table.add_row(*cells, _percent(first.saturated), " ".join(map(str, numbers)))
    notes = "\n".join(f"{number}: {reason}" for reason, number in reasons.items())
    return Group(table, Text(notes, style="dim"))


def _kept_table(places: list[PlaceReport]) -> Table:
    """Return a row for each kind of region and reason, with all places that share them."""
    table = _table(("in float", "wide"), ("region", "left"), ("why", "wide"))
    alike: dict[tuple[str, str], dict[str, None]] = {}
    for place in places:
        alike.setdefault((place.region, place.reason), {})[place.module] = None
    for (region, reason), modules in alike.items():
        table.add_row(escape(", ".join(modules)), region, escape(reason))
    return table


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if math.isfinite(value) else "exact"


def _percent(value: float | None) -> str:
    return "" if not value else f"{value:.2%}" if value >= 1e-4 else "<0.01%"
