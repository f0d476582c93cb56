"""Text of symbolic expressions: sizes such as `2*batch` and `(seq//2) + 1`, written and read back without `eval`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import sympy
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter
from torch.utils._sympy import functions as torch_functions

_RELATIONS = {"Eq": sympy.Eq, "Ne": sympy.Ne}
_SYMPY_FUNCTIONS = ("Abs", "ceiling", "exp", "floor", "log", "sign", "sqrt")


def _functions() -> dict[str, Callable[..., Any]]:
    """Return what an expression may call: PyTorch's functions on sizes, and the few of SymPy that its sizes use."""
    plain = {name: getattr(sympy, name) for name in _SYMPY_FUNCTIONS}
    sizes = {
        name: item
        for name, item in vars(torch_functions).items()
        if isinstance(item, type) and issubclass(item, sympy.Basic) and item.__module__ == torch_functions.__name__
    }
    return plain | sizes | _RELATIONS


EXPRESSION_FUNCTIONS: dict[str, Callable[..., Any]] = _functions()


class _ExpressionPrinter(StrPrinter):  # type: ignore[misc] # SymPy has no types
    """Writes every function under its own name, and floats with all their digits.

    PyTorch's classes print themselves for readers: `CleanDiv` and `FloorDiv` alike as `(a//b)`, `Identity(a)` as `(a)`.
    """

    printmethod = "_graphwright_text"

    def _print_FloorDiv(self, expr: sympy.Expr) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        tightest = PRECEDENCE["Atom"] - 0.5
        base, divisor = (self.parenthesize(arg, tightest) for arg in expr.args)
        return f"({base}//{divisor})"

    def _print_Identity(self, expr: sympy.Expr) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        return f"Identity({self.stringify(expr.args, ', ')})"

    def _print_Float(self, expr: sympy.Float) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        return repr(float(expr))


@functools.lru_cache(maxsize=4096)
def format_expression(expr: sympy.Basic) -> str:
    """Return the text of a symbolic expression, the same in every process."""
    return str(_ExpressionPrinter().doprint(expr))


def apply_function(name: str, args: list[Any]) -> Any:
    """Return the expression `name(*args)`.

    Raises:
        ValueError: when no function has that name, or it does not take the arguments.
    """
    function = EXPRESSION_FUNCTIONS.get(name)
    if function is None:
        raise ValueError(f"there is no function {name!r} on symbolic sizes")
    try:
        return function(*map(sympy.sympify, args))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from error


def _compare(relation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: relation(sympy.sympify(a), sympy.sympify(b))


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise ZeroDivisionError("division by zero")
    return sympy.sympify(a) / b


BINARY_OPERATORS: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "<": (1, _compare(sympy.Lt)),
    "<=": (1, _compare(sympy.Le)),
    ">": (1, _compare(sympy.Gt)),
    ">=": (1, _compare(sympy.Ge)),
    "+": (2, operator.add),
    "-": (2, operator.sub),
    "*": (3, operator.mul),
    "/": (3, _divide),
    "//": (3, lambda a, b: torch_functions.FloorDiv(sympy.sympify(a), sympy.sympify(b))),
    "**": (5, lambda a, b: sympy.sympify(a) ** b),
}
"""Operator -> (binding power, meaning); `**` is right-associative and binds tighter than unary minus."""

UNARY_POWER = 4
