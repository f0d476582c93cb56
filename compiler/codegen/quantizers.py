"""Which quantized values are emitted as floating numbers on a grid: they can be trained, integers cannot.

A `quant.quantize` and the `quant.dequantize` operations that read its integers, directly or behind operators that only
move or choose elements, become one fake quantization: the quantization makes numbers on the grid, the others return
them. Where integers go anywhere else, both are emitted as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler.codegen.forms import ModuleForm
from compiler.emitted.quantization import Quantizer, fake_quantize
from ir.core import Graph, Operation, Value
from ir.opdef import Trait
from ir.program import Program, Weight
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.quant.kernels import QUANTIZED
from ir.types import TensorType

if TYPE_CHECKING:
    from compiler.codegen.scope import Scope

WeightOf = Callable[[Value | None], Weight | None]
_SCALE, _ZERO_POINT = ".scale", ".zero_point"
_RANGE = ("dtype", "axis", "quant_min", "quant_max")


class QuantizedValues:
    """The integers of a program, those in the bodies of regions too, in classes that are connected by moves.

    Args:
        program: the program.
        find: returns the weight that a value of its graph is, or None.
    """

    def __init__(self, program: Program, find: WeightOf) -> None:
        self._find = find
        self._outer: dict[Value, Value] = {}
        """Input of a body -> operand of its region."""
        self._parents: dict[Value, Value] = {}
        self._refused: dict[Value, None] = {}
        self._grids: list[tuple[Value, tuple[Any, ...]]] = []
        self.parameters: dict[Weight, None] = {}
        """The weights that are scales and zero points."""
        self._moved: list[Value] = []
        self._visit(program.graph)
        for value in (*program.graph.inputs, *program.graph.outputs):
            self._refuse(value)
        grids: dict[Value, set[tuple[Any, ...]]] = defaultdict(set)
        for value, grid in self._grids:
            grids[self._root(value)].add(grid)
        bad = set(map(self._root, self._refused))
        # a move may take the axis elsewhere
        bad |= {root for root in map(self._root, self._moved) if any(axis is not None for *_, axis, _ in grids[root])}
        self._fakes = {root for root, found in grids.items() if len(found) == 1 and root not in bad}

    def is_fake(self, value: Value | None) -> bool:
        """Return whether a quantized value is emitted as floating numbers on its grid."""
        return value in self._parents and self._root(value) in self._fakes if value is not None else False

    def is_identity(self, op: Operation) -> bool:
        """Return whether an operation returns its operand: it dequantizes what is floating already."""
        return op.opdef is DEQUANTIZE and self.is_fake(op.operands[0])

    def quantizes(self, op: Operation) -> bool:
        """Return whether an operation is emitted as a fake quantization."""
        return op.opdef is QUANTIZE and self.is_fake(op.result)

    def form(self, op: Operation) -> ModuleForm | None:
        """Return the quantizer that computes a quantization; None where its parameters are no weights of their own."""
        if not self.quantizes(op):
            return None
        scale, zero_point = (self._find(self._outermost(value)) for value in op.operands[1:])
        if scale is None or zero_point is None or scale.is_mutated or zero_point.is_mutated:
            return None
        if not (scale.type.is_static and zero_point.type.is_static):
            return None
        options: dict[str, Any] = {name: value for name in _RANGE if (value := op.attributes[name]) is not None}
        if op.attributes["axis"] is not None and scale.type.shape is not None:
            options["channels"] = scale.type.shape[0]
        slots = (("scale", scale), ("zero_point", zero_point))
        return ModuleForm(Quantizer, tuple({**options, "device": "meta"}.items()), slots, (op.operands[0],))

    def _outermost(self, value: Value | None) -> Value | None:
        while value in self._outer:
            value = self._outer[value]
        return value

    # ---- classes ----

    def _visit(self, graph: Graph) -> None:
        for op in graph.operations():
            if op.body is not None:
                for inner, operand in zip(op.body.inputs, op.operands, strict=True):
                    if operand is not None:
                        self._outer[inner] = operand
                        self._join(inner, operand)
                self._visit(op.body)
                for inner_result, result in zip(op.body.outputs, op.results, strict=True):
                    if inner_result is not None:
                        self._join(inner_result, result)
            elif op.opdef is QUANTIZE:
                self._note(op.result, op, op.operands[0])
            elif op.opdef is DEQUANTIZE:
                self._note(op.operands[0], op, op.result)
            else:
                integers = [v for v in (*op.operands, *op.results) if v is not None and _is_quantized(v)]
                if op.opdef.has(Trait.LAYOUT) or op.opdef.has(Trait.SELECTS):
                    self._moved += integers
                    for value in integers[1:]:
                        self._join(integers[0], value)
                else:
                    for value in integers:
                        self._refuse(value)

    def _note(self, integers: Value | None, op: Operation, floating: Value | None) -> None:
        """Note the grid of a value: scale, zero point, axis, and the dtype of its numbers."""
        if integers is None or floating is None or not _is_quantized(integers):
            return
        self._root(integers)
        parameters = [self._outermost(value) for value in op.operands[1:]]
        self.parameters.update((weight, None) for value in parameters if (weight := self._find(value)) is not None)
        dtype = floating.type.dtype if isinstance(floating.type, TensorType) else None
        if dtype is None:
            self._refuse(integers)
        self._grids.append((integers, (*parameters, op.attributes["axis"], dtype)))

    def _root(self, value: Value) -> Value:
        parents = self._parents
        if value not in parents:
            parents[value] = value
            if value.is_weight:
                self._refused[value] = None
        while parents[value] is not value:
            parents[value] = parents[parents[value]]
            value = parents[value]
        return value

    def _join(self, a: Value, b: Value) -> None:
        if _is_quantized(a) and _is_quantized(b):
            self._parents[self._root(a)] = self._root(b)

    def _refuse(self, value: Value | None) -> None:
        if value is not None and _is_quantized(value):
            self._root(value)
            self._refused[value] = None


def _is_quantized(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype in QUANTIZED


def home_of(form: ModuleForm) -> str | None:
    """Return the path that the names of a quantizer's weights say: `conv1.input_quantizer.scale`; None for others."""
    (_, scale), (_, zero_point) = form.slots
    path = scale.name.removesuffix(_SCALE)
    return path if path and f"{path}{_SCALE}" == scale.name and f"{path}{_ZERO_POINT}" == zero_point.name else None


def name_of(form: ModuleForm, value: Value) -> str:
    """Return the name of a quantizer in the module that calls it on a value."""
    home = home_of(form)
    return home.rpartition(".")[2] if home is not None else f"{value.name or 'value'}_quantizer"


def emit_quantization(op: Operation, scope: Scope) -> Any:
    """Return the node of a quantization that is emitted without a module, or of the operand for its inverse.

    None where the operation is emitted as any other.
    """
    quantized = scope.tree.quantized
    if quantized.is_identity(op):
        return scope.value(op.operand_values[0])
    if not quantized.quantizes(op):
        return None
    options = {name: value for name in _RANGE if (value := op.attributes[name]) is not None}
    return scope.call(fake_quantize, tuple(map(scope.value, op.operand_values)), options)


def emit_quantizer(op: Operation, form: ModuleForm, scope: Scope) -> Any:
    """Place the quantizer of a value of the program, and return the node of its call."""
    tree = scope.tree
    key = ("quantizer", form.key)
    path = tree.find(key)
    if path is None:
        home = home_of(form)
        parent = op.location.module_path
        name = name_of(form, op.operand_values[0])
        place = home or (f"{parent}.{name}" if parent else name)
        path = tree.place(tree.make(form, home), place, own=home is not None, key=key)
        tree.register_form(path, form, home)
    return scope.call_form(path, form)
