"""A graph under construction: values become nodes, operations become calls."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
from torch import fx
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from compiler.codegen.forms import ModuleForm
from compiler.codegen.functions import emit_function
from compiler.codegen.quantizers import emit_quantization
from compiler.codegen.tree import ModuleTree
from compiler.emitted.forward_code import OWN_NAMES, SignatureCodeGen
from ir.core import Operation, Value
from ir.data_sizes import Definition
from ir.errors import CodegenError
from ir.expressions import linear_solution
from ir.opdef import Trait
from ir.program import Weight
from ir.types import ScalarType, TensorType

_SAMPLING = ("aten.fractional_max_pool2d", "aten.fractional_max_pool3d")


def _to_int(function: Callable[[Any], Any]) -> Any:
    """Return a conversion of sizes; for a proxy it becomes a call in the graph."""

    def convert(x: Any, dtype: Any) -> Any:
        return x.tracer.create_proxy("call_function", function, (x,), {}) if isinstance(x, fx.Proxy) else function(x)

    return staticmethod(convert)


class _SizeFunctions(PythonReferenceAnalysis):
    """The functions of symbolic sizes as Python, with those that torch leaves symbolic or calls at once."""

    int_truediv = staticmethod(operator.truediv)
    floor_to_int = _to_int(math.floor)
    ceil_to_int = _to_int(math.ceil)
    trunc_to_int = _to_int(math.trunc)
    round_to_int = _to_int(round)


class Scope:
    """A graph and the nodes of its values; base class for programs and regions."""

    def __init__(self, tree: ModuleTree, inputs: tuple[Value, ...]) -> None:
        self.tree = tree
        self.inputs = inputs
        self.graph = fx.Graph()
        for name in OWN_NAMES:
            self.graph._graph_namespace.create_name(name, None)
        self.graph.set_codegen(SignatureCodeGen(len(inputs)))
        self.env: dict[Value, Any] = {}
        self.taken: set[Operation] = set()
        """Quantizations that regions compute: where two could, the first does."""
        self.sized: frozenset[Value] = frozenset()
        """Results that define sizes which depend on data, so that they are needed even where nothing uses them."""
        self._sizes: dict[sympy.Basic, Any] = {}
        self._definitions: dict[sympy.Symbol, tuple[Value, int | None, int, int]] = {}
        self._attributes: dict[str, fx.Node] = {}
        for bare_only in (True, False):
            for value in inputs:
                self.define_symbols(value, bare_only=bare_only)

    # ---- what subclasses decide ----

    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value of this graph is, or None."""
        raise NotImplementedError

    def missing(self, value: Value) -> Any:
        """Return the node of a value that no operation here has computed."""
        raise NotImplementedError

    def missing_symbol(self, symbol: sympy.Symbol) -> Any:
        """Return the node of a symbol that no value here defines."""
        raise CodegenError(
            f"the size `{symbol}` is used, but no input and no result defines it",
            remedy="a pass removed the value that defined it; run with verify-each to find out which",
        )

    def module_call(self, op: Operation) -> Any:
        """Return a call of a module that computes `op`, or None where it is emitted as a function."""
        raise NotImplementedError

    def count_batches(self, op: Operation, running_mean: Value) -> None:
        """Note a normalization that is not a module: `forward` has to count its batches."""
        weight = self.find(running_mean)
        if weight is not None:
            self.tree.counting.append((op, weight))

    def training_flag(self, op: Operation) -> Any:
        """Return the node of a training flag that follows the mode of the module."""
        raise NotImplementedError

    # ---- building ----

    def value(self, value: Value) -> Any:
        """Return the node of a value."""
        node = self.env.get(value)
        if node is None:
            node = self.env[value] = self.missing(value)
        return node

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Add a call of a function."""
        return self.graph.create_node("call_function", target, args, kwargs or {})

    def method(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Add a call of a method; the first argument is the object."""
        return self.graph.create_node("call_method", name, args, kwargs or {})

    def call_form(self, path: str, form: ModuleForm) -> fx.Node:
        """Add a call of the module at `path`, which was built for `form`."""
        args = tuple(None if v is None else self.value(v) for v in form.inputs)
        kwargs = {k: self.value(v) if isinstance(v, Value) else v for k, v in form.keywords}
        return self.graph.create_node("call_module", path, args, kwargs)

    def bind(self, op: Operation, node: Any) -> None:
        """Make `node` what `op` computes: its only result, or the tuple of them."""
        if len(op.results) == 1 and op.opdef.results != ("list",):
            self.env[op.results[0]] = node
        else:
            self._unpack(op.opdef.nest(op.results), node)
        for result in op.results:
            if result in self.env:
                self.define_symbols(result)

    def _unpack(self, results: Sequence[Any], node: Any) -> None:
        for place, result in enumerate(results):
            inner = result if isinstance(result, list) else [result]
            if all(value in self.env or (value.is_unused and value not in self.sized) for value in inner):
                continue
            item = node[place] if isinstance(node, tuple) else self.call(operator.getitem, (node, place))
            if isinstance(result, list):
                self._unpack(result, item)
            else:
                self.env[result] = item

    def operation(self, op: Operation) -> None:
        """Add one operation."""
        try:
            node = self.module_call(op)
            if node is None:
                node = emit_quantization(op, self)
            if node is None:
                if op.opdef.target is None:
                    raise CodegenError(f"{op.name} cannot be emitted as a function", location=op.location)
                node = emit_function(self, op)
        except CodegenError as error:
            if error.location is None and not op.location.is_unknown:
                raise CodegenError(error.message, location=op.location, remedy=error.remedy) from error
            raise
        self.bind(op, node)

    # ---- symbolic sizes ----

    def size(self, expr: sympy.Basic) -> Any:
        """Return the node of a symbolic size; it is computed once."""
        node = self._sizes.get(expr)
        if node is None:
            if isinstance(expr, sympy.Symbol):
                node = self._symbol(expr)
            else:
                node = self._expression(expr)
            self._sizes[expr] = node
        return node

    def _symbol(self, symbol: sympy.Symbol) -> Any:
        definition = self._definitions.get(symbol)
        if definition is None:
            return self.missing_symbol(symbol)
        value, dim, a, b = definition
        return self.size_of(Definition(symbol, value, dim, a, b))

    def size_of(self, definition: Definition) -> Any:
        """Return the node of the number that a definition gives its symbol."""
        node = self.value(definition.value)
        if definition.dim is not None:
            name = definition.symbol.name
            node = self.graph.create_node("call_method", "size", (node, definition.dim), {}, name=name)
        if definition.offset:
            node = self.call(operator.sub, (node, definition.offset))
        if definition.slope != 1:
            node = self.call(operator.floordiv, (node, definition.slope))
        return node

    def _expression(self, expr: sympy.Basic) -> Any:
        tracer = GraphAppendingTracer(self.graph)
        symbols = sorted(expr.free_symbols, key=str)
        bindings: dict[sympy.Symbol, Any] = {}
        for symbol in symbols:
            node = self.size(symbol)
            bindings[symbol] = fx.Proxy(node, tracer) if isinstance(node, fx.Node) else node
        try:
            result = sympy_interp(_SizeFunctions, bindings, expr)
        except (KeyError, AttributeError, AssertionError, NotImplementedError, TypeError, fx.proxy.TraceError) as error:
            raise CodegenError(f"the symbolic size {expr} cannot be written as Python: {error}") from error
        return result.node if isinstance(result, fx.Proxy) else result

    def define_symbols(self, value: Value, *, bare_only: bool = False) -> None:
        """Note which sizes a value tells."""
        type_ = value.type
        if isinstance(type_, TensorType):
            dims = enumerate(type_.shape or ())
        elif isinstance(type_, ScalarType):
            dims = iter([(None, type_.value)])  # type: ignore[assignment]
        else:
            return
        for number, dim in dims:
            if not isinstance(dim, sympy.Expr):
                continue
            if isinstance(dim, sympy.Symbol):
                self._definitions.setdefault(dim, (value, number, 1, 0))
            elif not bare_only and (solution := linear_solution(dim)) is not None:
                symbol, a, b = solution
                self._definitions.setdefault(symbol, (value, number, a, b))

    # ---- devices and dtypes ----

    def attribute_like(self, op: Operation, name: str) -> Any:
        """Return the node of the device or dtype of a new tensor, or None for the literal.

        A tensor made on the device of an input follows that input, so the emitted module can be moved; a constant
        fill of the dtype of an input follows it too (its elements are exact in every dtype), and so do samples for a
        pooling, which takes them in the dtype of its operand only.
        """
        wanted = op.attributes.get(name)
        if name == "dtype" and (pooled := self._sampled_for(op)) is not None:
            return self.call(getattr, (pooled, "dtype"))
        if wanted is None or any(v is not None for v in op.operands[: op.num_schema_operands]):
            return None
        follows = isinstance(op.opdef.facts.fill, int) or op.opdef.has(Trait.UNINITIALIZED)
        if name == "dtype" and not (follows and wanted.is_floating_point):
            return None
        for value in self.inputs:
            type_ = value.type
            if isinstance(type_, TensorType) and getattr(type_, name) == wanted:
                node = self._attributes.get(name)
                if node is None:
                    node = self._attributes[name] = self.call(getattr, (self.value(value), name))
                return node
        return None

    def _sampled_for(self, op: Operation) -> Any:
        """Return the node of what is pooled at places that `op` draws, or None for other operations."""
        if op.name != "aten.rand" or any(user.name not in _SAMPLING for user in op.results[0].users):
            return None
        wanted = op.results[0].type
        for user in op.results[0].users:
            pooled = user.operands[0]
            if pooled in self.env and isinstance(pooled.type, TensorType) and isinstance(wanted, TensorType):
                return self.env[pooled] if pooled.type.dtype == wanted.dtype else None
        return None
