"""The graph of a whole program that is being built: it reads weights, and calls modules at their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from compiler.codegen.forms import ModuleForm, own_location
from compiler.codegen.functions import literal
from compiler.codegen.modules import module_form
from compiler.codegen.quantizers import emit_quantizer
from compiler.codegen.scope import Scope
from compiler.codegen.tree import ModuleTree, folded_path
from compiler.emitted.forward_code import is_plain_name
from compiler.emitted.fused import ScaledDotProductAttention
from compiler.emitted.graphmodule import call_with
from ir.columns import Layout
from ir.core import Operation, Value
from ir.data_sizes import values_of_sizes
from ir.errors import CodegenError
from ir.ops.nn_ops import decode_call
from ir.program import Program, Weight, weight_of


class ProgramScope(Scope):
    """The graph of the whole program."""

    def __init__(self, program: Program, tree: ModuleTree) -> None:
        super().__init__(tree, program.graph.inputs)
        self.program = program
        self.targets: list[tuple[fx.Node, Weight]] = []
        """Reads of weights, whose keys are known when all modules are placed."""
        self._tensors: dict[Weight, fx.Node] = {}
        self.sized = frozenset(values_of_sizes(program))
        self._read_and_written = dict.fromkeys(_read_and_written(program))

    @override
    def find(self, value: Value | None) -> Weight | None:
        """Return the weight that a value is, or None."""
        return self.tree.find_weight(value)

    @override
    def missing(self, value: Value) -> Any:
        """Read a weight."""
        weight = weight_of(value)
        if weight is None:
            raise CodegenError(f"{value!r} is used before it is computed", remedy="run the verifier on the program")
        if weight in self.tree.weights.inlined:
            return self._derive(weight)
        node = self.graph.create_node("get_attr", weight.name, name=weight.name.replace(".", "_"))
        self.targets.append((node, weight))
        self._tensors[weight] = node
        # a backward pass may need the buffer from before the mutation
        return self.method("clone", (node,)) if weight in self._read_and_written else node

    def tensor(self, weight: Weight) -> Any:
        """Return the node of a weight's own tensor, to be mutated."""
        node = self.value(weight.value)
        return self._tensors.get(weight, node)

    def _derive(self, weight: Weight) -> Any:
        """Compute a derived weight in `forward`: its source is trained too."""
        assert weight.derivation is not None
        program: Program = weight.derivation.program
        sources = self.tree.weights.sources(weight)
        for value, source in zip(program.graph.inputs, sources, strict=True):
            self.env[value] = self.value(source.value)
        for op in program.graph.operations():
            self.operation(op)
        (output,) = program.graph.outputs
        assert output is not None
        return self.value(output)

    @override
    def module_call(self, op: Operation) -> Any:
        """Call the original's module for `op`, or a new one where `op` depends on the mode."""
        if op.name == "nn.opaque":
            return self._opaque(op)
        quantizer = self.tree.quantized.form(op)
        if quantizer is not None:
            return emit_quantizer(op, quantizer, self)
        form = module_form(op, self.find)
        if form is None:
            return None
        home, own = self._place_of(op, form)
        if home is None:
            return None
        key = ("operation", home, form.key)
        path = self.tree.find(key) if own else None
        if path is None:
            module, target, same = self.tree.make(form, home), home, own
            if own and self.tree.is_mistakable(self.tree.safe_path(home), form):
                target, same = folded_path(home), False
            path = self.tree.place(module, target, own=same, key=key if own else None)
            self.tree.register_form(path, form, home if own else None)
        return self.call_form(path, form)

    def _place_of(self, op: Operation, form: ModuleForm) -> tuple[str | None, bool]:
        """Return the path for a form, and whether it is the original's; (None, …) for a function."""
        if form.slots:
            home = self.tree.home(form, op.location.parts)
            if home is not None:
                return home, True
            # a call of a function has no mode, and F.batch_norm counts no batches
            needed = op.name == "nn.multihead_attention" or (op.name == "aten.batch_norm" and form.counter)
        else:
            location = own_location(op, form)
            if location is not None and op.name != "aten.scaled_dot_product_attention":
                return location.module_path, True
            needed = form.training is not None and op.opdef.follows_mode
            if form.cls is ScaledDotProductAttention:
                needed = bool(op.attributes["train_dropout_p"])
        if not needed:
            return None, False
        parent = op.location.module_path
        name = op.opdef.short_name
        return (f"{parent}.{name}" if parent else name), False

    @override
    def training_flag(self, op: Operation) -> Any:
        """Read the mode of the module that the operation is in."""
        path = self.tree.container(op.location.module_path)
        target = f"{path}.training" if path else "training"
        node = self._attributes.get(target)
        if node is None:
            node = self.graph.create_node("get_attr", target)
            self._attributes[target] = node
        return node

    def _opaque(self, op: Operation) -> Any:
        callee = str(op.attributes["callee"])
        function = self.program.opaques.get(callee)
        if function is None:
            raise CodegenError(f"the program has no callable {callee!r}", location=op.location)
        operands = [None if v is None else self.value(v) for v in op.operands]
        args, kwargs = decode_call(op.attributes, operands, lambda leaf: literal(self, leaf))
        plain = all(map(is_plain_name, kwargs))
        if not plain and not isinstance(function, nn.Module):
            raise CodegenError(
                f"the keywords {', '.join(map(repr, kwargs))} of a call of {callee!r} are not all names of Python",
                location=op.location,
                remedy="call it in a module, and keep that one with leaf_modules=",
            )
        if isinstance(function, nn.Module):
            key = ("opaque", callee)
            path = self.tree.find(key)
            if path is None:
                path = self.tree.place(self.tree.adopt(function), callee, own=True, key=key)
                self.tree.register_opaque(path, callee, function)
            if plain:
                node = self.graph.create_node("call_module", path, args, kwargs)
            else:
                node = self.call(call_with, (self.graph.create_node("get_attr", path), args, kwargs))
        else:
            node = self.call(function, args, kwargs)
        returns = op.attributes["returns"]
        if returns == "whole":
            return (node,)
        return node if returns == "items" else self.call(pytree.tree_leaves, (node,))


def _read_and_written(program: Program) -> Iterator[Weight]:
    """Yield the buffers that are mutated at the end of a call and read by more than what computes their new value."""
    for mutation in program.convention.mutations:
        weight = program.weights.get(mutation.buffer or "")
        new = program.graph.outputs[mutation.output]
        if weight is None or mutation.is_assigned or is_detached(new, weight.value):
            continue
        if new is not None:
            makers = {new.defining_op, program.graph.return_op}
            if any(user not in makers for user in weight.value.users):
                yield weight


def is_detached(value: Value | None, target: Value) -> bool:
    """Whether a value is the target without its gradient, as `target.detach_()` makes it."""
    op = None if value is None else value.defining_op
    return op is not None and op.opdef.layout is Layout.DETACHED and op.operands[0] is target
