"""The guard of an emitted module, which checks arguments before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.utils import _pytree as pytree
from typing_extensions import override

from compiler.emitted.forward_code import other_order
from compiler.emitted.settings import SETTINGS, agree, answers_of
from compiler.usercode.overlap import may_overlap
from ir.errors import CaptureError, InputError
from ir.expressions import Formula, evaluate_formula, format_expression, formula_of, linear_solution
from ir.program import Surrounding, SymbolRange
from ir.types import Dim, ScalarType, TensorType, Type


@attrs.frozen
class Leaves:
    """The step of a path into an object that pytree knows and Python cannot index."""


@attrs.frozen
class Check:
    """What is checked of one leaf of the arguments.

    Attributes:
        rank: number of dimensions; None where it is not known.
        dtype: the dtype, of which the kind is checked; None where it is not known.
    """

    name: str
    """As a user writes it: `x`, `cache['k']`."""
    parameter: int
    """Number of the parameter of `forward`."""
    path: tuple[Any, ...] = ()
    """Keys that lead from the parameter to the leaf."""
    expected: str = ""
    """Text of the expected type."""
    shape: tuple[int, ...] | None = None
    """The shape, where it is known and all its dimensions are ints."""
    rank: int | None = None
    dims: tuple[tuple[int, Formula], ...] = ()
    """Dimensions to compare, where the shape is not static: (number, expected size)."""
    binds: tuple[tuple[int, str, int, int], ...] = ()
    """Dimensions that give symbols their sizes: (number, symbol, a, b) where the size is a*symbol + b."""
    dtype: torch.dtype | None = None
    length: int | None = None
    """For a container instead of a tensor: how many entries it has."""
    container: str = ""
    """For a container: its class, which the model may ask for."""
    keys: tuple[Any, ...] = ()
    """For a mapping whose order matters: its keys."""
    structure: str = ""
    """For an object that only pytree can take apart: the text of its structure."""
    constant: tuple[Any, ...] = ()
    """For an argument that is not a tensor: the value that the capture fixed, in a tuple."""
    scalar: str = ""
    """For a number that the program takes at run time: its kind."""
    accepts: tuple[str, ...] = ()
    """What it may be besides a tensor."""
    written: bool = False
    """Whether the program mutates the tensor: no other argument may share its memory then."""


_ACCEPTED: dict[str, Callable[[Any], bool]] = {
    "none": lambda value: value is None,
    "sequence": lambda value: isinstance(value, (tuple, list)),
    "mapping": lambda value: isinstance(value, Mapping),
    "any": lambda value: True,
}

_NUMBERS: dict[str, Any] = {
    "bool": (bool, torch.SymBool),
    "int": (int, torch.SymInt),
    "float": (float, torch.SymFloat),
}


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "int"


class InputGuard(nn.Module):
    """Raises an InputError where arguments do not fit the types that a program was compiled for.

    Sizes and the equalities between them are checked exactly. Of a dtype only its kind (float, complex, int, bool)
    is, so a module converted with `.to(torch.float64)` takes float64 inputs. What was unknown at compile time is not
    checked.

    Attributes:
        checks: what is checked of each leaf of the arguments.
        ranges: (symbol, least size, greatest size or None).
        relations: (formula that must hold, the symbols in it, its text).
    """

    # fx removes calls with unused results, unless the module declares an effect
    _is_impure = True

    def __init__(
        self,
        checks: Sequence[Check],
        ranges: Sequence[tuple[str, int, int | None]],
        relations: Sequence[tuple[Formula, frozenset[str], str]] = (),
    ) -> None:
        super().__init__()
        self.checks = tuple(checks)
        self.ranges = tuple(ranges)
        self.relations = tuple(relations)
        self.surroundings: Mapping[str, Surrounding] = {}
        """Surroundings in which the module must not run: the original behaves otherwise there."""
        # Single tensors of known shape go through the shortest loop.
        self._static = tuple(
            (c.parameter, c.shape, c.dtype, c) for c in self.checks if c.shape is not None and not c.path
        )
        self._others = tuple(c for c in self.checks if c.shape is None or c.path)
        self._writes = any(c.written for c in self.checks)

    @override
    def forward(self, *parameters: Any) -> None:
        """Check the arguments of the module's `forward`, in the order of its parameters.

        Raises:
            InputError: naming the argument, what was expected and what was given.
        """
        if self.surroundings:
            self._check_surroundings(parameters)
        for number, shape, dtype, check in self._static:
            value = parameters[number]
            if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != dtype:
                self._check_tensor(check, value, {})
        if self._others:
            sizes: dict[str, Any] = {}
            for check in self._others:
                self._check(check, parameters, sizes)
            for name, lower, upper in self.ranges:
                if name in sizes and (sizes[name] < lower or (upper is not None and sizes[name] > upper)):
                    limit = f"at least {lower}" if upper is None else f"in [{lower}, {upper}]"
                    raise InputError(
                        f"the size `{name}` of the inputs is {sizes[name]}, and must be {limit}",
                        remedy="compile with a wider range in `dynamic_shapes=`",
                    )
            for relation, names, text in self.relations:
                if names <= sizes.keys() and not evaluate_formula(relation, sizes):
                    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
                    raise InputError(
                        f"the inputs have sizes {shown}, and the model was captured for those where {text}",
                        remedy="make it independent of these sizes, or compile it for them as well",
                    )
            for check in self._others:
                if check.dims:
                    self._check_dims(check, parameters, sizes)
        if self._writes and not torch.compiler.is_compiling():
            self._check_sharing(parameters)

    def _check_surroundings(self, parameters: tuple[Any, ...]) -> None:
        for name, surrounding in self.surroundings.items():
            if _is_in(name, surrounding, parameters):
                place = f" ({surrounding.place})" if surrounding.place else ""
                setting = SETTINGS[name]
                raise InputError(
                    f"the model was captured {setting.text}: it asks{place}, and computes something else otherwise",
                    remedy=setting.remedy,
                )

    def _check_sharing(self, parameters: tuple[Any, ...]) -> None:
        """Refuse arguments that share memory with one that the program mutates: it treats them as distinct."""
        leaves = [(check, _leaf(check, parameters[check.parameter])) for check in self.checks if check.length is None]
        tensors = [(check, leaf) for check, leaf in leaves if type(leaf) is torch.Tensor]
        for check, tensor in tensors:
            for other, leaf in tensors if check.written else ():
                if other is not check and may_overlap(tensor, leaf):
                    raise InputError(
                        f"input `{check.name}` is mutated in forward, and shares its memory with `{other.name}`",
                        remedy="pass tensors with memory of their own (`.clone()`)",
                    )

    def _check(self, check: Check, parameters: tuple[Any, ...], sizes: dict[str, Any]) -> None:
        value = parameters[check.parameter]
        if isinstance(value, fx.Proxy):
            return  # traced symbolically: there is nothing to compare, and no branch may depend on it
        value = _leaf(check, value)
        if check.container and container_name(type(value)) != check.container:
            raise InputError(
                f"argument `{check.name}` is a {container_name(type(value))}, but the program was compiled for a"
                f" {check.container}, and the model may ask which it is",
                remedy=f"pass a {check.container}, or transform the model with an argument like this one",
            )
        if check.length is not None:
            if not hasattr(value, "__len__") or len(value) != check.length:
                raise _mismatch(check, f"has {_count(value)}", f"{check.length} entries")
            if check.keys and tuple(value) != check.keys and set(value) == set(check.keys):
                raise other_order(f"the keys of argument `{check.name}`", value, check.keys)
        elif check.structure:
            if str(pytree.tree_structure(value)) != check.structure:
                raise _mismatch(check, f"is a {type(value).__name__} of another structure", "that of the example")
        elif check.constant:
            value = _untraced(value)
            if not _same_constant(value, check.constant[0]):
                raise InputError(
                    f"argument `{check.name}` is {_shown(value)}, but the program was compiled for "
                    f"{check.constant[0]!r}",
                    remedy="transform the model with this value among the example inputs",
                )
        elif check.scalar:
            # a bool is an int, and makes other dtypes
            if not isinstance(value, _NUMBERS[check.scalar]) or (isinstance(value, bool) and check.scalar != "bool"):
                raise _mismatch(check, f"is a {type(value).__name__}", check.expected)
            for _, symbol, a, b in check.binds:
                sizes[symbol] = (value - b) // a
        elif not check.container:
            self._check_tensor(check, value, sizes)

    def _check_tensor(self, check: Check, value: Any, sizes: dict[str, Any]) -> None:
        if isinstance(value, fx.Proxy):
            return
        if not isinstance(value, torch.Tensor):
            if any(_ACCEPTED[kind](value) for kind in check.accepts):
                return
            if type(value).__module__ == "numpy":
                raise InputError(
                    f"input `{check.name}` is an array of NumPy, but the program was compiled for {check.expected}",
                    remedy=f"pass a tensor: `torch.from_numpy({check.name})`",
                )
            raise _mismatch(check, f"is a {type(value).__name__}", check.expected)
        if check.dtype is not None and value.dtype != check.dtype and _kind(value.dtype) != _kind(check.dtype):
            raise _mismatch(check, f"has dtype {value.dtype}", check.expected)
        if check.shape is not None:
            if value.shape != check.shape:
                raise _mismatch(check, f"has shape {list(value.shape)}", check.expected)
            return
        if check.rank is not None and value.dim() != check.rank:
            raise _mismatch(check, f"has {value.dim()} dimensions", check.expected)
        for number, symbol, a, b in check.binds:
            sizes[symbol] = (value.shape[number] - b) // a

    def _check_dims(self, check: Check, parameters: tuple[Any, ...], sizes: dict[str, Any]) -> None:
        value = parameters[check.parameter]
        if isinstance(value, fx.Proxy):
            return
        value = _leaf(check, value)
        for number, formula in check.dims:
            if value.shape[number] != evaluate_formula(formula, sizes):
                shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
                where = f" where {shown}" if shown else ""
                raise _mismatch(check, f"has shape {list(value.shape)}", check.expected + where)

    def extra_repr(self) -> str:
        """Return the expected types."""
        return ", ".join(f"{c.name}: {c.expected}" for c in self.checks if c.expected)


def _is_in(name: str, surrounding: Surrounding, parameters: tuple[Any, ...]) -> bool:
    """Return whether a call is made in surroundings."""
    if name in ("no_grad", "nested"):
        return not torch.is_grad_enabled()
    if name == "inference_mode":
        return torch.is_inference_mode_enabled()
    if name == "autocast":
        return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return not agree(name, surrounding.answers, answers_of(name, parameters))


def _leaf(check: Check, value: Any) -> Any:
    for key in check.path:
        try:
            value = pytree.tree_leaves(value) if isinstance(key, Leaves) else value[key]
        except (KeyError, IndexError, TypeError):
            raise InputError(
                f"argument `{check.name}` is missing", remedy="pass the same structure as in the example inputs"
            ) from None
    return value


def _same_constant(value: Any, constant: Any) -> bool:
    """Whether an argument is the constant, of the same type; fx has its own lists and dicts."""
    if isinstance(constant, (tuple, list)):
        same = isinstance(value, list) if isinstance(constant, list) else type(value) is type(constant)
        return same and len(value) == len(constant) and all(map(_same_constant, value, constant))
    if isinstance(constant, dict):
        return isinstance(value, dict) and _same_constant(list(value.items()), list(constant.items()))
    return type(value) is type(constant) and bool(value == constant or (value != value and constant != constant))


def _untraced(value: Any) -> Any:
    """Return the number that `torch.jit.trace` (and the ONNX exporter built on it) passes as a tensor."""
    if not isinstance(value, torch.Tensor) or value.dim() != 0 or torch._C._get_tracing_state() is None:
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the trace does not depend on it is as it should be
        return value.item()


def container_name(kind: type[Any]) -> str:
    """Return the name of a class of containers: fx has its own lists and dicts, and pytree makes tuples of sizes."""
    if issubclass(kind, list):
        return "list"
    if issubclass(kind, immutable_dict):
        return "dict"
    if kind is torch.Size:
        return "tuple"
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.dim():
        return f"a tensor of {value.dtype} with shape {list(value.shape)}"
    return repr(value)


def _count(value: Any) -> str:
    return f"{len(value)} entries" if hasattr(value, "__len__") else f"no entries, being a {type(value).__name__}"


def _mismatch(check: Check, given: str, expected: str) -> InputError:
    return InputError(
        f"input `{check.name}` {given}, but the program was compiled for {expected}",
        remedy="transform the model with an example like this input, or make the dimensions that vary symbolic"
        " with `dynamic_shapes=`",
    )


def tensor_check(
    name: str, parameter: int, path: tuple[Any, ...], type_: Type, bound: dict[sympy.Symbol, None]
) -> Check:
    """Return the check of one leaf; add the symbols that it binds to `bound`."""
    if isinstance(type_, ScalarType):
        scalar_binds: list[tuple[int, str, int, int]] = []
        if isinstance(type_.value, sympy.Expr) and (found := _binding(type_.value, bound)):
            scalar_binds.append((0, *found))
        return Check(name, parameter, path, str(type_), binds=tuple(scalar_binds), scalar=type_.kind)
    if not isinstance(type_, TensorType) or type_.shape is None:
        dtype = type_.dtype if isinstance(type_, TensorType) else None
        return Check(name, parameter, path, str(type_), dtype=dtype)
    shape = type_.shape
    if all(type(d) is int for d in shape):
        static = tuple(d for d in shape if isinstance(d, int))
        return Check(name, parameter, path, str(type_), shape=static, rank=len(shape), dtype=type_.dtype)
    binds: list[tuple[int, str, int, int]] = []
    dims: list[tuple[int, Formula]] = []
    for number, dim in enumerate(shape):
        if isinstance(dim, int):
            dims.append((number, ("int", dim)))
        elif dim is not None and (formula := formula_of(dim)) is not None:
            found = _binding(dim, bound)
            if found is not None:
                binds.append((number, *found))
            if found is None or found[1:] != (1, 0):
                dims.append((number, formula))
    return Check(name, parameter, path, str(type_), None, len(shape), tuple(dims), tuple(binds), type_.dtype)


def _binding(dim: Dim, bound: dict[sympy.Symbol, None]) -> tuple[str, int, int] | None:
    """Return how `dim` gives a symbol its size, unless the symbol has one."""
    solution = linear_solution(dim) if isinstance(dim, sympy.Expr) else None
    if solution is None or solution[0] in bound:
        return None
    symbol, a, b = solution
    bound[symbol] = None
    return symbol.name, a, b


def checked_ranges(symbols: Mapping[sympy.Symbol, SymbolRange]) -> tuple[tuple[str, int, int | None], ...]:
    """Return the ranges that a size could break; no size is negative."""
    return tuple(
        (symbol.name, range_.lower, range_.upper)
        for symbol, range_ in symbols.items()
        if range_.lower > 0 or range_.upper is not None
    )


def checked_relations(
    constraints: Sequence[sympy.Basic], bound: Mapping[sympy.Symbol, None]
) -> tuple[tuple[Formula, frozenset[str], str], ...]:
    """Return the relations between symbols, each with the names of these and its text.

    Raises:
        CaptureError: when the inputs do not give the sizes, so that a relation cannot be checked.
    """
    found = []
    for constraint in constraints:
        formula, text = formula_of(constraint), format_expression(constraint)
        if formula is None or not constraint.free_symbols <= set(bound):
            raise CaptureError(
                f"the model was captured for sizes where {text}, which cannot be asked of its inputs",
                remedy="leave these dimensions out of dynamic_shapes=",
            )
        found.append((formula, frozenset(symbol.name for symbol in constraint.free_symbols), text))
    return tuple(found)


def drop_unbound(checks: Sequence[Check], bound: Mapping[sympy.Symbol, None]) -> tuple[Check, ...]:
    """Return the checks without comparisons of symbols that no input binds."""
    names = {symbol.name for symbol in bound}

    def known(formula: Formula) -> bool:
        if formula[0] == "sym":
            return formula[1] in names
        return all(known(part) for part in formula[1:] if isinstance(part, tuple))

    return tuple(attrs.evolve(c, dims=tuple(d for d in c.dims if known(d[1]))) for c in checks)
