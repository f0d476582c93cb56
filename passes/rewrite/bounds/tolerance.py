"""How far rules and passes change numbers on purpose, and how far a whole pipeline may have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from ir.errors import InputError

Place = tuple[str, int | str]
"""Where a program leaves numbers: `("result", 0)`, by the order of the flattened result; `("buffer", "norm.mean")`; and
`ARGUMENTS`."""

ARGUMENTS: Place = ("arguments", 0)
"""What a call leaves in its arguments, in all of them together."""


def _bound(_: Any, field: Any, given: Any) -> None:
    if type(given) is bool or not isinstance(given, (int, float)) or not (math.isfinite(given) and given >= 0):
        raise InputError(
            f"the {field.name} bound of a tolerance is {given!r}, not a finite number of at least 0",
            remedy="write `Tolerance(relative=1e-3)`",
        )


@attrs.frozen
class Tolerance:
    """A bound for numbers that are changed on purpose; what says nothing is held to rounding.

    A tensor may differ from what it was by `relative` of its own largest finite magnitude, and by `absolute`.

    Attributes:
        relative: a share of the largest magnitude: 1e-3.
        absolute: a difference.
    """

    relative: float = attrs.field(default=0.0, validator=_bound)
    absolute: float = attrs.field(default=0.0, validator=_bound, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not (self.relative or self.absolute):
            raise InputError(
                "a tolerance of 0 allows nothing",
                remedy="leave it out: what states no tolerance is held to rounding; bits are held by `exact = True`",
            )

    def allows(self, scale: float) -> float:
        """Return the difference that is allowed of a tensor with this largest magnitude."""
        return self.relative * scale + self.absolute

    def then(self, later: Tolerance) -> Tolerance:
        """Return the bound for this change and a later one of its result together."""
        return Tolerance(
            self.relative + later.relative + self.relative * later.relative,
            absolute=self.absolute + later.absolute + self.absolute * later.relative,
        )

    def times(self, count: int) -> Tolerance:
        """Return the bound for such a change so many times in a row, once or more."""
        found = self
        for _ in range(count - 1):
            found = found.then(self)
        return found

    def __str__(self) -> str:
        share = f"{self.relative:.3g} of the largest magnitude" if self.relative else ""
        return " and ".join(filter(None, (share, f"{self.absolute:.3g}" if self.absolute else "")))


@attrs.frozen
class Approximation:
    """A rule or a pass that changed numbers on purpose.

    Attributes:
        name: name of the rule, or title of the pass.
        kind: `rewrite` of a rule, or `run` of a pass.
        tolerance: how far each time.
        count: how many times.
        reaches: the places whose numbers it can reach by data flow; None for all.
    """

    name: str
    kind: str
    tolerance: Tolerance
    count: int
    reaches: frozenset[Place] | None = None

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        where = "" if self.reaches is None else f", in {_listed(self.reaches)}"
        many = "s" if self.count > 1 else ""
        return f"{self.count} {self.kind}{many} of {self.name}, within {self.tolerance}{each}{where}"


def _listed(places: Iterable[Place]) -> str:
    """Return places in words: `result 0, buffer 'cache'`."""
    found = [
        "arguments after the call" if place == ARGUMENTS else f"{place[0]} {place[1]!r}"
        for place in sorted(places, key=lambda place: (("result", "arguments", "buffer").index(place[0]), place[1]))
    ]
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or "no result"


@attrs.frozen
class Bounds:
    """How far each result of a program, and what a call leaves behind, may differ on purpose.

    Where it cannot be told which place a tensor is, all approximations count.

    Attributes:
        approximations: what changed numbers on purpose.
        results: the number of leaves of the result.
        places: the places where the program leaves numbers.
    """

    approximations: tuple[Approximation, ...]
    results: int = -1
    places: frozenset[Place] = frozenset()

    @property
    def whole(self) -> Tolerance | None:
        """The bound for all approximations together."""
        return composed(self.approximations)

    def of_results(self, count: int) -> list[Tolerance | None]:
        """Return the bound of each leaf of a result that has so many."""
        if count != self.results:
            return [self.whole] * count
        return [self._of(("result", number)) for number in range(count)]

    def of_arguments(self) -> Tolerance | None:
        """Return the bound of the arguments after a call."""
        return self._of(ARGUMENTS)

    def of_buffer(self, name: str) -> Tolerance | None:
        """Return the bound of a buffer after a call."""
        place = "buffer", name
        return self._of(place) if place in self.places else self.whole

    def _of(self, place: Place) -> Tolerance | None:
        return composed(each for each in self.approximations if each.reaches is None or place in each.reaches)


@attrs.define(eq=False)
class Approximations:
    """What changed numbers on purpose in one run of a pipeline: only what did something counts."""

    _counts: dict[tuple[str, str, Tolerance, frozenset[Place] | None], int] = attrs.field(factory=dict)

    def add(self, name: str, kind: str, tolerance: Tolerance, reaches: frozenset[Place] | None = None) -> None:
        """Add one rewrite of a rule, or one run of a pass, and the places that it reaches; None for all."""
        key = name, kind, tolerance, reaches
        self._counts[key] = self._counts.get(key, 0) + 1

    def mark(self) -> Mapping[Any, int]:
        """Return what `replace_since` is given later."""
        return dict(self._counts)

    def replace_since(
        self, mark: Mapping[Any, int], name: str, tolerance: Tolerance, reaches: frozenset[Place] | None = None
    ) -> None:
        """Put one run of a pass, which answers for all that ran in it, in the place of what was added since a mark."""
        self._counts.clear()
        self._counts.update(mark)
        self.add(name, "run", tolerance, reaches)

    def listed(self) -> tuple[Approximation, ...]:
        """Return each rule and each pass, in the order in which they first did something."""
        return tuple([Approximation(*key[:3], count, key[3]) for key, count in self._counts.items()])


def as_bounds(given: Tolerance | Bounds | None) -> Bounds | None:
    """Return bounds; a tolerance is that of every result."""
    return Bounds((Approximation("", "run", given, 1),)) if isinstance(given, Tolerance) else given


def allowed_text(tolerance: Tolerance | None, bounds: Bounds | None) -> str:
    """Return what a message about a place with this tolerance says of the bounds of all; nothing without any."""
    if tolerance is not None:
        return f"; {tolerance} is allowed on purpose"
    return "" if bounds is None else "; nothing that changes numbers on purpose reaches it"


def composed(approximations: Iterable[Approximation]) -> Tolerance | None:
    """Return the bound for all of them in a row, as if nothing in between made differences larger; None without any."""
    found: Tolerance | None = None
    for each in approximations:
        own = each.tolerance.times(each.count)
        found = own if found is None else found.then(own)
    return found


def check_tolerance(owner: str, given: Any, *, exact: bool = False) -> None:
    """Check what a rule or a pass states as its tolerance.

    Args:
        owner: who states it, for messages.
        given: what it states.
        exact: whether it also says that it keeps the bits.

    Raises:
        InputError: when it is none, or contradicts `exact`.
    """
    if given is None:
        return
    if not isinstance(given, Tolerance):
        raise InputError(
            f"the tolerance of {owner} is {given!r}, not a Tolerance", remedy="write `Tolerance(relative=1e-3)`"
        )
    if exact:
        raise InputError(
            f"{owner} is `exact`, and changes numbers within {given}", remedy="leave out `exact`, or `tolerance`"
        )


def format_tolerance(tolerance: Tolerance) -> str:
    """Return the text of a tolerance in a pipeline: its relative bound, and its absolute one if there is one."""
    return f"{tolerance.relative!r},{tolerance.absolute!r}" if tolerance.absolute else repr(tolerance.relative)


def parse_tolerance(text: str) -> Tolerance:
    """Return the tolerance that `format_tolerance` wrote.

    Raises:
        ValueError: when there are other than one or two numbers.
        InputError: when they are no bounds.
    """
    relative, *absolute = map(float, text.split(","))
    if len(absolute) > 1:
        raise ValueError(text)
    return Tolerance(relative, absolute=absolute[0] if absolute else 0.0)
