"""What can be looked at of a result: a page in a browser, a graph in DOT."""

from __future__ import annotations

import os

from compiler.page.content import Page
from compiler.page.dot import dot_text
from compiler.page.html import page_text
from compiler.savefiles import check_file, write_files
from ir.errors import InputError
from ir.paths import checked_path

GRAPHS = ("before", "after")


class Viewable:
    """A result of which there is a page."""

    __slots__ = ()

    def save_html(self, path: str | os.PathLike[str], *, title: str = "") -> None:
        """Write a report to look at: one HTML file with the graph before and after, and what each pass did.

        Modules open and close; colours tell by which rule operations were rewritten, and which stay; a click on an
        operation shows its place in the source, its types, its rewrites and what rules say of it. The file needs
        nothing beside it and asks nothing of a network.

        Args:
            path: the file.
            title: the title; by default the name of the program.

        Raises:
            MissingPackageError: the extra `report` is not installed.
            InputError: the path is a folder, or in none that exists.
            SaveError: the file cannot be written.
        """
        text = page_text(self._page(title))
        _write(path, text)

    def save_dot(self, path: str | os.PathLike[str], *, graph: str = "after") -> None:
        """Write a graph as a DOT file, with modules as clusters and the colours of the page.

        Args:
            path: the file.
            graph: "after", or "before" for the captured program.

        Raises:
            InputError: there is no such graph, the path is a folder, or in none that exists.
            SaveError: the file cannot be written.
        """
        if graph not in GRAPHS:
            raise InputError(f"graph={graph!r}", remedy=f"use one of {', '.join(map(repr, GRAPHS))}")
        page = self._page("")
        _write(path, dot_text(page.graphs[GRAPHS.index(graph)], page.title, tuple(page.looks)))

    def _page(self, title: str) -> Page:
        """Return the page; an empty title stands for the name of the program."""
        raise NotImplementedError


def _write(path: str | os.PathLike[str], text: str) -> None:
    place = checked_path(path, example="net.html")
    check_file(place)
    write_files({place: lambda draft: draft.write_text(text, encoding="utf-8")})
