"""A survey of modules by kind: how many are wrong, which was the first, and how many are refused."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs
from hypothesis import Phase, given, settings
from hypothesis import seed as hypothesis_seed
from rich.table import Column, Table

from fuzz.modules.case import ModuleCase, forget_loaded
from fuzz.modules.check import EQUAL, NOT_TRACED, REFUSED, SOME_REFUSED
from fuzz.modules.kinds import family_of
from fuzz.modules.strategy import RECIPES, modules
from fuzz.programs.properties import Finding, Unusable
from fuzz.search.judge import judge, write_script
from fuzz.search.sound import Target, search_settings
from ir.errors import InputError


@attrs.define(eq=False)
class Row:
    """The results for the modules of one kind."""

    kind: str
    modules: int = 0
    """Those that run."""
    wrong: int = 0
    """Those with a finding."""
    first: int = 0
    """The number of the first of these among all modules of the survey, from 1; 0 for none."""
    first_of_kind: int = 0
    """Its number among those of the kind."""
    found: str = ""
    """The property and the message of the first finding."""
    case: ModuleCase | None = None
    """The module of the first finding."""
    fates: Counter[str] = attrs.field(factory=Counter)
    """The fates of the others in each of their captures."""

    @property
    def refusals(self) -> str:
        """The number of refused captures; with their share, if the kind must come out equal."""
        count, taken = self.fates[REFUSED], self.fates.total() - self.fates[NOT_TRACED]
        share = f" ({100 * count / taken:.0f} %)" if count and family_of(self.kind).want == "equal" else ""
        return f"{count}{share}"


def kinds_named(names: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds with the given names, or in families of these names.

    Raises:
        InputError: when a name is neither.
    """
    found: list[str] = []
    for name in names:
        chosen = [kind for kind in RECIPES if name in (kind, RECIPES[kind].family)]
        if not chosen:
            families = ", ".join(dict.fromkeys(recipe.family for recipe in RECIPES.values()))
            raise InputError(f"there is no kind of modules {name!r}", remedy=f"families are {families}")
        found += chosen
    return tuple(dict.fromkeys(found))


def survey(
    target: Target, kinds: Sequence[str] = (), *, examples: int = 300, seed: int = 0, seconds: float | None = None
) -> list[Row]:
    """Draw modules and check each; a finding does not end the survey.

    Args:
        target: the pass.
        kinds: the kinds of all modules; empty for modules as `modules()` mixes them.
        examples: how many modules are drawn.
        seed: of the search.
        seconds: after these, no more are checked.
    """
    rows: dict[str, Row] = {}
    end = time.monotonic() + (math.inf if seconds is None else seconds)
    drawn = 0

    def look(case: ModuleCase) -> None:
        nonlocal drawn
        if time.monotonic() > end:
            return
        drawn += 1
        row = rows.setdefault(case.kind, Row(case.kind))
        try:
            outcome = judge(target.pass_, case, target.properties)
        except Unusable:
            return
        except Finding as finding:
            row.modules += 1
            row.wrong += 1
            if not row.first:
                row.first, row.first_of_kind, row.case = drawn, row.modules, case
                row.found = f"{finding.property}: {finding.message}"
            return
        row.modules += 1
        row.fates.update({fate: count for (_, fate), count in outcome.fates.items()})

    chosen = settings(search_settings(examples), phases=[Phase.generate])
    try:
        hypothesis_seed(seed)(chosen(given(modules(kinds=tuple(kinds)))(look)))()
    finally:
        forget_loaded()
    order = {kind: number for number, kind in enumerate(["", *RECIPES])}
    return sorted(rows.values(), key=lambda row: order[row.kind])


def table_of(rows: Sequence[Row]) -> Table:
    """Return the table of a survey."""
    numbers = ("modules", "wrong", "first", "of kind", "equal", "in part", "refused", "untraced")
    table = Table(
        Column("kind", overflow="fold", min_width=20),
        "wanted",
        *(Column(name, justify="right") for name in numbers),
        "found by",
    )
    for row in rows:
        found = (row.modules, row.wrong, row.first or "", row.first_of_kind or "")
        fates = (row.fates[EQUAL], row.fates[SOME_REFUSED], row.refusals, row.fates[NOT_TRACED])
        property_ = row.found.partition(":")[0]
        table.add_row(row.kind or "no kind", family_of(row.kind).want, *map(str, (*found, *fates)), property_)
    return table


def write_found(rows: Sequence[Row], target: Target, folder: Path) -> None:
    """Write the first wrong module of each kind to a folder, as a script."""
    for row in rows:
        if row.case is not None:
            text = write_script(target.name, target.pass_, target.rules, target.properties, row.case, row.found)
            name = "".join(c if c.isalnum() else "_" for c in row.kind or "no kind")
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
