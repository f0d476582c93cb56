"""The script that places the nodes, in a JavaScript engine without a browser."""

from __future__ import annotations

import json
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
    paths: placed.paths.map((path) => ({ ...path, svg: Layout.svgPath(path.points) })),
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
def test_long_models_do_not_overlap(engine, boxes) -> None:
    graph = chain(120, boxes=boxes)
    check(graph, placed(engine, graph, "module"))


_WORK = """
(function (text) {
  const sizes = [];
  const counting = {
    layout(nodes, edges, ...rest) {
      sizes.push(nodes.length + edges.length);
      dagre.layout(nodes, edges, ...rest);
    },
  };
  const model = Layout.prepare(JSON.parse(text));
  const open = new Set([...model.children.keys()].filter((box) => box !== -1));
  const arrangement = new Layout.Arrangement(model, (text) => text.length * 7, counting);
  arrangement.place(open);
  const all = sizes.splice(0);
  const last = Math.max(...open);
  open.delete(last);
  arrangement.toggled(last);
  arrangement.place(open);
  return JSON.stringify([all, sizes]);
})
"""


def test_each_box_is_laid_out_once_and_again_only_around_what_changes(engine) -> None:
    """Then the time is linear in a model's length, if its boxes are not longer."""
    graph = chain(120, boxes=True)
    engine.set("graph_text", json.dumps(graph))
    at_first, again = json.loads(engine.eval(f"{_WORK}(graph_text)"))
    modules = sum(item["kind"] == "module" for item in graph["items"])
    assert len(at_first) == modules + 1
    assert sum(at_first) <= 4 * (len(graph["items"]) + len(graph["edges"]))
    assert len(again) == 1  # the whole graph; the other boxes stay as they are
