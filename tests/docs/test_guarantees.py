"""The messages that `docs/guarantees.md` shows are those that are raised."""

from __future__ import annotations

import ast
import re

from tests.docs.guides import ROOT

_GUIDE = ROOT / "docs" / "guarantees.md"
_MESSAGE = re.compile(r"`([^`]*…[^`]*|[^`]* [^`]* [^`]* [^`]*)`")


def texts() -> list[str]:
    """Every text in the sources of the compiler, with `…` for what is put into it."""
    found = []
    for path in sorted((ROOT / "compiler").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    """The messages in the last column of the tables."""
    cells = [line.split("|")[-2] for line in _GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [message for cell in cells for message in _MESSAGE.findall(cell)]


def test_messages_are_those_of_the_code() -> None:
    known = [re.sub(r"\W+", " ", text) for text in texts()]
    assert len(messages()) > 20
    for message in messages():
        fragments = [re.sub(r"\W+", " ", part).strip() for part in message.split("…")]
        wanted = max(fragments, key=len)
        assert len(wanted) > 8 and any(wanted in text for text in known), message
