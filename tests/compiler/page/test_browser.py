"""The page in a browser: drawn without faults, and what a reader does with it. Skipped where there is no Chromium."""

from __future__ import annotations

import pytest

from compiler.page.content import Look, Page, ShownGraph
from compiler.page.drawing import Drawing, Edge, Item
from compiler.page.html import page_text
from ir.types import TensorType
from tests.compiler.page.browser import PLACE, Browser, find_chromium
from tests.compiler.page.places import chain, check

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture(scope="module")
def browser(page_file):
    program = find_chromium()
    if program is None:
        pytest.skip(f"no Chromium is installed; {PLACE} may name one")
    with Browser(program) as browser:
        browser.open(page_file)
        yield browser


def selector(browser, graph: int, label: str, number: int = 0) -> str:
    """The selector of an item that is drawn."""
    found = browser.run(f"report.panes[{graph}].graph.items.map((item, i) => item.label === '{label}' ? i : -1)")
    return f"#g{graph}i{[each for each in found if each >= 0][number]}"


def panel(browser) -> str:
    return str(browser.run("document.getElementById('details').innerText"))


def test_both_graphs_are_drawn_without_faults_or_requests(browser, page_file) -> None:
    assert browser.faults() == []
    assert browser.requests() == [page_file.resolve().as_uri()]
    assert browser.run("window.stolen === undefined && document.querySelectorAll('#data').length") == 1
    assert browser.run("document.querySelector('h1').textContent").startswith("Net </script>")
    for graph in (0, 1):
        drawn = browser.run(f"report.panes[{graph}].drawn.size")
        assert drawn == browser.run(f"report.panes[{graph}].svg.querySelectorAll('.item:not(.head)').length") > 10
        assert browser.run(f"report.panes[{graph}].svg.querySelectorAll('path.path').length") > 10


def test_a_click_shows_place_types_rewrites_and_remarks(browser) -> None:
    browser.click(selector(browser, 0, "batch_norm"))
    text = panel(browser)
    for part in ("aten.batch_norm", "blocks.0.bn (BatchNorm2d)", "models.py:", "f32[2, 4, 8, 8]", "ConvBNActPattern"):
        assert part in text
    browser.click("#details button.link")
    assert "fused.conv_bn_act" in panel(browser) and "WHAT IT WAS MADE FROM" in panel(browser)
    browser.click(selector(browser, 1, "add"))
    assert "kept · fuse" in panel(browser)


def test_boxes_open_and_close(browser) -> None:
    block = selector(browser, 0, "blocks.0")
    inside = selector(browser, 0, "batch_norm")
    assert browser.run(f"document.querySelector('{block}').getAttribute('aria-expanded')") == "true"
    number = block.partition("i")[2]
    browser.click(f".head[data-number='{number}'] .toggle")
    assert browser.run(f"document.querySelector('{inside}')") is None
    assert browser.run(f"document.querySelector('{block}').getAttribute('aria-expanded')") == "false"
    browser.click(f"{block} .toggle")
    assert browser.run(f"document.querySelector('{inside}') !== null")


def test_keys_go_along_the_values(browser) -> None:
    browser.click(selector(browser, 1, "add"))
    before = browser.run("report.panes[1].selection")
    browser.run("report.panes[1].svg.focus()")
    browser.press("ArrowDown")
    assert "aten.mul.Tensor" in panel(browser)
    browser.press("ArrowUp")
    assert browser.run("report.panes[1].selection") == before
    chosen = browser.run("report.panes[1].svg.getAttribute('aria-activedescendant')")
    assert browser.run(f"document.getElementById('{chosen}').getAttribute('aria-selected')") == "true"
    browser.press("Escape")
    assert "Click on an operation" in panel(browser)


def test_search_finds_and_opens(browser) -> None:
    browser.run("report.panes[0].openAll(false)")
    browser.click("#search")
    browser.type("batch_norm blocks.1")
    assert browser.run("document.getElementById('found').textContent") == "2 found"
    browser.press("Enter")
    assert "blocks.1.bn (BatchNorm2d)" in panel(browser)
    browser.press("Escape")


def test_colours_and_passes_light_up_what_they_are_about(browser) -> None:
    browser.click("#legend button")
    dimmed = browser.run("document.querySelectorAll('#panes .item.dimmed').length")
    assert 0 < dimmed < browser.run("document.querySelectorAll('#panes .item').length")
    browser.click("#legend button")
    assert browser.run("document.querySelectorAll('#panes .item.dimmed').length") == 0
    browser.run("[...document.querySelectorAll('summary')].find((s) => s.innerText.startsWith('fuse')).click()")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("document.querySelectorAll('#panes .item.lit').length") > 5
    assert "conv2d, batch_norm, relu → conv_bn_act" in browser.run("document.getElementById('lists').innerText")
    assert browser.faults() == []


def test_a_thousand_operations_are_drawn_without_overlap(browser, page_file, tmp_path) -> None:
    graph = chain(1000, boxes=True)
    items = tuple(Item(**item) for item in graph["items"])
    edges = tuple(Edge(source, target, TensorType((1,))) for source, target, _ in graph["edges"])
    shown = ShownGraph("all", Drawing(items, edges), [0] * len(items), [()] * len(items))
    path = tmp_path / "long.html"
    path.write_text(page_text(Page("long", "", [Look("look", 100)], [shown], [])), encoding="utf-8")
    browser.open(path)
    assert browser.run("document.querySelectorAll('.item:not(.head)').length") < 400  # most modules are closed
    browser.click(".panebar button")
    assert browser.run("document.querySelectorAll('.item:not(.head)').length") == len(items)
    made = browser.run("({...report.panes[0].placed, items: [...report.panes[0].placed.items]})")
    spots = [{"number": number, **spot} for number, spot in made["items"]]
    paths = [{**path, "svg": "M"} for path in made["paths"]]
    check(graph, {**made, "items": spots, "paths": paths})
    assert browser.faults() == []
    browser.open(page_file)
