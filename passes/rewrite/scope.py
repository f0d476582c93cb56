"""Scopes: the part of a program that a pass or a rule may change, by module path, module class or a function."""

from __future__ import annotations

import fnmatch
import glob
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from ir.caches import cached
from ir.core import Operation
from ir.errors import InputError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.spelling import did_you_mean

Key = str | Callable[[Operation], bool]
"""A glob of module paths, `class:` and the name of a module class, or a predicate of operations."""

ModuleClasses = Mapping[str, frozenset[str]]
"""Path of a module -> the names of its class and of the bases of that, each in full and bare."""

CLASS = "class:"
_PLAIN = re.compile(r"[\w.*?!:<>\[\]+/-]+")
_MOST_SHOWN = 8


def as_keys(given: Any) -> tuple[Key, ...]:
    """Return the keys of a scope: one or several globs, classes of modules and predicates.

    Raises:
        InputError: when one is none of these.
    """
    alone = isinstance(given, (str, type, nn.Module)) or callable(given)
    if not alone and not isinstance(given, Iterable):
        raise InputError(f"{given!r} is no scope", remedy=_KEYS)
    return tuple(map(_as_key, (given,) if alone else given))


def _as_key(key: Any) -> Key:
    if isinstance(key, nn.Module):
        raise InputError(
            f"a {type(key).__qualname__} is in a scope, and operations do not know modules themselves",
            remedy="give its path, as in `model.named_modules()`, or its class",
        )
    if isinstance(key, type):
        if not issubclass(key, nn.Module):
            raise InputError(f"the class {key.__qualname__} in a scope is no class of modules", remedy=_KEYS)
        return f"{CLASS}{_full_name(key)}"
    if isinstance(key, str):
        if not key.removeprefix(CLASS):
            raise InputError(f"the text {key!r} in a scope names nothing", remedy=f"`*` means all modules; {_KEYS}")
        found = _find_class(key.removeprefix(CLASS)) if key.startswith(CLASS) else None
        return key if found is None else f"{CLASS}{_full_name(found)}"  # `torch.nn.Linear` is an alias
    if not callable(key):
        raise InputError(f"{key!r} in a scope names no places", remedy=_KEYS)
    return key  # type: ignore[no-any-return]


_KEYS = 'use a glob of module paths ("layer4.*"), a class of modules, a function of an operation, or a list of these'


@attrs.frozen
class Scope:
    """The operations that a pass or a rule may change.

    A glob means the modules whose path it matches, and all that is in them (`*` stands for dots as well); a class means
    its modules and those of its subclasses, and all that is in them; a predicate is asked of each operation. An
    operation that stands for several places, as rewrites leave them, is in the scope where all of its places are.

    Attributes:
        only: keys of what may be changed; empty for everything.
        skip: keys of what may not, though `only` means it.
        outer: scopes that it lies in.
    """

    only: tuple[Key, ...] = attrs.field(default=(), converter=as_keys)
    skip: tuple[Key, ...] = attrs.field(default=(), converter=as_keys)
    outer: tuple[Scope, ...] = ()

    @property
    def is_everywhere(self) -> bool:
        """Whether nothing is left out."""
        return not (self.only or self.skip or self.outer)

    def holds(self, op: Operation) -> bool:
        """Return whether an operation may be changed.

        Raises:
            InputError: when a predicate raises or returns no bool.
        """
        return self.is_everywhere or self.bars(op) is None

    def bars(self, op: Operation) -> str | None:
        """Return the text of the scope that leaves an operation out, `skip=head`; None where it may be changed.

        Raises:
            InputError: when a predicate raises or returns no bool.
        """
        places = op.location.parts
        for key in self.skip:
            if any(_means(key, op, place) for place in places):
                return f"skip={format_key(key)}"
        if self.only and not all(any(_means(key, op, place) for key in self.only) for place in places):
            return f"only={format_keys(self.only)}"
        for scope in self.outer:
            barred = scope.bars(op)
            if barred is not None:
                return barred
        return None

    @property
    def holds_placeless(self) -> bool:
        """Whether it holds what belongs to no module: unused constants. Predicates, which are of operations, do not."""
        named = [key for key in self.skip if isinstance(key, str)]
        wanted = [key for key in self.only if isinstance(key, str)]
        if any(names_place(key, UNKNOWN_LOCATION) for key in named):
            return False
        if self.only and not any(names_place(key, UNKNOWN_LOCATION) for key in wanted):
            return False
        return all(scope.holds_placeless for scope in self.outer)

    def within(self, outer: Scope) -> Scope:
        """Return what is in this scope and in another one."""
        if outer.is_everywhere:
            return self
        return outer if self.is_everywhere else attrs.evolve(self, outer=(*self.outer, outer))

    def bound(self, modules: ModuleClasses) -> Scope:
        """Return the scope with the paths of the modules that classes mean: operations know their own module's only."""
        if self.is_everywhere or not modules:
            return self
        return Scope(
            _with_paths(self.only, modules),
            _with_paths(self.skip, modules),
            tuple([scope.bound(modules) for scope in self.outer]),
        )

    def check(self, locations: Iterable[Location], modules: ModuleClasses) -> None:
        """Demand that each glob and class means a module of the model, or an operation of its program.

        Raises:
            InputError: when one means none; the error names what is near.
        """
        keys = [key for key in (*self.only, *self.skip) if isinstance(key, str)]
        places = dict.fromkeys(part for location in locations for part in location.parts) if keys else {}
        for key in keys:
            if not any(names_place(key, part) for part in places) and not _with_modules(key, modules):
                raise InputError(
                    f"the scope {format_key(key)} means nothing in this model", remedy=_near(key, places, modules)
                )
        for scope in self.outer:
            scope.check(places or locations, modules)

    def __str__(self) -> str:
        own = [f"{name}={format_keys(keys)}" for name in ("only", "skip") if (keys := getattr(self, name))]
        return " ".join([*own, *map(str, self.outer)])


EVERYWHERE = Scope()


def _means(key: Key, op: Operation, place: Location) -> bool:
    if isinstance(key, str):
        return names_place(key, place)
    try:
        answer = key(op)
    except Exception as error:
        raise InputError(
            f"the predicate {format_key(key)} of a scope raised {type(error).__name__} of {op.name}: {error}",
            location=op.location,
            remedy="it is asked of every operation",
        ) from error
    if not isinstance(answer, bool):
        raise InputError(
            f"the predicate {format_key(key)} of a scope returned {answer!r} of {op.name}",
            location=op.location,
            remedy="return True or False",
        )
    return answer


def names_place(key: Key, place: Location) -> bool:
    """Return whether a glob or a class means the module of a place, or one around it as far as the place tells."""
    if not isinstance(key, str):
        return False
    if key.startswith(CLASS):
        return key.removeprefix(CLASS) in names_of_class(place.module_class)
    return _matches(key, place.module_path)


@cached(1 << 16)
def _matches(key: str, path: str) -> bool:
    return any(fnmatch.fnmatchcase(each, key) for each in with_parents(path))


def with_parents(path: str) -> Sequence[str]:
    """Return a module path and those of the modules around it, the root excepted: `a.b` and `a`."""
    names = path.split(".")
    return [".".join(names[:count]) for count in range(len(names), 0, -1)]


def _with_paths(keys: tuple[Key, ...], modules: ModuleClasses) -> tuple[Key, ...]:
    found: list[Key] = []
    for key in keys:
        found.append(key)
        if isinstance(key, str) and key.startswith(CLASS):
            found.extend("*" if not path else glob.escape(path) for path in _with_modules(key, modules))
    return tuple(found)


def _with_modules(key: str, modules: ModuleClasses) -> list[str]:
    """Return the paths of the modules that a key means."""
    if key.startswith(CLASS):
        wanted = key.removeprefix(CLASS)
        return [path for path, names in modules.items() if wanted in names]
    return [path for path in modules if fnmatch.fnmatchcase(path, key)]


def _near(key: str, places: Iterable[Location], modules: ModuleClasses) -> str:
    if key.startswith(CLASS):
        classes = {name for names in modules.values() for name in names}
        classes |= {name for place in places if place.module_class for name in names_of_class(place.module_class)}
        # base classes and full names would crowd out what was meant
        bare = sorted({name for name in classes if "." not in name} - {"Module", "object", "Generic", "Protocol"})
        near = did_you_mean(key.removeprefix(CLASS).rpartition(".")[2], bare, "")
        return near or f"classes are {_some(bare)}"
    paths = sorted({each for place in places for each in with_parents(place.module_path) if each} | {*modules} - {""})
    return did_you_mean(key, paths, f"modules are {_some(paths)}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return (", ".join(names[:_MOST_SHOWN]) or "none") + more


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def names_of_type(cls: type) -> frozenset[str]:
    """Return the names of a class and of its bases, each in full and bare."""
    return frozenset(name for base in cls.__mro__ for name in (_full_name(base), base.__name__))


def names_of_class(qualified: str) -> frozenset[str]:
    """Return the names of a class that is known by its full name, and of its bases where it is imported."""
    found = _find_class(qualified)
    if found is not None:
        return names_of_type(found)
    return frozenset((qualified, qualified.rpartition(".")[2]))


def bare_class(names: frozenset[str]) -> str:
    """Return the bare name of the class whose names, and names of bases, these are; empty where it is not plain."""
    full = {name: _find_class(name) for name in names if "." in name}
    strange = [name for name, found in full.items() if found is None]  # classes made in functions
    known = sorted((found for found in full.values() if found is not None), key=lambda found: -len(found.__mro__))
    if len(strange) == 1:
        return strange[0].rpartition(".")[2]
    return known[0].__name__ if known and not strange else ""


def _find_class(qualified: str) -> type | None:
    names = qualified.split(".")
    for count in range(len(names) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(names[:count]))
        for name in names[count:]:
            found = getattr(found, name, None)
        if isinstance(found, type):
            return found
    return None


def classes_of_modules(model: nn.Module) -> dict[str, frozenset[str]]:
    """Return the names of the classes of a model's modules, by path."""
    return {path: names_of_type(type(module)) for path, module in model.named_modules()}


# --- text ------------------------------------------------------------------------------------------------------------


def format_key(key: Key) -> str:
    """Return a key as pipeline text spells it; a predicate has no such text, and is shown in angle brackets."""
    if isinstance(key, str):
        return key if _PLAIN.fullmatch(key) and not key.startswith("<") else json.dumps(key, ensure_ascii=False)
    return f"<{getattr(key, '__qualname__', type(key).__qualname__)}>"


def format_keys(keys: Iterable[Key]) -> str:
    """Return keys as pipeline text spells them, with commas."""
    return ",".join(map(format_key, keys))


class UnreadableKeyError(Exception):
    """Text that is no list of keys.

    Attributes:
        message: what is wrong with it.
        at: where, in characters from the start.
    """

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


def parse_keys(text: str) -> tuple[str, ...]:
    """Return the keys that a text with commas spells.

    Raises:
        UnreadableKeyError: when it is ill-formed, or shows a predicate.
    """
    keys: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == "<":
            raise UnreadableKeyError(
                "a predicate has no text: give this scope in Python, `manager.with_scope(name, skip=function)`", at
            )
        if text[at] == '"':
            try:
                key, end = json.JSONDecoder().raw_decode(text, at)
            except json.JSONDecodeError:
                raise UnreadableKeyError("a quote is never closed", at) from None
        else:
            end = text.find(",", at) % (len(text) + 1)
            key = text[at:end]
        if not key.removeprefix(CLASS) or text[end : end + 1] not in ("", ","):
            raise UnreadableKeyError("expected a glob of module paths, or `class:` and a name", at)
        keys.append(key)
        at = end + 1
    return tuple(keys)
