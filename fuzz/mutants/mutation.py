"""Injection of a fault into one function, and its removal.

Only the code and the defaults of the function object are replaced, so every module that imported it, every class that
has it as a method and every table that holds it sees the fault.
"""

from __future__ import annotations
import __future__

import ast
import gc
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import attrs

from fuzz.rules.dictionary import function_of
from ir.caches import forget
from ir.errors import InputError

_PACKAGES = ("ir", "passes", "compiler", "fuzz", "graphwright")


@attrs.frozen
class Subject:
    """The check that should find a mutant: of a rule, a pass, quantizers, the text form, types, or compiled modules."""

    kind: str
    """`rule`, `pass`, `quant`, `text`, `types` or `modules`."""
    names: tuple[str, ...] = ()
    """The rules, one for each program; or the text of a pipeline, and a rule for whose programs it is tried."""
    operators: tuple[str, ...] = ()
    """The operators of the programs; empty for all."""

    def __str__(self) -> str:
        operators = f" on {', '.join(self.operators)}" if self.operators else ""
        return f"{self.kind} {', '.join(self.names)}".rstrip() + operators


@attrs.frozen
class Mutant:
    """One fault: a piece of the source of one function (or the value of a class attribute), and its replacement."""

    name: str
    class_: str
    """Its class of faults."""
    target: str
    """`module:function`, `module:Class.method` or `module:Class.attribute`."""
    old: str
    """A piece of the source; for an attribute, its `repr`."""
    new: str
    subject: Subject
    at: int | None = None
    """Where `old` starts in the source; None if it occurs exactly once."""


class StaleMutantError(InputError):
    """The source of the target has changed since the mutant was written."""


@contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Apply a mutant inside the `with` block.

    Raises:
        StaleMutantError: when the target is gone, `old` is not at its place, or the result does not compile to a
            function of the same form.
    """
    owner, attribute, found = _find(mutant)
    forget()
    try:
        if isinstance(found, FunctionType):
            changes = _changes(mutant, found)
            before = [(function, _form(function)) for function, _ in changes]
            try:
                for function, form in changes:
                    function.__code__, function.__defaults__, function.__kwdefaults__ = form
                yield
            finally:
                for function, form in before:
                    function.__code__, function.__defaults__, function.__kwdefaults__ = form
        else:
            own = attribute in vars(owner)
            setattr(owner, attribute, _value(mutant, found))
            try:
                yield
            finally:
                if own:
                    setattr(owner, attribute, found)
                else:
                    delattr(owner, attribute)
    finally:
        forget()


def _find(mutant: Mutant) -> tuple[Any, str, Any]:
    """Return the owner of the target, its name there, and the function (without wrappers) or value."""
    module_name, _, path = mutant.target.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
        *outer, attribute = path.split(".")
        for name in outer:
            owner = getattr(owner, name)
        found = inspect.getattr_static(owner, attribute)
    except (ImportError, AttributeError) as error:
        raise _stale(mutant, f"there is no {mutant.target}: {error}") from error
    return owner, attribute, innermost_function(found) or found


def innermost_function(item: Any) -> FunctionType | None:
    """Return the innermost Python function behind an object, without wrappers, or None."""
    function = function_of(item)
    inner = None if function is None else inspect.unwrap(function)
    return inner if isinstance(inner, FunctionType) else None


def _value(mutant: Mutant, found: Any) -> Any:
    if repr(found) != mutant.old:
        raise _stale(mutant, f"{mutant.target} is {found!r}, not {mutant.old}")
    return ast.literal_eval(mutant.new)


_Form = tuple[CodeType, tuple[Any, ...] | None, dict[str, Any] | None]
"""The code of a function, and the defaults of its parameters."""


def _form(function: FunctionType) -> _Form:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _changes(mutant: Mutant, function: FunctionType) -> list[tuple[FunctionType, _Form]]:
    """Return the functions that change (the target, and closures that it made before) with their new form."""
    source = textwrap.dedent(inspect.getsource(function))
    at = source.find(mutant.old) if mutant.at is None else mutant.at
    count = source.count(mutant.old)
    if (mutant.at is None and count != 1) or not source.startswith(mutant.old, at):
        raise _stale(mutant, f"{mutant.old!r} occurs {count} times in {mutant.target}")
    old = function.__code__
    changed = source[:at] + mutant.new + source[at + len(mutant.old) :]
    try:
        new = _compile(function, changed)
    except SyntaxError as error:
        raise _stale(mutant, f"the mutant does not compile: {error}") from error
    if new.co_freevars != old.co_freevars:
        raise _stale(mutant, f"the mutant has the free variables {new.co_freevars}, not {old.co_freevars}")
    changes = [(function, (new, *_defaults(function, source, changed)))]
    inner_old, inner_new = list(_inner(old)), list(_inner(new))
    for was, becomes in zip(inner_old, inner_new, strict=False):
        if was.co_name != becomes.co_name or was.co_freevars != becomes.co_freevars:
            continue
        if was.co_code == becomes.co_code and was.co_consts == becomes.co_consts and was.co_names == becomes.co_names:
            continue
        closures = [f for f in gc.get_referrers(was) if isinstance(f, FunctionType) and f.__code__ is was]
        changes += [(closure, (becomes, closure.__defaults__, closure.__kwdefaults__)) for closure in closures]
    return changes


def _defaults(function: FunctionType, old: str, new: str) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
    """Return the defaults of a function's parameters, those computed anew whose text has changed."""
    before, after = (ast.parse(source).body[0] for source in (old, new))
    assert isinstance(before, ast.FunctionDef) and isinstance(after, ast.FunctionDef)

    def value(was: ast.expr, becomes: ast.expr, had: Any) -> Any:
        if ast.dump(was) == ast.dump(becomes):
            return had
        return eval(ast.unparse(becomes), function.__globals__)  # noqa: S307 - an edit of our own source

    def values(name: str, had: Sequence[Any]) -> list[Any]:
        pairs = zip(getattr(before.args, name), getattr(after.args, name), strict=True)
        given = [(was, becomes) for was, becomes in pairs if was is not None]
        return [value(*pair, one) for pair, one in zip(given, had, strict=True)]

    keywords = function.__kwdefaults__
    named = None if keywords is None else dict(zip(keywords, values("kw_defaults", [*keywords.values()]), strict=True))
    plain = function.__defaults__
    return None if plain is None else tuple(values("defaults", plain)), named


def _compile(function: FunctionType, source: str) -> CodeType:
    """Return the code of the function in `source`, as if it stood where the function does."""
    lines = 0
    if "." in function.__qualname__.rpartition("<locals>.")[2]:
        source = "class Owner:\n" + textwrap.indent(source, "    ")
        lines = 1
    blank = "\n" * max(function.__code__.co_firstlineno - 1 - lines, 0)
    flags = __future__.annotations.compiler_flag
    code = compile(blank + source, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    return next(c for c in _inner(code) if c.co_name == function.__name__)


def _inner(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inner(constant)


def _stale(mutant: Mutant, what: str) -> StaleMutantError:
    return StaleMutantError(f"the mutant {mutant.name!r} is stale: {what}", remedy="write it anew for today's source")
