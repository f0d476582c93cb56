"""A drawing as a DOT file, for Graphviz and what reads its language."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.page.content import Look, ShownGraph
from compiler.page.drawing import INPUT, MODULE, OUTPUT, REGION, boxes_by_parent

_GREY = "#eceef1"


def dot_text(graph: ShownGraph, name: str, looks: tuple[Look, ...]) -> str:
    """Return the text of a DOT file: nodes in the clusters of their modules, with the colours of the page.

    Args:
        graph: the graph.
        name: its name.
        looks: what the looks of its items are.
    """
    return "\n".join([*_lines(graph, name, looks), ""])


def quoted(text: str) -> str:
    """Return a text as a quoted string of the language."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\0", "")
    return f'"{escaped.encode("utf-8", "replace").decode()}"'


def _lines(graph: ShownGraph, name: str, looks: tuple[Look, ...]) -> Iterator[str]:
    items = graph.drawing.items
    inside = boxes_by_parent(items)
    yield f"digraph {quoted(name)} {{"
    yield "  graph [rankdir=TB, compound=true, fontname=Helvetica, fontsize=11];"
    yield "  node [shape=box, style=filled, fontname=Helvetica, fontsize=11];"
    yield "  edge [fontname=Helvetica, fontsize=9];"
    pending: list[int | str] = list(reversed(inside.get(-1, [])))
    while pending:
        number = pending.pop()
        if isinstance(number, str):
            yield number
            continue
        item = items[number]
        indent = "  " * (item.depth + 1)
        label = f"{item.label}\n{item.place}" if item.place else item.label
        colour = _colour(looks, graph.looks[number])
        if item.kind in (MODULE, REGION):
            yield f"{indent}subgraph cluster_{number} {{"
            style = "rounded" if item.kind == MODULE else "filled,rounded"
            yield f"{indent}  graph [label={quoted(label)}, style={quoted(style)}, fillcolor={quoted(colour)}];"
            pending.append(f"{indent}}}")
            pending += reversed(inside.get(number, []))
        else:
            shape = ", shape=oval" if item.kind in (INPUT, OUTPUT) else ""
            tip = quoted(item.operation.location.source) if item.operation is not None else '""'
            yield f"{indent}n{number} [label={quoted(label)}, fillcolor={quoted(colour)}, tooltip={tip}{shape}];"
    for edge in graph.drawing.edges:
        yield f"  n{edge.source} -> n{edge.target} [label={quoted(str(edge.type))}];"
    yield "}"


def _colour(looks: tuple[Look, ...], number: int | None) -> str:
    look = looks[number] if number is not None else None
    if look is None or look.hue is None or not look.is_strong:
        return _GREY
    return f"{look.hue / 360:.3f} 0.22 0.96"
