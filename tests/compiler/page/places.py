"""Where the script puts things: what must hold of it, and a long model to hold it to."""

from __future__ import annotations

import itertools
from typing import Any


def check(graph: dict[str, Any], made: dict[str, Any]) -> None:
    """Nothing overlaps, boxes hold their parts, values go down, and no path goes through a node."""
    items = graph["items"]
    spots = {spot["number"]: spot for spot in made["items"]}
    by_parent: dict[int, list[dict[str, Any]]] = {}
    for number, spot in spots.items():
        by_parent.setdefault(items[number]["parent"], []).append(spot)
        parent = items[number]["parent"]
        box = spots[parent] if parent >= 0 else {"x": 0, "y": 0, **{k: made[k] for k in ("width", "height")}}
        assert box["x"] <= spot["x"] and spot["x"] + spot["width"] <= box["x"] + box["width"]
        assert box["y"] <= spot["y"] and spot["y"] + spot["height"] <= box["y"] + box["height"]
    for siblings in by_parent.values():
        for one, other in itertools.combinations(siblings, 2):
            apart = one["x"] + one["width"] <= other["x"] + 0.01 or other["x"] + other["width"] <= one["x"] + 0.01
            apart |= one["y"] + one["height"] <= other["y"] + 0.01 or other["y"] + other["height"] <= one["y"] + 0.01
            assert apart, (items[one["number"]], items[other["number"]])
    reached = {edge for path in made["paths"] for edge in path["edges"]}
    for edge, (source, target, _) in enumerate(graph["edges"]):
        ends = [shown(items, spots, end) for end in (source, target)]
        assert (edge in reached) == (ends[0] != ends[1])
    for path in made["paths"]:
        assert path["svg"].startswith("M") and "NaN" not in path["svg"]
        heights = [point[1] for point in path["points"]]
        assert path["far"] or heights == sorted(heights)


def shown(items, spots, number: int) -> int:
    """The outermost closed box around an item, or the item."""
    found = number
    while number >= 0:
        found = number if number in spots and not spots[number]["open"] else found
        number = items[number]["parent"]
    return found


def chain(length: int, *, boxes: bool) -> dict[str, Any]:
    """A long model: residual blocks, in boxes or not, and one value that all of them read."""
    items: list[dict[str, Any]] = [{"kind": "input", "parent": -1, "label": "x"}]
    edges: list[list[int]] = []
    items.append({"kind": "input", "parent": -1, "label": "mask"})
    last = 0
    for block in range(length // 4):
        parent = -1
        if boxes:
            parent = len(items)
            items.append({"kind": "module", "parent": -1, "label": f"block.{block}", "place": "Block"})
        first = len(items)
        items += [{"kind": "operation", "parent": parent, "label": f"operation{i}", "place": "a"} for i in range(4)]
        edges += [[last, first, 0], [first, first + 1, 0], [1, first + 1, 0], [first + 1, first + 2, 0]]
        edges += [[first + 2, first + 3, 0], [last, first + 3, 0]]
        last = first + 3
    return {"items": items, "edges": edges, "types": ["f32[1]"]}
