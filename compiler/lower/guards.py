"""Guards of torch.export: relations between sizes under which the graph is right."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from traceback import FrameSummary
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from compiler.capture.captured import Traced
from compiler.capture.lean_tracing import PRIMS
from ir.expressions import linear_solution
from ir.program import SymbolRange

Guard = tuple[sympy.Basic, str]
"""A relation over torch's symbols, and the line of the user's code that made it (empty if unknown)."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.USub: operator.neg,
}


class UnreadableGuardError(Exception):
    """The text of a guard is not understood."""


def guards_of(traced: Traced, env: ShapeEnv) -> Iterator[Guard]:
    """Yield the guards of an exported program; those of one that was loaded are only there as text.

    The operators of the graph look at strides themselves when they run, so guards about strides are left out.

    Args:
        traced: the program.
        env: the shape environment of its fake tensors.

    Raises:
        UnreadableGuardError: when a text is not understood.
    """
    about_strides = traced.stride_guards.get(env, ())
    for number, guard in enumerate(env.guards):
        place = getattr(guard.sloc, "framework_loc", None)
        is_about_strides = number in about_strides or getattr(place, "filename", "") == PRIMS
        if isinstance(guard.expr, sympy.Eq) or not is_about_strides:
            line = place.line if isinstance(place, FrameSummary) else None
            yield env.simplify(guard.expr), (line or "").strip()
    if not env.guards and (texts := getattr(traced.exported, "_guards_code", None)):
        inputs = _inputs(traced.exported)
        for text in texts:
            relation = _read(ast.parse(text, mode="eval").body, inputs, text)
            if isinstance(relation, torch.SymBool):
                yield env.simplify(relation.node.expr), ""


def _inputs(exported: ExportedProgram) -> dict[str, Any]:
    """Return the fake inputs by the names of `forward`'s parameters."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    flat = [values.get(getattr(spec.arg, "name", "")) for spec in exported.graph_signature.input_specs]
    flat = flat[len(flat) - len(exported.graph_signature.user_inputs) :]
    signature = exported.module_call_graph[0].signature
    if signature is None or signature.forward_arg_names is None:
        return {}
    args, kwargs = pytree.tree_unflatten(flat, exported.call_spec.in_spec)
    return {**dict(zip(signature.forward_arg_names, args, strict=False)), **kwargs}


def _read(node: ast.AST, inputs: Mapping[str, Any], text: str) -> Any:
    """Return the value of an expression over sizes: `(L['x'].size()[1] % 2) == 0`."""
    match node:
        case ast.Constant(value=int() | str() as value):
            return value
        case ast.Name(id="L"):
            return inputs
        case ast.Subscript(value=value, slice=key):
            try:
                return _read(value, inputs, text)[_read(key, inputs, text)]
            except (KeyError, IndexError, TypeError) as error:
                raise UnreadableGuardError(text) from error
        case ast.Call(func=ast.Attribute(value=value, attr="size"), args=[]):
            return _read(value, inputs, text).shape
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=[first, second]):
            choose: Callable[[Any, Any], Any] = torch.sym_max if name == "max" else torch.sym_min
            return choose(_read(first, inputs, text), _read(second, inputs, text))
        case ast.UnaryOp(op=ast.USub(), operand=value):
            return -_read(value, inputs, text)
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](_read(left, inputs, text), _read(right, inputs, text))
    raise UnreadableGuardError(text)


def follows_from(relation: sympy.Basic, ranges: Mapping[sympy.Symbol, SymbolRange]) -> bool:
    """Return whether a relation certainly holds for all sizes in the ranges."""
    if not isinstance(relation, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt)):
        return False
    solution = linear_solution(relation.gts - relation.lts)
    if solution is None:
        return False
    symbol, slope, offset = solution
    bounds = ranges.get(symbol, SymbolRange())
    # the difference is least at one end of the range
    end = bounds.lower if slope > 0 else bounds.upper
    least = None if end is None else slope * end + offset
    return least is not None and (least > 0 or (least == 0 and not isinstance(relation, (sympy.Gt, sympy.Lt))))
