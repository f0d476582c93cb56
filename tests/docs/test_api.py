"""The API reference: every public name of `graphwright.*` has a description, and `make docs` makes pages of them."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pdoc.doc
import pytest

import graphwright
from tests.docs.guides import ROOT

WINDOWS = sorted(module.name for module in pkgutil.iter_modules(graphwright.__path__) if module.name[0] != "_")
MODULES = ["graphwright", *(f"graphwright.{name}" for name in WINDOWS)]
ROOMS = ("ir", "passes", "compiler", "fuzz", "graphwright")


def _attributes(docstring: str) -> set[str]:
    """Return the names that a docstring of a class or module describes in its section `Attributes`."""
    _, found, section = docstring.partition("Attributes:\n")
    return set(re.findall(r"^\s*(\w+): \S", section, re.MULTILINE)) if found else set()


def _inherited(namespace: pdoc.doc.Class) -> set[str]:
    """Return the names that a class or one of its bases describes."""
    return set().union(*(_attributes(base.__doc__ or "") for base in namespace.obj.__mro__))


def undescribed(namespace: pdoc.doc.Namespace[Any]) -> Iterator[str]:
    """Yield the public names in a module or class that have no description of their own."""
    is_class = isinstance(namespace, pdoc.doc.Class)
    described = _inherited(namespace) if is_class else _attributes(namespace.docstring)
    for member in namespace.members.values():
        is_ours = member.taken_from[0].split(".")[0] in ROOMS
        if (member.name.startswith("_") and member.name != "__version__") or not is_ours:
            continue
        if not member.docstring and member.name not in described:
            yield member.fullname
        if isinstance(member, pdoc.doc.Class):
            yield from undescribed(member)


@pytest.mark.filterwarnings("ignore:Error parsing type annotation")  # of strategies: see the Makefile
@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_described(name: str) -> None:
    module = pdoc.doc.Module(importlib.import_module(name))
    assert len(module.members) >= len(module.obj.__all__)
    assert list(undescribed(module)) == []


def test_a_name_without_a_description_is_found() -> None:
    class Described:
        """A class.

        Attributes:
            said: described here.
        """

        said: int = 0
        unsaid: int = 0

        def method(self) -> None: ...

    Described.__module__ = "graphwright"
    found = pdoc.doc.Class("graphwright", "Described", Described, ("graphwright", "Described"))
    assert list(undescribed(found)) == ["graphwright.Described.unsaid", "graphwright.Described.method"]


def test_make_docs_writes_a_page_for_each_module(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.search(r"^API := (.*)$", makefile, re.MULTILINE)
    assert named is not None
    assert sorted(named[1].split()) == sorted(MODULES)
    command = [sys.executable, "-W", "ignore:Error parsing type annotation:UserWarning", "-m", "pdoc"]
    done = subprocess.run(
        [*command, "--docformat", "google", "--output-directory", str(tmp_path), *MODULES],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in MODULES:
        page = tmp_path.joinpath(*name.split(".")).with_suffix(".html").read_text(encoding="utf-8")
        for public in importlib.import_module(name).__all__:
            assert f'id="{public}"' in page, f"{name}.{public} is not on its page"
