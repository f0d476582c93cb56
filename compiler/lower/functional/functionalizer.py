"""Functionalization of in-place operators, during lowering.

A `Handle` stands for one tensor object of the user's program, a `Storage` for the memory it shares with its views.
Each write makes a new version of the storage. The written value goes through the chain of views to the owner of the
storage; every other view is computed again when it is next read. Mutated inputs and buffers become extra outputs of the
graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from compiler.lower.functional.layouts import comes_transposed, is_transposed, lies_as_operand, with_strides
from compiler.lower.functional.storage import (
    Handle,
    Storage,
    ViewCall,
    functional_of_out,
    makes_views,
    scalar_overload,
    with_defaults,
)
from compiler.lower.functional.tensors import FunctionalTensors
from compiler.usercode.locations import kept_with
from ir.columns import Layout, StorageRule
from ir.core import Operation, Value
from ir.errors import CaptureError
from ir.memory.aliasing import may_alias_operands
from ir.opdef import OpDef, Trait, get_opdef
from ir.types import TensorType, Type, shapes_equal

OPAQUE_CALL = "nn.opaque"
Argument = Any
"""A handle, an attribute value, or a list of arguments."""


class Functionalizer(FunctionalTensors):
    """Appends operations to a graph; in-place ones become functional."""

    def call(
        self,
        opdef: OpDef,
        args: Sequence[Argument],
        kwargs: Mapping[str, Argument],
        types: Sequence[Type] | None = None,
        keys: Sequence[int | None] = (),
        names: Sequence[str] = (),
    ) -> list[Handle]:
        """Append the functional form of a call of an operator.

        Args:
            opdef: the operator, perhaps an in-place one.
            args: positional arguments; tensors are handles.
            kwargs: keyword arguments.
            types: types of the results, where the tracer knows them.
            keys: storage identities of the results, where the tracer knows them.
            names: hints for the results.

        Raises:
            CaptureError: when no functional operator expresses the write.
        """
        handles: list[Handle] = []
        values = [self._value(arg, handles) for arg in args]
        named = {key: self._value(arg, handles) for key, arg in kwargs.items()} if kwargs else kwargs
        if opdef.target is not None and opdef.target._schema.is_mutable:  # type: ignore[attr-defined]
            return [self._call_in_place(opdef, args, values, named, kwargs.get("out"))]
        op = self._create(scalar_overload(opdef, values), values, named, types, names)
        if op.in_training:
            self._note_statistics(op, handles)
        return self._results(op, handles, keys)

    def _value(self, arg: Argument, handles: list[Handle]) -> Any:
        kind = type(arg)
        if kind is Handle:
            handles.append(arg)
            return self.read(arg)
        if kind is list or kind is tuple:
            return kind([self._value(item, handles) for item in arg])
        return arg

    def _results(self, op: Operation, handles: list[Handle], keys: Sequence[int | None]) -> list[Handle]:
        opdef = op.opdef
        if opdef.has(Trait.DROPOUT):
            key = keys[0] if keys else None
            if op.in_training and op.attributes["p"] != 0:
                result = self.fresh(op.results[0], key)
            else:
                # the tracer made a fresh tensor here: later views of the result have its key
                result = self._view(op, 0, handles[0], certain=True)
                result.key = result.key if key is None else key
            if op.attributes["p"] != 0:
                self.sharing.link(handles[0], result, op)
            return [result]
        known = len(keys) == len(op.results)
        found: list[Handle] = []
        call: ViewCall | None = None
        for index, value in enumerate(op.results):
            key = keys[index] if known else None
            parent = None
            certain = True
            if key is not None and any(h.key is not None for h in handles):
                parent = next((h for h in handles if h.key == key), None)
            elif handles and makes_views(opdef) and op.attributes.get("copy") is not True:
                parent = handles[0]
                certain = opdef.facts.storage is not StorageRule.EITHER
            if parent is None:
                unsure = handles and (opdef.name == OPAQUE_CALL or (key is None and may_alias_operands(opdef)))
                linked = [h for h in handles if h.storage.kind != "parameter"] if unsure else ()
                found.append(self.fresh(value, key, linked))
            elif call is None:
                view = self._view(op, index, parent, certain=certain)
                call = view.call
                found.append(view)
            else:
                found.append(Handle(value, parent.storage, parent, call, index, parent.key))
        return found

    def _view(self, op: Operation, index: int, parent: Handle, *, certain: bool) -> Handle:
        parent.has_views = True
        if parent.storage.kernel_writes is not None and parent.storage.kind in ("input", "local"):
            raise _seen_as_view()
        call = ViewCall(op, op.operands.index(parent.value), parent.storage.version, certain)
        return Handle(op.results[index], parent.storage, parent, call, index, parent.key)

    def _note_statistics(self, op: Operation, handles: list[Handle]) -> None:
        """Record which buffers a normalization in training mode updates."""
        for name in ("running_mean", "running_var"):
            value = op.operand(name) if name in op.opdef.operand_index else None
            for handle in handles:
                if handle.value is not value:
                    continue
                if handle.parent is not None or handle.storage.version:
                    raise written_statistics(f"{op.name} in training mode updates {name}", handle)
                if handle.storage.kind in ("input", "local") and handle.has_views:
                    raise _seen_as_view()
                handle.storage.kernel_writes = op.location

    # ---- in-place operators ----

    def _call_in_place(
        self, opdef: OpDef, args: Sequence[Argument], values: list[Any], named: Mapping[str, Any], out: Any
    ) -> Handle:
        written = [a for a in opdef.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]  # type: ignore[union-attr]
        target = args[0] if args else None
        if opdef.name == "aten.embedding_renorm_" and type(target) is Handle and target.storage.kind == "parameter":
            raise CaptureError(
                f"parameter {target.storage.name!r} is mutated in forward: `max_norm=` of an embedding scales down the "
                "rows that are read",
                remedy=f"{kept_with(self.location.module_path)}; or leave max_norm= out, and scale the rows outside of "
                "forward",
            )
        if len(written) == 1 and written[0].name == "out" and type(out) is Handle:
            functional = functional_of_out(opdef)
            if functional is not None:
                rest = {key: value for key, value in named.items() if key != "out"}
                result = self._create(scalar_overload(functional, values), values, rest, None).result
                if not shapes_equal(result.tensor_type.shape, out.value.tensor_type.shape):
                    raise CaptureError(
                        f"{opdef.name} would resize its argument out",
                        remedy="make `out` of the size of the result, or leave it out",
                    )
                self.write(out, self._laid_out(out, self._cast(result, out.value.type)))
                return out
        if len(written) != 1 or written[0].name != opdef.params[0].name or type(target) is not Handle:
            names = ", ".join(argument.name for argument in written)
            raise CaptureError(
                f"{opdef.name} writes to its argument {names}, which has no functional form",
                remedy="use the out-of-place operator, or keep the module as is with leaf_modules=",
            )
        if opdef.name.startswith("aten.set_."):
            raise CaptureError(
                "set_() gives a tensor other memory, which no functional operator can express",
                remedy="assign the new tensor (`self.v = …`), or write to the old one with copy_()",
            )
        if opdef.name == "aten.copy_":
            self._copy_into(target, values, named)
            return target
        if opdef.name == "aten.detach_" and target.parent is not None:
            raise CaptureError("detach_ of a view", remedy="use detach()")
        if opdef.in_place is None:
            raise CaptureError(
                f"{opdef.name} has no functional form",
                remedy="use the out-of-place operator, or keep the module as is with leaf_modules=",
            )
        functional = get_opdef(opdef.in_place)
        if functional.layout not in (None, Layout.DETACHED):
            return self._reshape_in_place(functional, target, values, named)
        if functional.params[0].name != opdef.params[0].name and opdef.params[0].name in functional.operand_index:
            # polygamma(n, self)
            given = {p.name: value for p, value in zip(opdef.params, values, strict=False)} | dict(named)
            order = [p.name for p in functional.params if p.name in given and not p.keyword_only]
            values, named = [given.pop(name) for name in order], given
        functional = scalar_overload(functional, values)
        old = target.value.type
        named = with_defaults(opdef, functional, values, named)
        before = None
        if functional.has(Trait.OVERWRITES):
            before = self.emit("aten.detach", values[0])
            values = [before, *values[1:]]
        quick = functional.has(Trait.ACTIVATION) or functional.name.startswith(("aten.fill", "aten.zero"))
        result = self._create(functional, values, named, (old,) if quick else None).result
        self.write(target, self._laid_out(target, self._cast(result, old), before))
        return target

    def _laid_out(self, target: Handle, value: Value, before: Value | None = None) -> Value:
        """Give a value the strides of the tensor it is written to; `before` is that tensor, detached."""
        wanted = self.layouts.get(target)
        if wanted is not None:
            known = {handle.value: strides for handle, strides in self.layouts.items()}
            if before is not None:
                known[before] = wanted
            return with_strides(self.emit, value, wanted, known)
        op = value.defining_op
        if op is None or lies_as_operand(op) or not is_transposed(target):
            return value
        return self.emit("aten.copy", target.value, value)

    def _cast(self, value: Value, like: Type) -> Value:
        """Cast a value to the dtype of the tensor it is written to."""
        new = value.type
        if isinstance(new, TensorType) and isinstance(like, TensorType):
            if new.dtype is not None and like.dtype is not None and new.dtype != like.dtype:
                return self.emit("aten.to.dtype", value, like.dtype)
            if new.shape is None and like.shape is not None:
                value.type = attrs.evolve(new, shape=like.shape)
        return value

    def _copy_into(self, target: Handle, values: list[Any], named: Mapping[str, Any]) -> None:
        source = values[1] if len(values) > 1 else named["src"]
        old, new = target.value.tensor_type, source.type
        if not isinstance(new, TensorType) or not old.is_known or not new.is_known or old.device != new.device:
            self.write(target, self.emit("aten.copy", target.value, source))
            return
        value = self._cast(source, old)
        is_fresh = value is not source
        if value.tensor_type.shape != old.shape:
            value = self.emit("aten.expand", value, old.shape)
            is_fresh = False
        if target in self.layouts:
            laid_out = self._laid_out(target, value)
        elif is_transposed(target) or comes_transposed(value):
            laid_out = self.emit("aten.copy", target.value, value)
        else:
            laid_out = value
        self.write(target, laid_out, is_fresh=is_fresh or laid_out is not value)

    def _reshape_in_place(self, opdef: OpDef, target: Handle, values: list[Any], named: Mapping[str, Any]) -> Handle:
        """Make a tensor object a view of what it was: `x.unsqueeze_(0)`."""
        if target.has_views:
            raise CaptureError(
                f"{opdef.name}_ changes the shape of a tensor that has views",
                remedy="use the out-of-place operator",
            )
        before = Handle(target.value, target.storage, target.parent, target.call, target.index, target.key)
        before.version = target.version
        if target.storage.owner is target:
            if target.storage.kind != "local":
                raise CaptureError(
                    f"{opdef.name}_ changes the shape of an input or a weight in place",
                    remedy="use the out-of-place operator",
                )
            target.storage.owner = before
        op = self._create(opdef, values, named, None)
        view = self._view(op, 0, before, certain=True)
        target.value, target.parent, target.call, target.index = view.value, before, view.call, 0
        return target

    # ---- the end ----

    def written_sources(self) -> list[tuple[Storage, Value]]:
        """Return the mutated inputs and weights, with their final values."""
        written = [storage for storage in self.sources if storage.version or storage.tainted is not None]
        return [(storage, self.read(storage.owner)) for storage in written if storage.owner is not None]


def _seen_as_view() -> CaptureError:
    return CaptureError(
        "a normalization in training mode updates statistics that are not buffers, and of which there is a view",
        remedy="register them as buffers, or take the view of a clone",
    )


def written_statistics(what: str, handle: Handle) -> CaptureError:
    """Return the error for statistics that are not a buffer with its value at the start of the call."""
    if handle.storage.version:
        return CaptureError(
            f"{what}, which was mutated in forward before (reset_running_stats(), or a write of its own)",
            remedy="make the layer with track_running_stats=False if it shall forget earlier calls, write to the "
            "statistics outside of forward, or keep the module that writes and normalizes with leaf_modules=",
        )
    return CaptureError(
        f"{what}, which is a view",
        remedy="register the statistics as buffers of their own, or keep the module as is with leaf_modules=",
    )
