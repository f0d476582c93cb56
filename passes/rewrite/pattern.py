"""Patterns as data.

A pattern is written as ordinary Python over placeholder values (`PatternBuilder`) and becomes a tree of nodes
(`passes.rewrite.language`), which can be printed, indexed by root operator, matched (`passes.rewrite.matching`) and
sampled (`fuzz`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

from ir.core import Operation, Value
from ir.errors import PatternError
from ir.locations import Location, merge_locations
from passes.rewrite.bounds.tolerance import Tolerance
from passes.rewrite.example import Example
from passes.rewrite.language.builder import PatternBuilder
from passes.rewrite.language.nodes import AnyOf, AnyValue, AttrCapture, AttrWhere, Chain, Node, OpNode, Tree
from passes.rewrite.remarks import Refusal
from passes.rewrite.scope import Key, Scope

__all__ = [
    "AnyOf",
    "AnyValue",
    "AttrCapture",
    "AttrWhere",
    "Chain",
    "Match",
    "Node",
    "OpNode",
    "Pattern",
    "PatternBuilder",
    "Tree",
    "instantiate",
    "missing_method",
    "scoped",
    "unscoped",
]


class Match:
    """A match: the root operation, all matched operations, and the captures by name (`m["conv"]` or `m.conv`).

    Attributes:
        root: the operation whose results the rewrite replaces, the first of several.
        ops: all matched operations, the roots included.
        captures: what the names of the pattern stand for: a value, an attribute, or a list of values.
        roots: the operations whose results the rewrite replaces, in the order of the pattern.
        alternatives: the names of the alternatives that matched, of those that have names.
    """

    __slots__ = ("alternatives", "captures", "ops", "root", "roots")

    def __init__(
        self,
        root: Operation,
        ops: list[Operation],
        captures: dict[str, Any],
        others: Sequence[Operation] = (),
        alternatives: tuple[str, ...] = (),
    ) -> None:
        self.root = root
        self.ops = ops
        self.captures = captures
        self.roots = (root, *others)
        self.alternatives = alternatives

    def __getitem__(self, name: str) -> Any:
        return self.captures[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.captures[name]
        except KeyError:
            known = ", ".join(self.captures) or "none"
            raise AttributeError(f"the match has no capture named {name!r}; it has {known}") from None

    def get(self, name: str) -> Any:
        """Return the capture, or None when the part of the pattern that has it is absent from this match."""
        return self.captures.get(name)

    @property
    def location(self) -> Location:
        """The merged location of the matched operations."""
        return merge_locations(op.location for op in self.ops)


class Pattern:
    """One rewrite rule. Subclass it; the docstring is its equation.

    `pattern` builds the tree to match, `check` may refuse a match with a reason, `rewrite` builds the replacement with
    a `Rewriter` and returns the value (or tuple of values) that replaces the root's results. Nothing is kept on `self`
    between the three: a match carries its captures.
    """

    is_conversion: ClassVar[bool] = False
    """Whether this is a structural conversion; conversions run to a fixpoint before fusions."""
    is_fusion: ClassVar[bool] = False
    """Whether the matched operations become one fused region."""
    is_for_inference: ClassVar[bool] = False
    """Whether it assumes that the program will never train."""
    exact: ClassVar[bool] = False
    """Whether the result is bit for bit equal (else: equal up to rounding)."""
    tolerance: Tolerance | None = None
    """How far a rewrite may change its results on purpose; without one it is held to rounding."""
    closed: ClassVar[bool] = False
    """Whether the rule refuses where a value inside the match has users outside it."""
    check_adds: ClassVar[int] = 0
    """How many operations `check` adds to the match (it may extend `m.ops`); counts for "longest first"."""
    warns_without_shapes: ClassVar[bool] = True
    """Whether a refusal for want of a shape is a Python warning as well as a remark."""
    examples: ClassVar[tuple[Example, ...]] = ()
    """Programs in which it fires, and near misses: tests hold it to them, and the fuzzer starts from them."""
    only: Any = ()
    """Where it applies: globs of module paths, classes of modules, predicates of operations; empty for everywhere."""
    skip: Any = ()
    """Where it does not apply, though `only` means the place."""
    scoped_from: Pattern | type[Pattern] | None = None
    """The pattern that `scoped` was given to make this one."""

    def pattern(self, p: PatternBuilder) -> Tree | tuple[Node, ...]:
        """Return the tree that the rule matches; several for several roots, which have values in common.

        Raises:
            PatternError: where a subclass does not override this.
        """
        raise missing_method(self, "pattern")

    def check(self, m: Match) -> str | Refusal | None:
        """Return why the rule does not apply to this match, or None when it does."""
        return None

    def rewrite(self, m: Match, b: Any) -> Value | Sequence[Value] | None:
        """Build the replacement and return the new values of the root's results, of several roots in their order.

        An operation stands for its results. Returning None (or the region that `b.fuse` made) means that the rewrite
        itself replaced what it wanted through `b`; one that changes nothing is an error.

        Raises:
            PatternError: where a subclass does not override this.
        """
        raise missing_method(self, "rewrite")

    @property
    def name(self) -> str:
        """The name used in reports and pipelines: the class's name."""
        return type(self).__name__

    @property
    def scope(self) -> Scope:
        """The scope in which its whole match must lie, if it is to apply."""
        return _scope_of(self)

    @property
    def equation(self) -> str:
        """The first paragraph of the docstring."""
        return " ".join((type(self).__doc__ or "").strip().split("\n\n")[0].split())

    def __repr__(self) -> str:
        return f"{self.name}()"

    def __str__(self) -> str:
        """Return the docstring and the examples."""
        return "\n\n".join([inspect.cleandoc(type(self).__doc__ or self.name), *map(str, self.examples)])


_Scoped = TypeVar("_Scoped", bound="Pattern | type[Pattern]")


def scoped(pattern: _Scoped, *, only: Any = (), skip: Any = ()) -> _Scoped:
    """Return a pattern that applies only where its whole match lies in a scope (and in its own, where it has one).

    Args:
        pattern: a pattern class or object; what is returned is of the same kind, under the same name.
        only: where it applies: globs of module paths, classes of modules, predicates of operations; one, or a list.
        skip: where it does not, though `only` means the place.

    Raises:
        InputError: when an entry of the scope is none of these.
        PatternError: when `pattern` is no pattern.
    """
    scope = Scope(only, skip)
    if not (isinstance(pattern, Pattern) or (isinstance(pattern, type) and issubclass(pattern, Pattern))):
        instantiate([pattern])  # raises
    given: Any = pattern
    if isinstance(given, type):
        return _scoped_class(given, scope.only, scope.skip)  # type: ignore[return-value]
    rule = copy.copy(given)
    rule.only, rule.skip, rule.scoped_from = scope.only, scope.skip, given
    return rule  # type: ignore[no-any-return]


_SCOPED: WeakValueDictionary[tuple[Any, ...], type[Pattern]] = WeakValueDictionary()
"""Pattern and scope -> the class while a pipeline has it: no result that could be stale, but an identity."""


def _scoped_class(pattern: type[Pattern], only: tuple[Key, ...], skip: tuple[Key, ...]) -> type[Pattern]:
    """Return a subclass in a scope: the same one for the same scope, so that pipelines compare by value."""
    found = _SCOPED.get((pattern, only, skip))
    if found is None:
        names = {name: getattr(pattern, name) for name in ("__module__", "__qualname__", "__doc__")}
        found = type(pattern.__name__, (pattern,), {**names, "only": only, "skip": skip, "scoped_from": pattern})
        _SCOPED[pattern, only, skip] = found
    return found


def _scope_of(given: Pattern | type[Pattern]) -> Scope:
    own, before = Scope(given.only, given.skip), given.scoped_from
    return own if before is None else own.within(_scope_of(before))


def unscoped(pattern: type[Pattern]) -> type[Pattern]:
    """Return the class that `scoped` was given to make this one, or the class itself."""
    while "scoped_from" in vars(pattern) and isinstance(pattern.scoped_from, type):
        pattern = pattern.scoped_from
    return pattern


def missing_method(rule: Pattern, method: str) -> PatternError:
    """Return the error to raise for a rule that does not override `pattern` or `rewrite`."""
    remedy = {
        "pattern": 'define `pattern(self, p)`; it returns the tree to match, such as `p.relu(p.any("x"))`',
        "rewrite": "define `rewrite(self, m, b)`; it returns the value that replaces the root's result",
    }[method]
    return PatternError(f"the pattern class {type(rule).__qualname__} has no `{method}`", remedy=remedy)


def instantiate(patterns: Sequence[type[Pattern] | Pattern]) -> tuple[Pattern, ...]:
    """Return pattern objects for a list of pattern classes or objects.

    Raises:
        PatternError: when an entry is neither, or a class that needs arguments.
    """
    result: list[Pattern] = []
    if isinstance(patterns, (str, type, Pattern)) or not isinstance(patterns, Sequence):
        raise PatternError(
            f"patterns must be a list or tuple of Pattern classes, not {patterns!r}",
            remedy="write `patterns=(MyPattern,)`",
        )
    for entry in patterns:
        if isinstance(entry, Pattern):
            result.append(entry)
        elif isinstance(entry, type) and issubclass(entry, Pattern):
            try:
                result.append(entry())
            except TypeError as error:
                raise PatternError(
                    f"{entry.__qualname__} cannot be made without arguments: {error}",
                    remedy=f"pass an object in place of the class: {entry.__qualname__}(...)",
                ) from error
        else:
            raise PatternError(
                f"unknown pattern {entry!r}: not a subclass of graphwright.Pattern",
                remedy="pass Pattern classes, such as those in graphwright.tensorrt.TENSORRT_PATTERNS",
            )
    return tuple(result)
