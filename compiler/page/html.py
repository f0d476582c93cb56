"""The file of a page: one HTML file that needs nothing beside it, and asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from compiler.extras import import_extra
from compiler.page.content import Page
from ir.caches import cached
from ir.errors import MissingPackageError

_SCRIPTS = ("layout.js", "pane.js", "page.js")
_MARK = re.compile(r"@(\w+)@")
_EXPORT = re.compile(r"^export\b.*$", re.MULTILINE)
_NOTICE = (
    "/* dagre, from netron: https://github.com/dagrejs/dagre, https://github.com/lutzroeder/netron; MIT licence */\n"
)


def page_text(page: Page) -> str:
    """Return the text of the HTML file.

    What the page says of a model is JSON in which nothing is markup; the scripts write it as text. The scripts are
    named by their hashes in the page's policy, which allows no others, and nothing from elsewhere.

    Raises:
        MissingPackageError: the extra `report` is not installed.
    """
    scripts = [_NOTICE + layout_library(), *map(_part, _SCRIPTS)]
    style = _part("page.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return _filled(
        _part("page.html"),
        {
            "policy": policy,
            "title": html.escape(_plain(page.title)),
            "style": style,
            "data": script_json(page.to_json()),
            "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
        },
    )


def script_json(data: object) -> str:
    """Return data as JSON that can stand in a script element: in ASCII, without `<`, `>` and `&`."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


@cached()
def layout_library() -> str:
    """Return the script that defines `dagre`, which places the nodes of a graph.

    Raises:
        MissingPackageError: the extra `report` is not installed, or has another form of it.
    """
    netron = import_extra("netron")
    path = Path(netron.__file__).with_name("dagre.js")
    text = _EXPORT.sub("", path.read_text(encoding="utf-8")) if path.is_file() else ""
    if "dagre.layout = (nodes, edges, layout, state)" not in text or "</script" in text:
        raise MissingPackageError(
            f"the netron that is installed at {path.parent} has no layout of graphs of the form that is needed here",
            remedy="pip install 'graphwright[report]' 'netron==9.3.3'",
        )
    return text


def _part(name: str) -> str:
    return resources.files("compiler.page").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _filled(template: str, parts: Mapping[str, str]) -> str:
    return _MARK.sub(lambda found: parts[found[1]], template)
