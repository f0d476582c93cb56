"""Analyses: what passes compute of a program, kept until the program changes."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs

from ir.core import Graph
from ir.errors import InputError, PassError
from ir.program import Program


class Analysis:
    """What is known of a program: a class whose `__init__` takes the program and computes it; it changes nothing.

    A pass asks `context.analysis(MyAnalysis, program)`, and gets the result that an earlier pass computed where the
    program has not changed since. Rewrites in the middle of a pass count as changes, too: ask again after them.
    """

    def __init__(self, program: Program) -> None:
        """Compute it."""


A = TypeVar("A", bound=Analysis)


def _is_analysis(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Analysis)


def check_preserved(owner: str, given: Any) -> None:
    """Check what a pass says that it preserves.

    Raises:
        InputError: when it is no tuple of classes of analyses.
    """
    if not isinstance(given, tuple) or not all(map(_is_analysis, given)):
        raise InputError(
            f"{owner} preserves {given!r}, which is no tuple of classes of analyses",
            remedy="write `preserves = (MyAnalysis,)`",
        )


@attrs.define(eq=False)
class Analyses:
    """The results of analyses in one run, each with the revision of the graph that it is about."""

    _graph: Graph | None = None
    _known: dict[type[Analysis], tuple[int, Analysis]] = attrs.field(factory=dict)

    def get(self, kind: type[A], program: Program) -> A:
        """Return a result for the program as it is now.

        Raises:
            PassError: when `kind` is no class of analyses, or changes the program.
        """
        if not _is_analysis(kind):
            raise PassError(
                f"{kind!r} is no class of analyses",
                remedy="write `class MyAnalysis(Analysis)`, and pass the class",
            )
        found = self.known(kind, program)
        if found is not None:
            return found
        revision = program.graph.revision
        made = kind(program)
        if program.graph.revision != revision:
            raise PassError(
                f"the analysis {kind.__qualname__} changes the program",
                location=program.location,
                remedy="let it look only; what changes a program is a pass",
            )
        self._known[kind] = revision, made
        return made

    def known(self, kind: type[A], program: Program) -> A | None:
        """Return a result if it is known and still true, and drop it if it is not."""
        if self._graph is not program.graph:
            self._graph = program.graph
            self._known.clear()
        revision, found = self._known.get(kind, (-1, None))
        if revision != program.graph.revision:
            self._known.pop(kind, None)
            return None
        return found  # type: ignore[return-value]

    def preserve(self, kinds: Any, program: Program, before: int) -> None:
        """Keep results that were true at an earlier revision: what was changed since leaves them true."""
        if self._graph is program.graph:
            for kind in kinds:
                revision, found = self._known.get(kind, (-1, None))
                if found is not None and revision == before:
                    self._known[kind] = program.graph.revision, found
