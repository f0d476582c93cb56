"""Recipes that write a kind of Python around a graph into a module: one for each variant, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import Template
from typing import Any

import attrs

from fuzz.modules.writer import Writer

IMAGES = ((2, 3, 4, 4), (2, 4, 3, 3), (3, 2, 2, 4))
ROWS = ((4, 3), (3, 4), (2, 2))
SQUARES = ((3, 3), (4, 4), (2, 2))
TOKENS = ((2, 3, 4), (3, 4, 4))
ANY = (*ROWS, *TOKENS, *IMAGES)
MAPS = (*ROWS, *IMAGES)
"""Shapes for batch norm, with several values per channel."""

_NORMS = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}


@attrs.frozen
class Recipe:
    """The statements of one variant. `$x` is their operand, and `$n` a number that makes names unique.

    Other names are `$c` (its channels), `$last` (its last size), `$shape`, `$d` (`1d` or `2d`) and `$y` (a new value).
    """

    kind: str
    """`family: variant`."""
    result: str = ""
    """An expression for the result of the statements; empty if that is in `$y`."""
    body: str = ""
    """Statements of `forward` before it."""
    setup: str = ""
    """Statements of `__init__`."""
    define: str = ""
    """Statements of the Python module."""
    method: str = ""
    """Methods of the root class."""
    shapes: tuple[tuple[int, ...], ...] = ANY
    """Shapes of the first input."""
    ways: tuple[str, ...] = ()
    """The captures that the kind is about; empty for any."""
    on_input: bool = False
    """Whether `$x` must be the input itself."""
    base: str = ""
    """A class that the root derives from without any change, with the arguments of its constructor."""
    signature: str = ""
    """The parameters of `forward`, unless they are the inputs in order."""
    keywords: tuple[str, ...] = ()
    """Names of inputs passed by keyword, in the order of the call."""
    write: Callable[[Writer, str], str | None] | None = None
    """Writes statements that depend on more than that; returns the name of the value, or None."""

    @property
    def family(self) -> str:
        """The family of its kind."""
        return self.kind.partition(":")[0]


def follow(recipe: Recipe, w: Writer, x: str) -> str | None:
    """Write the statements of a recipe; return the name of their value, or None if they do not run."""
    w.signature, w.base = recipe.signature, recipe.base
    if recipe.base:
        return x
    if recipe.write is not None:
        return recipe.write(w, x)
    shape = w[x].shape
    y = w.fresh()
    names = {
        "x": x,
        "y": y,
        "n": str(w.count),
        "c": str(shape[1]) if len(shape) > 1 else "1",
        "last": str(shape[-1]) if shape else "1",
        "d": _NORMS.get(len(shape), "1d"),
        "shape": str(tuple(shape)),
    }

    def text(template: str) -> str:
        return Template(template).substitute(names).strip("\n")

    if "**features" in recipe.signature:
        w.scope["features"] = {name: w[name] for name in recipe.keywords}
    if recipe.define:
        w.define(text(recipe.define))
    for line in text(recipe.setup).splitlines():
        if not w.set_up(line):
            return None
    if recipe.method:
        w.methods.append(text(recipe.method))
    lines = text(recipe.body)
    if lines and not w.run(lines):
        return None
    if recipe.result and not w.run(f"{y} = {text(recipe.result)}"):
        return None
    w.values.append(y)
    return y


def of(result: str = "", **statements: str) -> dict[str, str]:
    """Return the fields of a variant: its result, and its other statements by field."""
    return {"result": result, **statements}


def variants(family: str, recipes: Mapping[str, str | dict[str, str]], **common: Any) -> tuple[Recipe, ...]:
    """Return a recipe for each variant of a family, from name -> fields; a string is a result."""
    fields = {name: {"result": each} if isinstance(each, str) else each for name, each in recipes.items()}
    return tuple(Recipe(f"{family}: {name}", **{**common, **each}) for name, each in fields.items())
