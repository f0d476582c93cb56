"""What a history says of each operation: what became of it, what it was made from, and through which rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import attrs

from compiler.page.history import History, Rewrite, Step


@attrs.frozen
class Deed:
    """One change of an operation.

    Attributes:
        step: number of the pass.
        rewrite: the rewrite, or None where the pass did it without a rule.
    """

    step: int
    rewrite: Rewrite | None

    def title(self, steps: Sequence[Step]) -> str:
        """The pass, and its rule."""
        name = steps[self.step].title
        return f"{name}: {self.rewrite.rule}" if self.rewrite is not None else name


@attrs.frozen(eq=False)
class Story:
    """Follows operations through a history, by number.

    Attributes:
        history: the history.
    """

    history: History

    @cached_property
    def ends(self) -> dict[int, Deed]:
        """Operation -> what removed it."""
        return dict(self._deeds("replaced", "removed"))

    @cached_property
    def origins(self) -> dict[int, Deed]:
        """Operation -> what made it; those of the captured program have none."""
        return dict(self._deeds("created", "added"))

    def _deeds(self, of_rewrite: str, of_step: str) -> Iterator[tuple[int, Deed]]:
        for number, step in enumerate(self.history.steps):
            for rewrite in step.rewrites:
                deed = Deed(number, rewrite)
                yield from ((each, deed) for each in getattr(rewrite, of_rewrite))
            deed = Deed(number, None)
            yield from ((each, deed) for each in getattr(step, of_step))

    def became(self, number: int) -> tuple[tuple[Deed, ...], tuple[int, ...]]:
        """Return what was done to an operation and to what came of it, and the operations of the result that remain."""
        return self._followed(number, self.ends, "created", self._final)

    def came_from(self, number: int) -> tuple[tuple[Deed, ...], tuple[int, ...]]:
        """Return what made an operation and what that was made from, first to last, and the captured operations."""
        deeds, found = self._followed(number, self.origins, "replaced", range(self._captured))
        return deeds[::-1], found

    @cached_property
    def _final(self) -> frozenset[int]:
        return frozenset(self.history.final)

    @property
    def _captured(self) -> int:
        return self.history.captured.graph.num_operations

    def _followed(
        self, number: int, deeds: dict[int, Deed], onward: str, ends: range | frozenset[int]
    ) -> tuple[tuple[Deed, ...], tuple[int, ...]]:
        met: dict[Deed, None] = {}
        found: set[int] = set()
        seen = {number}
        todo = [number]
        while todo:
            current = todo.pop()
            if current in ends:
                found.add(current)
            deed = deeds.get(current)
            if deed is None or deed in met:
                continue
            met[deed] = None
            for each in getattr(deed.rewrite, onward, ()):
                if each not in seen:
                    seen.add(each)
                    todo.append(each)
        return tuple(met), tuple(sorted(found))
