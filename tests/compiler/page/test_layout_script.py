"""The script that places the nodes, in a JavaScript engine without a browser."""

from __future__ import annotations

import json
import time
from importlib import resources
from typing import Any

import pytest

from compiler.page.html import layout_library
from tests.compiler.page.conftest import data_of
from tests.compiler.page.places import chain, check

pytestmark = pytest.mark.xdist_group("page")

_PLACE = """
(function (text, all) {
  const graph = JSON.parse(text);
  const model = Layout.prepare(graph);
  const open = new Set([...model.children.keys()].filter((box) => box !== -1 && all.includes(model.items[box].kind)));
  const placed = new Layout.Arrangement(model, (text, small) => text.length * (small ? 6 : 7), dagre).place(open);
  return JSON.stringify({
    width: placed.width, height: placed.height,
    items: [...placed.items].map(([number, spot]) => ({ number, ...spot })),
    paths: placed.paths.map((path) => ({ ...path, svg: Layout.svgPath(path.points, path.far) })),
  });
})
"""


@pytest.fixture(scope="module")
def engine():
    quickjs = pytest.importorskip("quickjs")
    pytest.importorskip("netron")
    context = quickjs.Context()
    context.set_max_stack_size(1 << 20)
    script = resources.files("compiler.page").joinpath("static", "layout.js").read_text(encoding="utf-8")
    context.eval(layout_library())
    context.eval(script)
    return context


def placed(engine, graph: dict[str, Any], opened: str) -> dict[str, Any]:
    engine.set("graph_text", json.dumps(graph))
    return json.loads(engine.eval(f"{_PLACE}(graph_text, {json.dumps(opened)})"))


@pytest.mark.parametrize("opened", ["", "module", "module region"])
@pytest.mark.parametrize("which", [0, 1])
def test_nothing_overlaps(engine, page_file, which, opened) -> None:
    graph = data_of(page_file)["graphs"][which]
    check(graph, placed(engine, graph, opened))


@pytest.mark.parametrize("boxes", [False, True])
def test_time_is_linear(engine, boxes) -> None:
    def timed(length: int) -> float:
        graph = chain(length, boxes=boxes)
        start = time.process_time()
        made = placed(engine, graph, "module")
        seconds = time.process_time() - start
        check(graph, made)
        return seconds

    assert timed(240) < 4 * 2.5 * timed(60)
