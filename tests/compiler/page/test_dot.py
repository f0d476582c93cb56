from __future__ import annotations

import shutil
import subprocess

import pydot
import pytest

from compiler.page.content import Look, ShownGraph
from compiler.page.dot import dot_text
from compiler.page.drawing import MODULE, OPERATION, Drawing, Edge, Item
from graphwright import InputError
from ir.types import TensorType

# pydot calls what newer releases of pyparsing have under other names
pytestmark = [pytest.mark.filterwarnings("ignore:.*deprecated - use"), pytest.mark.xdist_group("page")]

NASTY = [
    'a "quoted" name',
    "back\\slash\\",
    "line\nbreak",
    "<b>tag</b> & {x|y}",
    "größe → ✓",
    "// # comment",
    "\ud800",
    "",
]


def parsed(text: str) -> pydot.Dot:
    graphs = pydot.graph_from_dot_data(text)
    assert graphs is not None and len(graphs) == 1
    return graphs[0]


def clusters(graph: pydot.Graph) -> list[pydot.Graph]:
    return [each for inner in graph.get_subgraphs() for each in (inner, *clusters(inner))]


def leaves(graph: pydot.Graph) -> list[pydot.Node]:
    own = [node for node in graph.get_nodes() if node.get_name() not in ("node", "edge", "graph")]
    return own + [node for inner in graph.get_subgraphs() for node in leaves(inner)]


@pytest.mark.parametrize("which", ["before", "after"])
def test_file_has_all_nodes_in_their_clusters(result, tmp_path, which) -> None:
    path = tmp_path / "net.dot"
    result.save_dot(path, graph=which)
    graph = parsed(path.read_text(encoding="utf-8"))
    drawing = next(each for each in result._page("").graphs if each.title == which).drawing
    boxes = [item for item in drawing.items if item.kind in ("module", "region")]
    assert len(clusters(graph)) == len(boxes)
    assert len(leaves(graph)) == len(drawing.items) - len(boxes)
    assert len(graph.get_edges()) == len(drawing.edges)
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tplain", str(path)], check=True, capture_output=True)


def test_any_text_is_quoted() -> None:
    items = [Item(MODULE, -1, text, text, path=text) for text in NASTY]
    items += [Item(OPERATION, number, text, text, depth=1) for number, text in enumerate(NASTY)]
    count = len(NASTY)
    edges = [Edge(count, count + i, TensorType((2,))) for i in range(1, count)]
    graph = ShownGraph("x", Drawing(tuple(items), tuple(edges)), [0] * len(items), [[]] * len(items))
    text = dot_text(graph, NASTY[0], (Look("look", 40),))
    made = parsed(text)
    assert len(leaves(made)) == count and len(clusters(made)) == count and len(made.get_edges()) == count - 1
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tplain"], input=text.encode(), check=True, capture_output=True)


def test_unknown_graph_is_an_input_error(result, tmp_path) -> None:
    with pytest.raises(InputError, match=r"(?s)graph='between'.*'before', 'after'"):
        result.save_dot(tmp_path / "x.dot", graph="between")
