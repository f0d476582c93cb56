"""Current values of the tensors of a program, through writes to them and to their views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.lower.functional.mode_sharing import ModeSharing
from compiler.lower.functional.storage import Handle, Storage, copy_of_view
from compiler.lower.functional.views import write_through
from compiler.usercode.locations import kept_with
from ir.builder import bind_arguments, infer_types
from ir.columns import Layout
from ir.core import Graph, Operation, Value
from ir.errors import CaptureError, GraphwrightError
from ir.locations import UNKNOWN_LOCATION, Location
from ir.memory.layout import Strides
from ir.opdef import OpDef, get_opdef
from ir.types import Type


class FunctionalTensors:
    """Appends operations to a graph, and tracks the value of each tensor object."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.location = UNKNOWN_LOCATION
        self.sources: list[Storage] = []
        self.sharing = ModeSharing()
        self.layouts: Mapping[Handle, Strides] = {}
        """Strides of the operands of the next call, where the tracer knows them; used for in-place calls."""

    # ---- tensors ----

    def source(self, value: Value, kind: str, *, number: int = 0, name: str = "", key: int | None = None) -> Handle:
        """Return the handle of an input or a weight."""
        storage = Storage(kind=kind, number=number, name=name)
        storage.owner = Handle(value, storage, key=key)
        self.sources.append(storage)
        return storage.owner

    def fresh(self, value: Value, key: int | None = None, linked: Sequence[Handle] = ()) -> Handle:
        """Return the handle of a new tensor; it may alias the tensors `linked`."""
        storage = Storage()
        storage.owner = Handle(value, storage, key=key)
        for other in linked:
            if other.storage not in storage.linked:
                storage.linked.append(other.storage)
                other.storage.linked.append(storage)
        return storage.owner

    def read(self, handle: Handle) -> Value:
        """Return the current value of a tensor that the model reads.

        Raises:
            CaptureError: when a write may or may not have reached it.
        """
        self.sharing.read(handle)
        return self._current(handle)

    def _inexpressible(self, op: Operation) -> CaptureError:
        if op.opdef.layout is Layout.DETACHED:
            return CaptureError(
                "an in-place operator writes to a tensor past its gradient (under torch.no_grad(), or through "
                "detach()), which no functional operator can express",
                remedy="write out of place: `y = y * 0.5` in place of `y.mul_(0.5)`",
            )
        place = f" at {op.location.source}" if op.location.source else ""
        return CaptureError(
            f"an in-place operator writes through the view that {op.name} made{place}, which no "
            "functional operator can express",
            remedy="write to the tensor itself, or out of place",
        )

    def _current(self, handle: Handle) -> Value:
        storage = handle.storage
        if storage.tainted is not None:
            raise self._unsure(storage.tainted)
        if handle.version != storage.version:
            self._regenerate(handle)
        return handle.value

    def read_result(self, handle: Handle) -> Value:
        """Return the current value of a tensor that the model returns.

        A mutated view of a part is computed again from the whole: its strides and its aliasing are observable.

        Raises:
            CaptureError: when a write may or may not have reached it.
        """
        value = self.read(handle)
        views = [handle]
        while views[-1].parent is not None:
            views.append(views[-1].parent)
        owner = views.pop()
        calls = [view.call for view in views if view.call is not None]
        written = any(call.version != handle.storage.version for call in calls)
        if not written or not all(c.certain for c in calls) or not any(_is_part(c.op) for c in calls):
            return value
        value = self._current(owner)
        for view in reversed(views):
            assert view.call is not None
            operands = list(view.call.op.operands)
            operands[view.call.position] = value
            value = self._append(copy_of_view(view.call.op, operands)).results[view.index]
        return value

    def _regenerate(self, handle: Handle) -> None:
        storage = handle.storage
        stale: list[Handle] = []
        current = handle
        while current.version != storage.version:
            if current.parent is None or current.call is None or not current.call.certain:
                raise self._unsure(storage.written_at)
            stale.append(current)
            current = current.parent
        for view in reversed(stale):
            parent, call = view.parent, view.call
            assert parent is not None and call is not None
            if call.version != storage.version:
                operands = list(call.op.operands)
                operands[call.position] = parent.value
                call.results = self._append(copy_of_view(call.op, operands)).results
                call.version = storage.version
            view.value = call.results[view.index]
            view.version = storage.version

    def _unsure(self, location: Location) -> CaptureError:
        return CaptureError(
            "a tensor is read after an in-place operator wrote to another one, and whether the two share memory "
            "cannot be known here",
            location=self.location if location.is_unknown else location,
            remedy="write it out of place, or pass example inputs so that strides are known",
        )

    def write(self, handle: Handle, value: Value, *, is_fresh: bool = True) -> None:
        """Make `value` the content of a tensor, visible through all views of its storage.

        Raises:
            CaptureError: when the view cannot be written through.
        """
        storage = handle.storage
        if storage.kind == "parameter":
            raise CaptureError(
                f"parameter {storage.name!r} is mutated in forward",
                remedy="register it as a buffer, update it outside of forward, or "
                f"{kept_with(self.location.module_path)}",
            )
        if storage.kernel_writes is not None:
            raise CaptureError(
                f"{storage} is mutated here and by a normalization in training mode",
                remedy="call eval() on that normalization before the capture, or give it a clone",
            )
        for other in storage.linked:
            other.tainted = self.location
        if handle.parent is None and storage.kind == "local" and not is_fresh:
            # the tensor owns its storage: a caller that gets it may mutate it
            value = self.emit("aten.clone", value)
        path: list[tuple[Handle, Value]] = [(handle, value)]
        current = handle
        while current.parent is not None:
            call, parent = current.call, current.parent
            assert call is not None
            if not call.certain:
                break
            whole = self._current(parent)
            try:
                new = write_through(self.emit, call.op, current.index, whole, path[-1][1])
            except GraphwrightError as error:
                raise CaptureError(
                    f"cannot write through the view that {call.op.name} made: {error.message}"
                ) from error
            if new is None:
                raise self._inexpressible(call.op)
            path.append((parent, new))
            current = parent
        self.sharing.wrote(handle)
        storage.version += 1
        storage.written_at = self.location
        for each, new in path:
            each.value = new
            each.version = storage.version

    # ---- operations ----

    def emit(self, opdef: OpDef | str, *args: Any, **kwargs: Any) -> Value:
        """Append an operation on values; return its only result, with inferred type."""
        return self._create(get_opdef(opdef) if isinstance(opdef, str) else opdef, args, kwargs, None).result

    def _create(
        self,
        opdef: OpDef,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        types: Sequence[Type] | None,
        names: Sequence[str] = (),
    ) -> Operation:
        operands, attributes, segments, operand_types = bind_arguments(opdef, args, kwargs)
        if types is None:
            count = len(operand_types) if segments is None else sum(segments)
            extra = tuple([v.type for v in operands[count:] if v is not None])
            types = infer_types(opdef, operand_types, attributes, extra)
        return self._append(
            Operation(opdef, operands, attributes, types, location=self.location, segments=segments, names=names)
        )

    def _append(self, op: Operation) -> Operation:
        self.graph.append(op)
        return op


def _is_part(op: Operation) -> bool:
    return op.opdef.layout is not None and op.opdef.layout.is_part
