"""Mutation operators: small changes of the source of one function, enumerated from its syntax tree.

Annotations, assertions, messages, names and locations, which have no effect on programs, are not changed, nor is the
order of operands that a pattern matches in both orders, of two things that are asked to be equal, or of what `in` and
`isinstance` look through.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from ir.builder import short_opdef
from ir.errors import InputError
from ir.opdef import Trait, get_opdef

_SILENT = frozenset({"location", "name", "names", "strict", "warn", "near"})
"""Keywords that affect no computation: without them, a message or a name changes, or nothing."""
_MESSAGES = frozenset({"Refusal", "Remark"})
_TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
_WORDS: dict[type[ast.AST], str] = {ast.And: "and", ast.Or: "or"}
_ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
_CALLS = {"any": "all", "all": "any", "min": "max", "max": "min"}
_DROPPED_CALLS = frozenset({"sorted", "reversed", "abs"})
_TORCH = {
    "float64": "float32",
    "float32": "float64",
    "int64": "int32",
    "bool": "int64",
    "contiguous_format": "preserve_format",
    "preserve_format": "contiguous_format",
    "channels_last": "contiguous_format",
}
_SYMMETRIC = {
    **dict.fromkeys(("dims_equal", "shapes_equal", "types_equal", "types_agree", "attributes_equal", "equal"), 0),
    "require_equal": 0,
    "strides_equal": 1,
}
"""Functions that ask whether two things are equal -> the place of the first one."""
_TYPED = frozenset({"isinstance", "getattr", "map", "zip"})
"""Functions that raise at once for another order of arguments."""
_LOOKS_THROUGH = frozenset({"isinstance", "issubclass", "set", "frozenset", "any", "all"})
_LABEL = 110

Replacement = tuple[ast.AST, ast.AST | str, str]
"""The node to replace, its replacement, and the change in words; empty for `old -> new`."""


@attrs.frozen
class Edit:
    """One change of a function's source text."""

    operator: str
    at: int
    """Where `old` starts in the source."""
    old: str
    new: str
    label: str
    """The change in words, without its place in the function."""


def _conditions(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.If):
        yield node.test, "False", f"never {ast.unparse(node.test)}"
        last = node.body[-1]
        if isinstance(last, ast.Return) and (last.value is None or ast.unparse(last.value) in ("None", "True")):
            yield node.test, "True", f"always {ast.unparse(node.test)}"
    elif isinstance(node, ast.IfExp):
        yield node, node.body, f"always {ast.unparse(node.test)}"
        yield node, node.orelse, f"never {ast.unparse(node.test)}"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield test, "True", f"always {ast.unparse(test)}"


def _connectives(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.BoolOp):
        for i, operand in enumerate(node.values):
            rest = [value for j, value in enumerate(node.values) if j != i]
            left = rest[0] if len(rest) == 1 else _with(node, values=rest)
            yield node, left, f"without {ast.unparse(operand)} of `{_WORDS[type(node.op)]}`"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, node.operand, ""


def _comparisons(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and not ast.unparse(node).endswith("_BOUND"):
        yield node, _with(node, ops=[_TURNED[type(node.ops[0])]()]), ""


def _quantifiers(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        if node.func.id in _CALLS:
            yield node, _with(node, func=ast.Name(_CALLS[node.func.id])), ""
        if node.func.id in _DROPPED_CALLS:
            yield node, node.args[0], ""


def _integers(node: ast.AST) -> Iterator[Replacement]:
    number = _integer(node)
    if number is not None:
        for other in (number + 1, number - 1):
            if number or other > 0:
                yield node, str(other), ""


def _arithmetic(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.BinOp):
        if type(node.op) in _TURNED:
            yield node, _with(node, op=_TURNED[type(node.op)]()), ""
        if isinstance(node.op, _ORDERED):
            yield node, _with(node, left=node.right, right=node.left), ""


def _booleans(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, str(not node.value), ""


def _dtypes(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        other = _TORCH.get(node.attr)
        if other is not None:
            yield node, f"torch.{other}", ""


def _keywords(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg not in _SILENT:
                rest = [other for other in node.keywords if other is not keyword]
                what = ast.unparse(keyword)
                yield node, _with(node, keywords=rest), f"without {what} in {ast.unparse(node.func)}(...)"


def _orders(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Call) and (callee := ast.unparse(node.func)) not in _TYPED:
        short = callee.rpartition(".")[2]
        for args, what in _swapped(node.args, short in ("op", "call"), but=_SYMMETRIC.get(short)):
            yield node, _with(node, args=args), f"{what} in {callee}(...)"
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and not _lists_operators(node.elts):
        for elements, what in _swapped(node.elts):
            yield node, _with(node, elts=elements), what


def _reasons(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield node.value, "None", f"return None, not {ast.unparse(node.value)}"


def _statements(node: ast.AST) -> Iterator[Replacement]:
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield node, "pass", f"without {ast.unparse(node)}"


OPERATORS: dict[str, Callable[[ast.AST], Iterator[Replacement]]] = {
    "condition": _conditions,
    "connective": _connectives,
    "comparison": _comparisons,
    "quantifier": _quantifiers,
    "integer": _integers,
    "arithmetic": _arithmetic,
    "boolean": _booleans,
    "dtype": _dtypes,
    "keyword": _keywords,
    "order": _orders,
    "reason": _reasons,
    "statement": _statements,
}
"""Name -> its changes of a node."""


def edits(source: str, *, inner: bool = False) -> list[Edit]:
    """Return all changes of a function in source order, without duplicates.

    Args:
        source: the function, not indented.
        inner: whether only the functions that it defines are changed.
    """
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    starts, encoded = _line_starts(source), source.encode()
    builders, unordered = _pattern_builders(function), _looked_through(function)
    found: dict[tuple[int, str, str], Edit] = {}
    owners: list[ast.AST] = [n for n in function.body if isinstance(n, ast.FunctionDef)] if inner else [function]
    for node in (node for owner in owners for node in _nodes(owner)):
        for operator, changes in OPERATORS.items():
            if operator == "reason" and not _gives_reasons(function):
                continue
            for old, new, label in changes(node):
                if operator == "order" and (old in unordered or _matches_in_both_orders(old, new, builders)):
                    continue
                begin, end = _span(old, starts)
                text, at = encoded[begin:end].decode(), len(encoded[:begin].decode())
                written = new if isinstance(new, str) else ast.unparse(new)
                words = " ".join((label or f"{ast.unparse(old)} -> {written}").split())
                short = words if len(words) <= _LABEL else words[: _LABEL - 1] + "…"
                inserted = written if isinstance(new, str) else f"({written})"
                found.setdefault((at, text, written), Edit(operator, at, text, inserted, short))
    return list(found.values())


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a node that compute something."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Assert | ast.Raise | ast.JoinedStr):
                continue
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in _MESSAGES:
                continue
            if isinstance(child, ast.keyword) and child.arg in _SILENT:
                continue
            yield child
            if _integer(child) is None:
                yield from _nodes(child)


def _gives_reasons(function: ast.FunctionDef) -> bool:
    """Return whether the function returns the reason of a refusal, or None."""
    returns = "" if function.returns is None else ast.unparse(function.returns)
    return function.name == "check" or ("str" in returns and "None" in returns)


def _looked_through(function: ast.FunctionDef) -> set[ast.AST]:
    """Return the tuples whose order says nothing: right of `in`, types of `isinstance`, in sets, for `any`, `all`."""
    found: set[ast.AST] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Compare) and isinstance(node.ops[-1], ast.In | ast.NotIn):
            found.add(node.comparators[-1])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _LOOKS_THROUGH:
            found |= {arg.generators[0].iter if isinstance(arg, ast.GeneratorExp) else arg for arg in node.args[-1:]}
    return found


def _pattern_builders(function: ast.FunctionDef) -> set[str]:
    """Return the names of the parameters that patterns are written with."""
    given = function.args.args
    named = {arg.arg for arg in given if arg.annotation is not None and "PatternBuilder" in ast.unparse(arg.annotation)}
    return named | {arg.arg for arg in given[1:2] if function.name == "pattern"}


def _matches_in_both_orders(old: ast.AST, new: ast.AST | str, builders: set[str]) -> bool:
    """Return whether a change swaps the first two operands of a commutative operator in a pattern."""
    if not (isinstance(old, ast.Call) and isinstance(new, ast.Call) and isinstance(old.func, ast.Attribute)):
        return False
    owner, method, args = old.func.value, old.func.attr, old.args
    if not (isinstance(owner, ast.Name) and owner.id in builders):
        return False
    first = 1 if method == "op" else 0
    if old.args[first + 2 :] != new.args[first + 2 :] or old.args[:first] != new.args[:first]:
        return False
    names = [n.value for n in ast.walk(args[0]) if isinstance(n, ast.Constant)] if method == "op" else [method]
    return bool(names) and all(isinstance(name, str) and _commutes(name) for name in names)


def _commutes(name: str) -> bool:
    try:
        opdef = get_opdef(name) if "." in name else short_opdef(name)
    except InputError:
        return False
    return opdef.has(Trait.COMMUTATIVE)


def _integer(node: ast.AST) -> int | None:
    """Return the value of an integer literal, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _integer(node.operand)
        return None if number is None else -number
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def _swapped(items: Sequence[ast.expr], fixed: int = 0, but: int | None = None) -> Iterator[tuple[list[ast.expr], str]]:
    """Yield the items with two neighbors swapped, and the swap in words.

    The first `fixed` ones stay, and so does that of number `but` with the next one.
    """
    for i in range(fixed, len(items) - 1):
        one, other = ast.unparse(items[i]), ast.unparse(items[i + 1])
        if one != other and i != but:
            yield [*items[:i], items[i + 1], items[i], *items[i + 2 :]], f"{one} <-> {other}"


def _lists_operators(items: Sequence[ast.expr]) -> bool:
    """Return whether the items are names of operators, of which a pattern takes any: their order says nothing."""
    names = [item for item in items if not isinstance(item, ast.Starred)]
    return bool(names) and all(map(_names_operator, names))


def _names_operator(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _line_starts(source: str) -> list[int]:
    """Return the start of each line in bytes, the unit of columns in a syntax tree."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _span(node: Any, starts: Sequence[int]) -> tuple[int, int]:
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
