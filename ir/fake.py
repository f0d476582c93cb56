"""Type inference by running the operator on fake tensors: the fallback for operators without a rule."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import GuardSource, Source
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from typing_extensions import override

from ir.attributes import Attribute, Ref, attribute_key, map_leaves
from ir.caches import Cache, cached
from ir.errors import InferenceError
from ir.opdef import OpDef, ParamKind, Trait
from ir.types import (
    UNKNOWN_TENSOR,
    Dim,
    OpaqueType,
    ScalarType,
    TensorType,
    Type,
    data_symbols_in,
    is_data_symbol,
    simplify_dim,
    types_equal,
)

# Distinct primes, so that symbols are not taken for equal to each other or to a size of the model. Large ones, so that
# a dimension that a network divides by 32 is still larger than its kernels. An operator whose result depends on whether
# a symbolic size is small gets the type that it has for large ones.
_HINTS = (2003, 2011, 2017, 2027, 2029, 2039, 2053, 2063, 2069, 2081, 2083, 2087, 2089, 2099, 2111, 2113)
# The hints of a second run differ in what operators branch on: they are even, divisible by 3, and descending. Where the
# runs give different types, the type depends on the number.
_OTHER_HINTS = tuple(range(12 * 250, 12 * 250 - 12 * 16, -12))
_KNOWN: Cache[Any, tuple[Type, ...] | str] = Cache()
"""Operator with the types of its operands and its attributes -> the types of its results, or why it refuses them."""
_MAX_KNOWN = 10_000
# PyTorch logs each refusal with its traceback; here it is an answer, and is raised.
_TORCH_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@attrs.frozen(slots=False)
class _SymbolSource(Source):
    """The source of a size, for messages: one of our symbols. (PyTorch's own sources would load its compiler.)"""

    symbol: str

    @property
    @override
    def guard_source(self) -> GuardSource:
        return GuardSource.CONSTANT

    @property
    @override
    def _name_template(self) -> str:
        return self.symbol


class FakeContext:
    """Fake tensors under one shape environment, for the symbols seen so far."""

    def __init__(self, hints: tuple[int, ...] = _HINTS) -> None:
        self.hints = hints
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)
        # a call runs once (`_KNOWN`), and to note all operators that it consists of costs more than to run them
        self.mode.cache_enabled = False
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._back: dict[sympy.Symbol, sympy.Symbol] = {}
        self._hints: dict[sympy.Symbol, int] = {}

    def size(self, dim: Dim) -> Any:
        """Return a dimension as the int or SymInt that fake tensors use."""
        if isinstance(dim, int):
            return dim
        for symbol in sorted(dim.free_symbols, key=lambda s: s.name):
            if symbol not in self._symbols and is_data_symbol(symbol):
                self._define_from_data(symbol)
            elif symbol not in self._symbols:
                hint = self.hints[len(self._symbols) % len(self.hints)]
                inner = self.shape_env.create_symbol(
                    hint,
                    source=_SymbolSource(symbol.name),
                    dynamic_dim=DimDynamic.DYNAMIC,
                    do_not_specialize_zero_one=True,
                )
                self._symbols[symbol] = inner
                self._back[inner] = symbol
                self._hints[symbol] = hint
        # a size that depends on data has no hint: an operator that asks for one is refused
        known = None if data_symbols_in(dim) else int(dim.subs(self._hints))
        return self.shape_env.create_symintnode(dim.xreplace(self._symbols), hint=known)

    def _define_from_data(self, symbol: sympy.Symbol) -> None:
        with self.shape_env.ignore_fresh_unbacked_symbols():
            size = self.shape_env.create_unbacked_symint()
        torch._check(size >= 0)
        inner = size.node.expr
        self._symbols[symbol] = inner
        self._back[inner] = symbol

    def check_general(self, name: str) -> None:
        """Check that no operator so far was specialized to the hints.

        Raises:
            InferenceError: when one fixed a symbol; `name` is the operator to blame.
        """
        for inner, outer in self._back.items():
            fixed = self.shape_env.replacements.get(inner)
            if fixed is not None:
                raise InferenceError(
                    f"{name} needs the number that the symbolic dimension {outer} stands for",
                    remedy=f"compile with a fixed size in place of {outer}",
                )

    def dim(self, size: Any) -> Dim | None:
        """Return a size of a fake tensor as a dimension over our symbols, None where it depends on data."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expr = self.shape_env.simplify(size.node.expr).xreplace(self._back)
        # an unbacked symbol depends on data, as in `nonzero`
        return simplify_dim(expr) if expr.free_symbols <= self._symbols.keys() else None

    def tensor(self, type_: TensorType, strides: Sequence[Dim] | None = None) -> torch.Tensor:
        """Return a fake tensor of a known type; contiguous without `strides`.

        Raises:
            InferenceError: when the type is not fully known.
        """
        if type_.shape is None or type_.dtype is None:
            raise InferenceError(f"type {type_} is not fully known")
        sizes = [self.size(d) for d in type_.shape if d is not None]
        with self.mode:
            if strides is None:
                return torch.empty(sizes, dtype=type_.dtype, device=type_.device or "cpu")
            steps = [self.size(s) for s in strides]
            return torch.empty_strided(sizes, steps, dtype=type_.dtype, device=type_.device or "cpu")

    def type_of(self, result: Any) -> Type:
        """Return the type of a result of an operator on fake tensors."""
        if isinstance(result, torch.Tensor):
            return TensorType(tuple([self.dim(s) for s in result.shape]), result.dtype, result.device)
        if isinstance(result, bool | torch.SymBool):
            return ScalarType("bool")
        if isinstance(result, int | torch.SymInt):
            return ScalarType("int", self.dim(result))
        if isinstance(result, float | torch.SymFloat):
            return ScalarType("float")
        return OpaqueType()


@cached()
def _static_context() -> FakeContext:
    """The shared context of calls without symbols."""
    return FakeContext()


def is_unknown(type_: Any) -> bool:
    """Return whether any part of a type (or of a tuple of types) is unknown."""
    if isinstance(type_, tuple):
        return any(map(is_unknown, type_))
    if isinstance(type_, TensorType):
        return not type_.is_known
    return isinstance(type_, OpaqueType) or (isinstance(type_, ScalarType) and type_.value is None)


def unknown_results(opdef: OpDef) -> tuple[Type, ...]:
    """Return unknown result types.

    Raises:
        InferenceError: when not even the number of results is known.
    """
    kinds: list[Type] = []
    for kind in opdef.results:
        if kind == "list":
            raise InferenceError(f"the number of results of {opdef.name} depends on a shape that is not known")
        kinds.append(UNKNOWN_TENSOR if kind == "tensor" else OpaqueType() if kind == "opaque" else ScalarType(kind))
    return tuple(kinds)


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype})
"""Types of attributes that a kernel takes unchanged; others may need to be resolved."""


def call_arguments(
    opdef: OpDef, grouped: tuple[Any, ...], attributes: Mapping[str, Attribute], resolve: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments of an operator's kernel, in schema order.

    `grouped` has an entry for each tensor parameter. `resolve` maps each attribute leaf to what the kernel takes; plain
    numbers and names map to themselves.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    position = 0
    for name, is_attribute, keyword_only in _parameters(opdef):
        if is_attribute:
            value = attributes[name]
            if isinstance(value, tuple):
                value = [item if type(item) in _PLAIN else map_leaves(item, resolve) for item in value]
            elif type(value) not in _PLAIN:
                value = resolve(value)
        else:
            value = grouped[position]
            position += 1
            if isinstance(value, tuple):
                value = list(value)
        if keyword_only:
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def kernel_call(
    opdef: OpDef, grouped: tuple[Any, ...], attributes: Mapping[str, Attribute], resolve: Any
) -> tuple[Callable[..., Any] | None, list[Any], dict[str, Any]]:
    """Return what computes the reference meaning of an operator, if anything, and its arguments.

    It is the kernel, unless the table has another function, which takes the attributes of ours, too.
    """
    args, kwargs = call_arguments(opdef, grouped, attributes, resolve)
    if opdef.facts.evaluate is None:
        return opdef.target, args, kwargs
    kwargs |= {p.name: map_leaves(attributes[p.name], resolve) for p in opdef.params if p.extra}
    return opdef.facts.evaluate, args, kwargs


def flat_results(returned: Any) -> list[Any]:
    """Return the results of a kernel as inference counts them, with nested lists flattened."""
    if not isinstance(returned, (tuple, list)):
        return [] if returned is None else [returned]
    return [part for item in returned for part in (item if isinstance(item, (tuple, list)) else (item,))]


@cached()
def _parameters(opdef: OpDef) -> tuple[tuple[str, bool, bool], ...]:
    """Return the parameters of a kernel: name, whether it is an attribute, whether it is keyword-only."""
    return tuple([(p.name, p.kind is ParamKind.ATTRIBUTE, p.keyword_only) for p in opdef.params if not p.extra])


@contextmanager
def quiet_kernels() -> Iterator[None]:
    """Let no operator on fake tensors log or warn inside of the `with` block: none really runs."""
    disabled = _TORCH_LOG.disabled
    _TORCH_LOG.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _TORCH_LOG.disabled = disabled


def infer_with_fakes(
    opdef: OpDef, types: tuple[Any, ...], attributes: Mapping[str, Attribute], extra: tuple[Type, ...] = ()
) -> tuple[Type, ...]:
    """Infer result types by running the operator on fake tensors, once for equal operands and attributes.

    `types` has an entry for each tensor parameter (a Type, None, or a tuple); `extra` are the types of the values that
    attributes refer to.

    Raises:
        InferenceError: when the operator refuses the operands.
    """
    if is_unknown(types) or is_unknown(extra):
        return unknown_results(opdef)
    # the default device is slow to ask for, and is that of results of operators without operands only
    defaults = torch.get_default_dtype(), None if types else torch.get_default_device()
    key = opdef, types, extra, attribute_key(tuple(attributes.items())), defaults
    found = _KNOWN.get(key)
    if found is None:
        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.clear()
        try:
            found = _KNOWN[key] = _infer(opdef, types, attributes, extra)
        except InferenceError as error:
            # Refusals are as slow, and a search asks for the same ones often. An operator without a rule may be the
            # user's, who gives it a fake kernel next.
            is_final = opdef.infer is not None and error.remedy is None
            if is_final and not isinstance(error.__cause__, (MemoryError, RecursionError)):
                _KNOWN[key] = error.message
            raise
    if isinstance(found, str):
        raise InferenceError(found)
    if _has_no_device(types) or _has_no_device(extra):
        return tuple([attrs.evolve(t, device=None) if isinstance(t, TensorType) else t for t in found])
    return found


def _has_no_device(type_: Any) -> bool:
    """Return whether the device of a type (or of one in a tuple of types) is unknown; fake tensors are on the CPU."""
    if isinstance(type_, tuple):
        return any(map(_has_no_device, type_))
    return isinstance(type_, TensorType) and type_.device is None


def _infer(
    opdef: OpDef, types: tuple[Any, ...], attributes: Mapping[str, Attribute], extra: tuple[Type, ...]
) -> tuple[Type, ...]:
    if not _is_symbolic((types, extra, tuple(attributes.values()))):
        # shared: a context takes a millisecond to build
        return _run(_static_context(), opdef, types, attributes, extra)
    results = _run(FakeContext(), opdef, types, attributes, extra)
    others = _run(FakeContext(_OTHER_HINTS), opdef, types, attributes, extra)
    is_partial = not _makes_sizes(opdef) and any(isinstance(t, TensorType) and not t.is_known for t in results)
    if is_partial or len(results) != len(others) or not all(map(types_equal, results, others)):
        raise InferenceError(
            f"what {opdef.name} gives for operands ({', '.join(map(str, types))}) has no one form for all sizes",
            remedy="compile with fixed sizes in place of the symbolic ones",
        )
    return results


def _makes_sizes(opdef: OpDef) -> bool:
    """Return whether the results of an operator may have sizes that depend on data."""
    return torch.Tag.dynamic_output_shape in getattr(opdef.target, "tags", ()) or opdef.facts.most is not None


def _is_symbolic(item: Any) -> bool:
    """Return whether a type or attribute, or one in a tuple of these, has a symbolic size."""
    if isinstance(item, TensorType):
        return _is_symbolic(item.shape)
    if isinstance(item, ScalarType):
        return _is_symbolic(item.value)
    return any(map(_is_symbolic, item)) if isinstance(item, tuple) else isinstance(item, sympy.Expr)


def strides_with_fakes(
    opdef: OpDef,
    types: tuple[Any, ...],
    attributes: Mapping[str, Attribute],
    extra: tuple[Type, ...],
    strides: tuple[Any, ...],
) -> tuple[Dim | None, ...] | None:
    """Return the strides of an operator's only result; None where they are not known.

    `strides` has the form of `types`: for each tensor parameter the strides, None, or a tuple of these.
    """
    if is_unknown(types) or is_unknown(extra):
        return None
    context = FakeContext()
    try:
        result = _results(context, opdef, types, attributes, extra, strides)
    except InferenceError:
        return None
    return tuple(map(context.dim, result.stride())) if isinstance(result, torch.Tensor) else None


def _run(
    context: FakeContext,
    opdef: OpDef,
    types: tuple[Any, ...],
    attributes: Mapping[str, Attribute],
    extra: tuple[Type, ...],
) -> tuple[Type, ...]:
    found = list(map(context.type_of, flat_results(_results(context, opdef, types, attributes, extra))))
    if opdef.has(Trait.FOR_BACKWARD):
        found[1:] = [UNKNOWN_TENSOR] * (len(found) - 1)
    return tuple(found)


def _results(
    context: FakeContext,
    opdef: OpDef,
    types: tuple[Any, ...],
    attributes: Mapping[str, Attribute],
    extra: tuple[Type, ...],
    strides: tuple[Any, ...] | None = None,
) -> Any:
    def fake(item: Any, steps: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(map(fake, item, itertools.repeat(None) if steps is None else steps))
        return context.tensor(item, steps) if isinstance(item, TensorType) else item

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, sympy.Expr):
            return context.size(leaf)
        if type(leaf) is Ref:
            type_ = extra[leaf.index - count]
            if isinstance(type_, ScalarType) and type_.value is not None:
                return context.size(type_.value)
            raise InferenceError(f"operand {leaf.index} of {opdef.name} has no known value")
        return leaf

    count = sum(len(t) if isinstance(t, tuple) else 1 for t in types)
    kernel, args, kwargs = kernel_call(opdef, fake(types, strides), attributes, resolve)
    if kernel is None:
        raise InferenceError(f"{opdef.name} has neither an inference rule nor a kernel")
    try:
        with quiet_kernels(), context.mode, torch.no_grad(), enable_python_dispatcher():
            result = kernel(*args, **kwargs)
    except Exception as error:
        shown = ", ".join(str(t) for t in types)
        raise InferenceError(f"{opdef.name} does not take operands ({shown}): {error}") from error
    context.check_general(opdef.name)
    return result
