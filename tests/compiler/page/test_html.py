from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from compiler.page import html
from compiler.page.html import script_json
from graphwright import InputError, MissingPackageError
from ir.caches import forget
from tests.compiler.page.conftest import data_of

pytestmark = pytest.mark.xdist_group("page")


class Elements(HTMLParser):
    """Collects the elements of a page, and the addresses that they name."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]


def test_page_is_one_file_that_names_no_other(page_file) -> None:
    elements = Elements()
    elements.feed(page_file.read_text(encoding="utf-8"))
    assert elements.addresses == []
    assert elements.tags.count("script") == 5 and "link" not in elements.tags and "img" not in elements.tags


def test_text_of_the_model_is_no_markup(page_file) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert "window.stolen" in text and "<script>window.stolen" not in text
    assert data_of(page_file)["title"].startswith("Net </script><script>window.stolen = 1</script> & ")


def test_json_for_a_script_is_ascii_and_without_markup() -> None:
    text = script_json({"a": "<!-- </script> ]]> & \u2028 \ud800 ü", "b": [1, None, True]})
    assert text.isascii() and not set("<>&") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        script_json({"a": float("nan")})


def items(page, graph: int, label: str) -> list[dict[str, Any]]:
    return [item for item in page["graphs"][graph]["items"] if item["label"] == label]


def details(item) -> dict[str, list[str]]:
    return {
        detail["title"]: [line if isinstance(line, str) else line["text"] for line in detail["lines"]]
        for detail in item["details"]
    }


def test_operation_has_place_types_rewrites_and_remarks(page_file) -> None:
    page = data_of(page_file)
    norm = details(items(page, 0, "batch_norm")[0])
    assert "blocks.0.bn (BatchNorm2d)" in norm["Where"]
    assert any(re.search(r"models\.py:\d+$", line) for line in norm["Where"])
    assert "return self.act(self.bn(self.conv(x))) + x" in norm["Where"]
    assert norm["Result"] == ["f32[2, 4, 8, 8]"]
    assert "weight: f32[4], weight blocks.0.bn.weight" in norm["Operands"]
    assert any("ConvBNActPattern: conv2d, batch_norm, relu → conv_bn_act" in line for line in norm["What became of it"])
    region = details(items(page, 1, "conv_bn_act")[1])
    assert sum(line.startswith("←") for line in region["What it was made from"]) == 3
    added = details(items(page, 1, "add")[0])
    assert any(line.startswith("kept · fuse: aten.add.Tensor") for line in added["Remarks"])


def test_links_lead_to_the_other_graph(page_file) -> None:
    page = data_of(page_file)
    links = [
        (graph, line["spot"])
        for graph in (0, 1)
        for item in page["graphs"][graph]["items"]
        for detail in item.get("details", ())
        for line in detail["lines"]
        if isinstance(line, dict) and "spot" in line
    ]
    assert links and all(spot[0] == 1 - graph for graph, spot in links)
    assert all(page["graphs"][spot[0]]["items"][spot[1]]["kind"] in ("operation", "region") for _, spot in links)


def test_colours_say_which_rule_and_what_stays(page_file) -> None:
    page = data_of(page_file)
    looks = [look["label"] for look in page["looks"]]

    def look(graph: int, label: str, number: int = 0) -> str:
        return looks[items(page, graph, label)[number]["look"]]

    assert look(0, "batch_norm").startswith("ConvBNActPattern")
    assert look(1, "conv_bn_act").startswith("ConvBNActPattern")
    assert look(0, "linear", 1).startswith("FlattenLinearToConv1x1Pattern")
    assert look(0, "add") == look(1, "add") == "stays: no rule fuses it"
    assert look(0, "abs") == look(0, "permute") == "removed"


def test_passes_say_what_changed(page_file) -> None:
    passes = data_of(page_file)["listings"][0]
    fuse = next(entry for entry in passes["entries"] if entry["title"] == "fuse")
    assert re.fullmatch(r"19 → 12 · .*", fuse["note"])
    assert "ConvBNActPattern (5)" in [detail["title"] for detail in fuse["details"]]
    assert {graph for graph, _ in fuse["spots"]} == {0, 1}
    assert any("changed nothing" in entry["title"] for entry in passes["entries"])


def test_path_that_is_a_folder_is_an_input_error(result, tmp_path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        result.save_html(tmp_path)


@pytest.mark.parametrize("is_installed", [True, False])
def test_missing_or_other_layout_names_the_extra(result, tmp_path, monkeypatch, is_installed) -> None:
    forget()
    other = tmp_path / "netron" / "__init__.py"
    if is_installed:
        other.parent.mkdir()
        other.with_name("dagre.js").write_text("export const layout = 0;", encoding="utf-8")

        class Netron:
            __file__ = str(other)

        monkeypatch.setattr(html, "import_extra", lambda name: Netron)
    else:
        monkeypatch.setitem(sys.modules, "netron", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'graphwright\[report\]'"):
        result.save_html(tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
    forget()
