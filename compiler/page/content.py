"""What a page shows, as plain data: looks, graphs of items with details, and lists beside them.

A page is made of these parts alone, whatever it is about: what a colour means, what stands in the details of an item,
and which items an entry of a list lights up, is said by who makes the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from compiler.page.drawing import Drawing

Spot = tuple[int, int]
"""(number of the graph, number of the item in it)."""


@attrs.frozen
class Look:
    """A colour and what it means.

    Attributes:
        label: what the legend says.
        hue: of the colour wheel, in degrees; None for a shade of grey.
        note: a longer text for who asks.
        is_strong: whether it is for what a reader looks for; the others are pale.
    """

    label: str
    hue: int | None = None
    note: str = ""
    is_strong: bool = True


@attrs.frozen
class Line:
    """A line of text in the details.

    Attributes:
        text: the text.
        spot: the item that a click on it goes to.
        is_code: whether it is code or a name.
    """

    text: str
    spot: Spot | None = None
    is_code: bool = False


@attrs.frozen
class Detail:
    """A title with lines under it, in the panel of an item.

    Attributes:
        title: the title.
        lines: the lines.
    """

    title: str
    lines: tuple[Line, ...]


@attrs.frozen(eq=False)
class ShownGraph:
    """A graph on a page.

    Attributes:
        title: its title.
        drawing: what is drawn.
        looks: the number of the look of each item; None for those that have none of their own.
        details: of each item.
    """

    title: str
    drawing: Drawing
    looks: Sequence[int | None]
    details: Sequence[Sequence[Detail]]


@attrs.frozen
class Entry:
    """An entry of a list: one line that opens to others.

    Attributes:
        title: the line.
        note: what stands beside it, at the end of the line.
        details: what stands below it when it is open.
        spots: the items that it lights up.
        look: number of its look, if it has one.
        is_dim: whether it is of little interest.
    """

    title: str
    note: str = ""
    details: tuple[Detail, ...] = ()
    spots: tuple[Spot, ...] = ()
    look: int | None = None
    is_dim: bool = False


@attrs.frozen
class Listing:
    """A list beside the graphs.

    Attributes:
        title: its title.
        entries: the entries, in order.
    """

    title: str
    entries: tuple[Entry, ...]


@attrs.frozen(eq=False)
class Page:
    """A page.

    Attributes:
        title: the title.
        summary: one line under it.
        looks: what the colours mean, in the order of the legend.
        graphs: the graphs, side by side.
        listings: the lists.
    """

    title: str
    summary: str
    looks: Sequence[Look]
    graphs: Sequence[ShownGraph]
    listings: Sequence[Listing]

    def to_json(self) -> dict[str, Any]:
        """Return the page as dicts, lists, strings and numbers; what is empty is left out."""
        return {
            "title": self.title,
            "summary": self.summary,
            "looks": [
                _kept(label=look.label, hue=look.hue, note=look.note, pale=not look.is_strong) for look in self.looks
            ],
            "graphs": [_graph(graph) for graph in self.graphs],
            "listings": [
                {"title": listing.title, "entries": [_entry(entry) for entry in listing.entries]}
                for listing in self.listings
            ],
        }


def _kept(**fields: Any) -> dict[str, Any]:
    # 0 is a number of something, and stays
    return {
        name: value
        for name, value in fields.items()
        if value is not None and value is not False and value not in ("", [], ())
    }


def _graph(graph: ShownGraph) -> dict[str, Any]:
    types: dict[str, int] = {}
    items = [
        _kept(
            kind=item.kind,
            parent=item.parent,
            label=item.label,
            place=item.place,
            name=item.operation.name if item.operation is not None else item.path,
            look=look,
            details=[_detail(detail) for detail in details],
        )
        for item, look, details in zip(graph.drawing.items, graph.looks, graph.details, strict=True)
    ]
    edges = [[edge.source, edge.target, types.setdefault(str(edge.type), len(types))] for edge in graph.drawing.edges]
    return {"title": graph.title, "items": items, "edges": edges, "types": list(types)}


def _detail(detail: Detail) -> dict[str, Any]:
    return {"title": detail.title, "lines": [_line(line) for line in detail.lines]}


def _line(line: Line) -> Mapping[str, Any] | str:
    if line.spot is None and not line.is_code:
        return line.text
    return _kept(text=line.text, spot=None if line.spot is None else list(line.spot), code=line.is_code)


def _entry(entry: Entry) -> dict[str, Any]:
    return _kept(
        title=entry.title,
        note=entry.note,
        look=entry.look,
        dim=entry.is_dim,
        details=[_detail(detail) for detail in entry.details],
        spots=[list(spot) for spot in entry.spots],
    )
