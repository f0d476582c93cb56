"""Symbolic sizes such as `2*batch` and `(seq//2) + 1`: their text, read back without `eval`, and formulas of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter
from torch.utils._sympy import functions as torch_functions

from ir.caches import cached

_RELATIONS = {"Eq": sympy.Eq, "Ne": sympy.Ne}
_SYMPY_FUNCTIONS = ("Abs", "ceiling", "exp", "floor", "log", "sign", "sqrt")


def _functions() -> dict[str, Callable[..., Any]]:
    """Return the functions of expressions: PyTorch's functions on sizes, and the few of SymPy that sizes use."""
    plain = {name: getattr(sympy, name) for name in _SYMPY_FUNCTIONS}
    sizes = {
        name: item
        for name, item in vars(torch_functions).items()
        if isinstance(item, type) and issubclass(item, sympy.Basic) and item.__module__ == torch_functions.__name__
    }
    return plain | sizes | _RELATIONS


EXPRESSION_FUNCTIONS: dict[str, Callable[..., Any]] = _functions()


class _ExpressionPrinter(StrPrinter):  # type: ignore[misc] # SymPy has no types
    """Prints every function under its own name, and floats with all digits.

    PyTorch's own printing is ambiguous: `CleanDiv` and `FloorDiv` are both `(a//b)`, and `Identity(a)` is `(a)`.
    """

    printmethod = "_graphwright_text"

    def _print_FloorDiv(self, expr: sympy.Expr) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        tightest = PRECEDENCE["Atom"] - 0.5
        base, divisor = (self.parenthesize(arg, tightest) for arg in expr.args)
        return f"({base}//{divisor})"

    def _print_Identity(self, expr: sympy.Expr) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        return f"Identity({self.stringify(expr.args, ', ')})"

    def _print_IntInfinity(self, expr: sympy.Expr) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        return "int_oo"

    def _print_NegativeIntInfinity(self, expr: sympy.Expr) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        return "-int_oo"

    def _print_Float(self, expr: sympy.Float) -> str:  # noqa: N802 - SymPy looks it up by the class's name
        return repr(float(expr))


@cached(4096)
def format_expression(expr: sympy.Basic) -> str:
    """Return the text of a symbolic expression, deterministic across processes."""
    return str(_ExpressionPrinter().doprint(expr))


def apply_function(name: str, args: list[Any]) -> Any:
    """Return the expression `name(*args)`.

    Raises:
        ValueError: when there is no such function, it does not take the arguments, or the result would be too large.
    """
    function = EXPRESSION_FUNCTIONS.get(name)
    if function is None:
        raise ValueError(f"there is no function {name!r} on symbolic sizes")
    if len(args) > _MAX_ARGUMENTS:
        raise ValueError(f"{name} has more than {_MAX_ARGUMENTS} arguments")
    given = [sympy.sympify(arg) for arg in args]
    if any(map(_is_unevaluated, given)) or (name in _GROW and not all(map(_is_small, given[_GROW[name] :]))):
        raise ValueError(f"{name} of these arguments is too large a number")
    return check_size(_evaluate(name, function, given))


def apply_operator(name: str, a: Any, b: Any) -> Any:
    """Return the expression `a <name> b`.

    Raises:
        ValueError: when the operator does not take the operands, or the result would be too large.
    """
    a, b = (sympy.sympify(operand) if name not in _PLAIN else operand for operand in (a, b))
    if name == "**" and (_is_unevaluated(a) or not _is_small(b)):
        raise ValueError("the power is too large")
    if name in ("/", "//") and b == 0:
        raise ValueError("division by zero")
    return check_size(_evaluate(f"operator {name!r}", BINARY_OPERATORS[name][1], [a, b]))


def negate(value: Any) -> Any:
    """Return `-value`.

    Raises:
        ValueError: when it is not a number.
    """
    return _evaluate("operator '-'", operator.neg, [value])


def _evaluate(what: str, function: Callable[..., Any], args: list[Any]) -> Any:
    try:
        return function(*args)
    except Exception as error:  # text may hold anything, and SymPy may raise anything for it
        raise ValueError(f"{what} does not take these arguments: {str(error) or type(error).__name__}") from error


# Text is untrusted, and a short one may stand for a number that fills the memory. Real sizes are far below these
# bounds: they are below 2**63 and have a few terms.
MAX_BITS = 256
"""Length of the numbers in an expression."""
_MAX_POWER = 64
"""The highest number in an exponent."""
_MAX_TERMS = 500
"""Number of terms of an expanded expression, and of nodes of one before expansion."""
_MAX_ARGUMENTS = 64
_GROW = {"exp": 0, "LShift": 1, "RShift": 1, "PowByNatural": 1, "FloatPow": 1, "RoundDecimal": 1}
"""Functions whose result may be much larger than the arguments -> the first argument that makes it so."""


def check_size(value: Any) -> Any:
    """Return a number or expression.

    Raises:
        ValueError: when it is too large to compute with.
    """
    if type(value) is int:
        if value.bit_length() > MAX_BITS:
            raise ValueError(f"a number of more than {MAX_BITS} bits")
    elif isinstance(value, sympy.Basic) and max(_measure(value)) > _MAX_TERMS:
        raise ValueError(f"an expression of more than {_MAX_TERMS} terms")
    elif isinstance(value, sympy.Basic) and value.has(sympy.I):
        raise ValueError("the result is not a real number")
    return value


@cached(4096)
def _measure(expr: sympy.Basic) -> tuple[int, int]:
    """Return upper bounds of an expression: its terms when expanded, and its nodes."""
    parts = [_measure(arg) for arg in expr.args]
    nodes = 1 + sum(part[1] for part in parts)
    if expr.is_Rational:
        return (1 if max(expr.p.bit_length(), expr.q.bit_length()) <= MAX_BITS else _MAX_TERMS + 1), nodes
    terms = [part[0] for part in parts]
    if expr.is_Add:
        return sum(terms), nodes
    if expr.is_Mul:
        return math.prod(terms), nodes
    if expr.is_Pow and expr.exp.is_Integer:
        power = abs(int(expr.exp))
        return math.comb(power + terms[0] - 1, power) if power <= _MAX_POWER else _MAX_TERMS + 1, nodes
    return max(terms, default=1), nodes


def _is_small(exponent: sympy.Basic) -> bool:
    """Whether every number in an exponent is small."""
    numbers = exponent.atoms(sympy.Number)
    return not _is_unevaluated(exponent) and all(n.is_finite and abs(n) <= _MAX_POWER for n in numbers)


def _is_unevaluated(expr: sympy.Basic) -> bool:
    """Whether an expression is an unevaluated number, such as `exp(3)`, which may be of any size."""
    return not expr.free_symbols and not expr.is_Atom


BINARY_OPERATORS: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "<": (1, sympy.Lt),
    "<=": (1, sympy.Le),
    ">": (1, sympy.Gt),
    ">=": (1, sympy.Ge),
    "+": (2, operator.add),
    "-": (2, operator.sub),
    "*": (3, operator.mul),
    "/": (3, operator.truediv),
    "//": (3, torch_functions.FloorDiv),
    "**": (5, operator.pow),
}
"""Operator -> (binding power, meaning); `**` is right-associative and binds tighter than unary minus."""
_PLAIN = ("+", "-", "*")
"""Operators that take plain Python numbers; the others take SymPy's."""

UNARY_POWER = 4

Formula = tuple[Any, ...]
"""`("sym", name)`, `("int", n)` or `(operator, a, b, …)`: plain data, which PyTorch traces well."""

_PLAIN_OPERATORS = ("add", "mul", "pow", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge")
_FORMULA_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "max": max,
    "min": min,
    **{name: getattr(operator, name) for name in _PLAIN_OPERATORS},
}
_FORMULA_NAMES: dict[Any, str] = {
    sympy.Add: "add",
    sympy.Mul: "mul",
    sympy.Pow: "pow",
    torch_functions.PowByNatural: "pow",
    torch_functions.FloorDiv: "floordiv",
    torch_functions.CleanDiv: "floordiv",
    torch_functions.Mod: "mod",
    torch_functions.PythonMod: "mod",
    torch_functions.Max: "max",
    torch_functions.Min: "min",
    sympy.Eq: "eq",
    sympy.Ne: "ne",
    sympy.Lt: "lt",
    sympy.Le: "le",
    sympy.Gt: "gt",
    sympy.Ge: "ge",
}


def formula_of(expr: sympy.Basic) -> Formula | None:
    """Return an expression over sizes, or a relation, as nested tuples; None where that is not possible."""
    if expr.is_Symbol:
        return ("sym", expr.name)
    if expr.is_Integer:
        return ("int", int(expr))
    name = _FORMULA_NAMES.get(expr.func)
    if name is None or (name == "pow" and not (expr.exp.is_Integer and expr.exp > 0)):
        return None
    parts = [formula_of(arg) for arg in expr.args]
    return None if None in parts else (name, *parts)


def evaluate_formula(formula: Formula, sizes: Mapping[str, Any]) -> Any:
    """Return the value of a formula for given sizes of its symbols."""
    kind, *parts = formula
    if kind == "sym":
        return sizes[parts[0]]
    if kind == "int":
        return parts[0]
    first, *others = [evaluate_formula(part, sizes) for part in parts]
    for other in others:
        first = _FORMULA_OPERATORS[kind](first, other)
    return first


def linear_solution(dim: sympy.Expr) -> tuple[sympy.Symbol, int, int] | None:
    """Return (symbol, a, b) where `dim` is a*symbol + b, or None."""
    symbols = sorted(dim.free_symbols, key=lambda s: s.name)
    if len(symbols) != 1:
        return None
    symbol = symbols[0]
    a = dim.coeff(symbol, 1)
    b = sympy.expand(dim - a * symbol)
    if not (a.is_Integer and b.is_Integer and a != 0):
        return None
    return symbol, int(a), int(b)
