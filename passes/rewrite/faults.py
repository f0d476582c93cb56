"""Errors about rules: the rule, the line of its own code, the fault, and the place in the model."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from ir.core import Graph, Operation, Value
from ir.errors import DidNotConverge, GraphwrightError, PatternError
from ir.locations import Location
from passes.rewrite.effects import is_removable
from passes.rewrite.pattern import Pattern, unscoped

_LAST_EDITS = 8


class RuleFault(PatternError):  # noqa: N818 - users catch `PatternError`; this is how we know our own
    """A rule that raised, or that returned what makes no sense, at one match.

    Attributes:
        is_final: whether it cannot be skipped: it has changed the program before it was to rewrite anything.
    """

    is_final = False


def rule_raised(rule: Pattern, method: str, error: Exception, location: Location | None = None) -> RuleFault:
    """Return the error to raise in place of one that a method of a rule raised; raise it `from` that one."""
    if isinstance(error, GraphwrightError):
        what, remedy = f"failed: {error.message}", error.remedy
        location = location if error.location is None else error.location
    else:
        what, remedy = f"raised {type(error).__name__}: {error}", None
    return rule_fault(rule, method, what, location=location, remedy=remedy, error=error)


def rule_fault(
    rule: Pattern,
    method: str,
    what: str,
    *,
    location: Location | None = None,
    remedy: str | None = None,
    error: Exception | None = None,
) -> RuleFault:
    """Return an error about a method of a rule: `the rewrite of Rule (rules.py:12) ...`."""
    source = source_of(rule, method, error)
    return RuleFault(
        f"the {method} of {rule.name}{f' ({source})' if source else ''} {what}", location=location, remedy=remedy
    )


def changed_early(rule: Pattern, method: str, location: Location) -> RuleFault:
    """Return the error about a `check`, or a condition of a `pattern`, that changed the program."""
    what, remedy = "changed the program", "let `check` only look, and return a reason or None"
    if method == "pattern":
        what, remedy = "has a condition that changed the program", "let `where=` only look at what it is given"
    fault = rule_fault(
        rule,
        method,
        f"{what}, which nothing can undo",
        location=location,
        remedy=f"{remedy}; what is to be changed, `rewrite` changes through its builder",
    )
    fault.is_final = True
    return fault


def source_of(rule: Pattern, method: str, error: Exception | None = None) -> str:
    """Return `file:line` of the rule's own code: where it raised `error`, or else where the method begins.

    Where the rule inherits the method from a base class of ours, its own code is the first of what its class defines;
    the empty string when there is none.
    """
    cls = unscoped(type(rule))
    own = [code for code in map(_code_of, vars(cls).values()) if code is not None]
    defined = _code_of(inspect.getattr_static(cls, method, None))
    if defined is not None and defined not in own and not (own and defined.co_filename.startswith(_OURS)):
        own.insert(0, defined)
    if not own or own[0].co_filename == _PATTERN_FILE:
        return ""
    if error is not None:
        files = {code.co_filename for code in own}
        traceback, found = error.__traceback__, ""
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename in files:
                found = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
            traceback = traceback.tb_next
        if found:
            return found
    code = defined if defined is not None and defined in own else own[0]
    return f"{code.co_filename}:{code.co_firstlineno}"


def did_not_converge(count: int, recent: Sequence[tuple[Pattern, Location]], graph: Graph) -> DidNotConverge:
    """Return the error about rules that go on for ever, of whose rewrites `recent` are the last."""
    rules = Counter(rule.name for rule, _ in recent)
    names = ", ".join(f"{name} ({times} of the last {len(recent)})" for name, times in rules.items())
    who, remedy = "the rules that take turns", "let only one of these rules apply: they undo each other"
    if len(rules) == 1:
        who, remedy = "the rule that goes on", "let its `check` refuse what it builds: it matches its own result"
    edits = "\n".join(f"    {rule.name} at {location.where}" for rule, location in recent[-_LAST_EDITS:])
    return DidNotConverge(
        f"no fixpoint after {count} rewrites of {graph.num_operations} operations; {who}: {names}\n"
        f"  last edits:\n{edits}",
        location=recent[-1][1],
        remedy=remedy,
    )


def raised_at(error: BaseException, file: str) -> str:
    """Return the first line of a traceback that is not in `file`, for a message."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == file:
        trace = trace.tb_next
    return f" (at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""


def _code_of(member: Any) -> CodeType | None:
    function = inspect.unwrap(member) if callable(member) else member
    return function.__code__ if isinstance(function, FunctionType) else None


_PATTERN_FILE = Pattern.pattern.__code__.co_filename
_OURS = str(Path(__file__).parent.parent)


def returned_values(rule: Pattern, returned: Any, location: Location) -> tuple[Value, ...] | None:
    """Return the values that a rewrite returned; None when it says that it replaced what it wanted itself.

    Raises:
        PatternError: when it returned anything else.
    """
    if returned is None or isinstance(returned, Value):
        return None if returned is None else (returned,)
    if isinstance(returned, Operation):
        # `return b.fuse(...)`: a region has taken the place of what it holds
        return None if returned.body is not None else returned.results
    values = tuple(returned) if isinstance(returned, Sequence) and not isinstance(returned, str) else (returned,)
    if all(isinstance(value, Value) for value in values):
        return values
    raise rule_fault(
        rule, "rewrite", f"returned {returned!r}, which is not a value of the graph", location=location, remedy=_RETURN
    )


def without_effect(rule: Pattern, returned: Any, created: Sequence[Operation], location: Location) -> RuleFault | None:
    """Return what is wrong with a rewrite that replaced and changed nothing, or None where it edited the graph itself.

    Args:
        rule: the rule.
        returned: what the rewrite returned: None, or the results that the root has anyway.
        created: the operations it has inserted.
        location: the place in the model.
    """
    what = "None" if returned is None else "what was there before"
    if not created:
        return rule_fault(rule, "rewrite", f"returned {what} and changed nothing", location=location, remedy=_RETURN)
    built = set(created)
    if any(user not in built for op in created for result in op.results for user in result.users):
        return None  # it wired its operations up behind the rewriter's back
    if not all(map(is_removable, created)):
        return None
    names = ", ".join(dict.fromkeys(op.name for op in created))
    return rule_fault(
        rule,
        "rewrite",
        f"built {names} and returned {what}, so nothing uses what it built",
        location=location,
        remedy=f"is a `return` missing? {_RETURN}",
    )


_RETURN = (
    "return the value that replaces the root's result (a tuple where it has several); to leave a match alone, return a "
    "reason from `check`"
)
