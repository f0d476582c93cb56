"""Types of values: tensors with explicit shapes, and scalars."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, overload

import attrs
import sympy
import torch

from ir.expressions import format_expression

Dim: TypeAlias = int | sympy.Expr
"""A known dimension: an int, or an expression over the program's symbols."""

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.uint32: "u32",
    torch.uint64: "u64",
    torch.bool: "bool",
    torch.complex32: "c32",
    torch.complex64: "c64",
    torch.complex128: "c128",
    torch.float8_e4m3fn: "f8e4m3fn",
    torch.float8_e5m2: "f8e5m2",
    torch.qint8: "qi8",
    torch.quint8: "qu8",
    torch.qint32: "qi32",
}
DTYPES_BY_NAME: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}

CPU = torch.device("cpu")


@attrs.frozen(slots=True)
class TensorType:
    """The type of a tensor value.

    Unknown parts occur only in programs from FX graphs without shapes.

    Attributes:
        shape: a size for each dimension, None for an unknown one; None where the rank is unknown.
        dtype: None where it is unknown.
        device: None where it is unknown.
    """

    shape: tuple[Dim | None, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = CPU

    @property
    def rank(self) -> int | None:
        """The number of dimensions, or None."""
        return None if self.shape is None else len(self.shape)

    @property
    def is_known(self) -> bool:
        """Whether dtype and every dimension are known (symbolic ones count as known)."""
        return self.shape is not None and self.dtype is not None and None not in self.shape

    @property
    def is_static(self) -> bool:
        """Whether dtype is known and every dimension is an int."""
        return self.shape is not None and self.dtype is not None and all(type(d) is int for d in self.shape)

    @property
    def numel(self) -> Dim | None:
        """The number of elements, or None where a dimension is unknown."""
        return None if self.shape is None else product(self.shape)

    def __str__(self) -> str:
        return format_type(self)


@attrs.frozen(slots=True)
class ScalarType:
    """The type of a scalar value.

    Attributes:
        kind: `int`, `float` or `bool`.
        value: the value, where it is known: a number or a symbolic expression.
    """

    kind: str
    value: Dim | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}({format_dim(self.value)})"


@attrs.frozen(slots=True)
class OpaqueType:
    """The type of a result of an opaque call that is neither a tensor nor a scalar."""

    def __str__(self) -> str:
        return "opaque"


Type = TensorType | ScalarType | OpaqueType

UNKNOWN_TENSOR = TensorType(None, None, None)


def simplify_dim(dim: Dim) -> Dim:
    """Return `dim` in expanded form, as a plain int if it is constant."""
    if type(dim) is int:
        return dim
    if isinstance(dim, int | numbers.Integral):  # a bool, NumPy's, SymPy's
        return int(dim)
    if dim.is_Symbol:
        return dim
    expanded = sympy.expand(dim)
    return int(expanded) if expanded.is_Integer else expanded


@overload
def product(dims: Sequence[Dim]) -> Dim: ...
@overload
def product(dims: Sequence[Dim | None]) -> Dim | None: ...
def product(dims: Sequence[Dim | None]) -> Dim | None:
    """Return the product of sizes, or None if one is unknown."""
    result: Dim = 1
    for dim in dims:
        if dim is None:
            return None
        result = result * dim
    return simplify_dim(result)


def dims_equal(a: Dim | None, b: Dim | None) -> bool:
    """Return whether two dimensions are provably equal for every value of the symbols."""
    if a is None or b is None:
        return False
    if type(a) is int and type(b) is int:
        return a == b
    if a == b:
        return True
    return simplify_dim(a - b) == 0


def shapes_equal(a: tuple[Dim | None, ...] | None, b: tuple[Dim | None, ...] | None) -> bool:
    """Return whether two shapes are known and provably equal."""
    if a is None or b is None or len(a) != len(b):
        return False
    if a == b and None not in a:
        return True
    return all(dims_equal(x, y) for x, y in zip(a, b, strict=True))


def types_equal(a: Type, b: Type) -> bool:
    """Return whether two types are the same; symbolic dimensions may be written differently."""
    return _match(a, b, _same)


def types_agree(a: Type, b: Type) -> bool:
    """Return whether two types are the same as far as both are known; opaque types agree with all."""
    return isinstance(a, OpaqueType) or isinstance(b, OpaqueType) or _match(a, b, _agree)


def refined(type_: Type, other: Type) -> Type:
    """Return a type with what another one, which agrees with it, knows of a size that depends on data."""
    if not (isinstance(type_, TensorType) and isinstance(other, TensorType) and other.shape):
        return type_
    if type_.is_known or not any(map(data_symbols_in, other.shape)):
        return type_
    if type_.shape is None:
        return attrs.evolve(type_, shape=other.shape)
    dims = [b if a is None and data_symbols_in(b) else a for a, b in zip(type_.shape, other.shape, strict=True)]
    return attrs.evolve(type_, shape=tuple(dims))


def _match(a: Type, b: Type, same: Callable[[Any, Any], bool]) -> bool:
    if a == b:
        return True
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if not same(a.dtype, b.dtype) or not same(a.device, b.device):
            return False
        if a.shape is None or b.shape is None:
            return same(a.shape, b.shape)
        return len(a.shape) == len(b.shape) and all(map(same, a.shape, b.shape))
    if isinstance(a, ScalarType) and isinstance(b, ScalarType):
        return a.kind == b.kind and same(a.value, b.value)
    return False


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (isinstance(a, Dim) and isinstance(b, Dim) and dims_equal(a, b))


def _agree(a: Any, b: Any) -> bool:
    return a is None or b is None or _same(a, b)


def make_symbol(name: str) -> sympy.Symbol:
    """Return the symbol `name`; two symbols of one name are the same symbol."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def is_data_symbol(symbol: sympy.Symbol) -> bool:
    """Return whether a symbol stands for a size that depends on data: `u0`, `u1`, …, as PyTorch names them."""
    name = symbol.name
    return bool(name[:1] == "u" and name[1:].isdigit())


def data_symbols_in(expr: Any) -> set[sympy.Symbol]:
    """Return the symbols of an expression that depend on data; none for what is no expression."""
    return set(filter(is_data_symbol, expr.free_symbols)) if isinstance(expr, sympy.Basic) else set()


def symbols_of(dims: Iterable[Dim | None]) -> list[sympy.Symbol]:
    """Return the symbols that occur in `dims`, sorted by name."""
    found: set[sympy.Symbol] = set()
    for dim in dims:
        if isinstance(dim, sympy.Expr):
            found |= dim.free_symbols
    return sorted(found, key=lambda s: s.name)


def format_dim(dim: Dim | None) -> str:
    """Return the text of a dimension: `3`, `batch`, `2*seq`, `?`."""
    if dim is None:
        return "?"
    return str(dim) if type(dim) is int else format_expression(dim)


def format_type(type_: TensorType) -> str:
    """Return the text of a tensor type: `f32[batch, 3, 224, 224]`, with `@device` unless it is the CPU."""
    if type_ == UNKNOWN_TENSOR:
        return "?"
    dtype = "?" if type_.dtype is None else DTYPE_NAMES.get(type_.dtype) or str(type_.dtype).removeprefix("torch.")
    shape = "*" if type_.shape is None else ", ".join(map(format_dim, type_.shape))
    device = "" if type_.device == CPU else "@?" if type_.device is None else f"@{type_.device}"
    return f"{dtype}[{shape}]{device}"


def type_of_tensor(tensor: torch.Tensor) -> TensorType:
    """Return the type of a real tensor (or of a fake one without symbolic sizes)."""
    return TensorType(tuple(int(d) for d in tensor.shape), tensor.dtype, tensor.device)


def wrap(dim: object, rank: int) -> int | None:
    """Return the number of a dimension, counted from the front; None if it is not an int in range."""
    bound = max(rank, 1)
    if type(dim) is not int or not -bound <= dim < bound:
        return None
    return dim % bound
