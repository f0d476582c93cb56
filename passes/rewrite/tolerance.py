"""How far rules and passes change numbers on purpose, and how far a whole pipeline may have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from ir.errors import InputError


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
    """

    name: str
    kind: str
    tolerance: Tolerance
    count: int

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{self.count} {self.kind}{'s' if self.count > 1 else ''} of {self.name}, within {self.tolerance}{each}"


@attrs.define(eq=False)
class Approximations:
    """What changed numbers on purpose in one run of a pipeline: only what did something counts."""

    _counts: dict[tuple[str, str, Tolerance], int] = attrs.field(factory=dict)

    def add(self, name: str, kind: str, tolerance: Tolerance) -> None:
        """Add one rewrite of a rule, or one run of a pass."""
        key = name, kind, tolerance
        self._counts[key] = self._counts.get(key, 0) + 1

    def mark(self) -> Mapping[Any, int]:
        """Return what `replace_since` is given later."""
        return dict(self._counts)

    def replace_since(self, mark: Mapping[Any, int], name: str, tolerance: Tolerance) -> None:
        """Put one run of a pass, which answers for all that ran in it, in the place of what was added since a mark."""
        self._counts.clear()
        self._counts.update(mark)
        self.add(name, "run", tolerance)

    def listed(self) -> tuple[Approximation, ...]:
        """Return each rule and each pass, in the order in which they first did something."""
        return tuple([Approximation(*key, count) for key, count in self._counts.items()])


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
