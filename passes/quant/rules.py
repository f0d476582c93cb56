"""Rules of the user: which places they mean, and which value wins."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from ir.core import Operation
from ir.errors import InputError
from ir.locations import Location
from ir.spelling import did_you_mean


@attrs.frozen
class Site:
    """A region or operation that may be quantized.

    Attributes:
        kind: the kind of the region, or the name of the operator.
        location: its place in the user's model.
    """

    kind: str
    location: Location

    @classmethod
    def of(cls, op: Operation) -> Site:
        """Return the site of an operation."""
        return cls(str(op.attributes["kind"]) if op.body is not None else op.name, op.location)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the modules whose operations it holds."""
        return tuple(dict.fromkeys(part.module_path for part in self.location.parts))


Key = str | type | Callable[[Site], bool]
"""A glob of module paths or a kind, a type of modules, or a predicate."""


@attrs.frozen
class Rule:
    """A key, and the value of the places that it means.

    A text is a glob: it means the modules whose path it matches and all that is in them, and the regions and operators
    of a kind that it matches. A type means its modules and those of its subclasses.
    """

    key: Key
    value: Any

    def means(self, site: Site) -> bool:
        """Return whether the rule is about a site.

        Raises:
            InputError: when its function raises.
        """
        key = self.key
        if isinstance(key, str):
            return fnmatch.fnmatchcase(site.kind, key) or any(
                fnmatch.fnmatchcase(path, key) for end in site.paths for path in _with_parents(end)
            )
        if isinstance(key, type):
            return any(_is_a(part.module_class, key) for part in site.location.parts)
        try:
            answer = bool(key(site))
        except Exception as error:
            raise InputError(
                f"the rule {self} raised {type(error).__name__} of {site.kind}: {error}",
                location=site.location,
                remedy="its function is asked of every `Site`, whose attributes are `kind`, `location` and `paths`",
            ) from error
        return answer

    def __str__(self) -> str:
        key = self.key
        return repr(key) if isinstance(key, str) else getattr(key, "__qualname__", repr(key))


def _with_parents(path: str) -> Sequence[str]:
    names = path.split(".")
    return [".".join(names[:count]) for count in range(len(names), 0, -1)]


def _is_a(qualified: str, wanted: type) -> bool:
    """Return whether a class, known by its qualified name, is a class or derived from it."""
    if qualified == f"{wanted.__module__}.{wanted.__qualname__}":
        return True
    module, _, name = qualified.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, wanted)


@attrs.frozen
class Rules:
    """Ordered rules, of which the last that means a site decides."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def of(cls, rules: Rules | Mapping[Any, Any] | Iterable[tuple[Any, Any]] | None) -> Rules:
        """Return the rules of a mapping, or of pairs, from keys to values.

        Raises:
            InputError: when a key is neither a text, a type nor a function.
        """
        if isinstance(rules, Rules):
            return rules
        pairs = rules.items() if isinstance(rules, Mapping) else rules or ()
        if isinstance(pairs, str) or not isinstance(pairs, Iterable):
            raise InputError(f"rules={rules!r} is no mapping", remedy='write `{"head": None}`')
        made = []
        for entry in pairs:
            if not (isinstance(entry, tuple) and len(entry) == 2):
                raise InputError(f"{entry!r} among the rules is no pair", remedy='write `{"head": None}`')
            key, value = entry
            if isinstance(key, nn.Module):
                raise InputError(
                    f"a {type(key).__qualname__} is the key of a rule, and regions do not know modules themselves",
                    remedy="give its path, as in `model.named_modules()`, or its class",
                )
            if not (isinstance(key, str) or callable(key)):
                raise InputError(
                    f"the rule for {key!r} matches no places",
                    remedy="use a glob of module paths, a kind of regions, a type of modules or a function of a `Site`",
                )
            made.append(Rule(key, value))
        return cls(tuple(made))

    def find(self, site: Site) -> Rule | None:
        """Return the rule that decides on a site; None where none means it."""
        return next((rule for rule in reversed(self.rules) if rule.means(site)), None)

    def choose(self, site: Site, default: Any = None) -> Any:
        """Return the value of the rule that decides on a site; `default` where none means it."""
        rule = self.find(site)
        return default if rule is None else rule.value

    def check(self, sites: Sequence[Site]) -> None:
        """Demand that every rule means one of the sites.

        Raises:
            InputError: when one means none; the error names what is near.
        """
        for rule in self.rules:
            if any(rule.means(site) for site in sites):
                continue
            kinds = sorted({site.kind for site in sites})
            paths = sorted(
                {parent for site in sites for path in site.paths for parent in _with_parents(path) if parent}
            )
            known = f"kinds are {', '.join(kinds) or 'none'}; modules are {', '.join(paths[:8]) or 'none'}"
            known += f" and {len(paths) - 8} more" if len(paths) > 8 else ""
            remedy = did_you_mean(rule.key, [*kinds, *paths], known) if isinstance(rule.key, str) else known
            raise InputError(f"the rule {rule} matches nothing in this program", remedy=remedy)
