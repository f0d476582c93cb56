"""Indexing in an FX graph: of tensors, sizes, and an unknown number of pieces."""

from __future__ import annotations

import operator
from typing import Any

from compiler.lower.functional.storage import Handle
from compiler.lower.fx.operators import Operators, Pieces, Size
from compiler.lower.fx.overloads import UnknownCallError, is_tensor
from ir.core import Value


class Indexing(Operators):
    """Appends the operators for indexing."""

    def _piece(self, pieces: Pieces, index: int) -> Any:
        """Return one piece, as a view."""
        if index < 0:
            raise UnknownCallError("the last of an unknown number of pieces")
        handle, axis, size = pieces.handle, pieces.axis, pieces.number
        if pieces.name == "aten.unbind.int":
            return self.operator("aten.select.int", (handle, axis, index))
        if pieces.name == "aten.chunk":
            # all chunks but the last have this size, rounded up
            rounded = self.python_operator(operator.add, [self.dim(handle, axis), size - 1])
            size = self.python_operator(operator.floordiv, [rounded, size])
        start, stop = (self.python_operator(operator.mul, [size, i]) for i in (index, index + 1))
        return self.operator("aten.slice.Tensor", (handle, axis, start, stop, 1))

    # ---- indexing ----

    def item(self, owner: Any, index: Any) -> Any:
        """Return `owner[index]`."""
        if type(owner) is Size:
            if isinstance(index, int):
                return self.dim(owner.handle, index)
            return tuple(self.dims(owner))[index]  # a plain tuple, which adds to tuples as a part of a torch.Size does
        if type(owner) is Pieces and isinstance(index, int):
            return self._piece(owner, index)
        if type(owner) is not Handle:
            return self.plain(owner)[index]
        return self._index(owner, index)

    def _index(self, owner: Handle, index: Any) -> Any:
        parts = list(index) if isinstance(index, tuple) else [index]
        if any(isinstance(part, (list, bool)) for part in parts):
            raise UnknownCallError("indexing by a list or a bool")
        taken = sum(part is not None and part is not Ellipsis for part in parts)
        if Ellipsis in parts:
            place = parts.index(Ellipsis)
            after = parts[place + 1 :]
            rank = self.rank(owner)
            if rank is not None:
                parts[place : place + 1] = [slice(None)] * (rank - taken)
            elif not after:
                parts = parts[:place]
            else:
                return self._index_around(owner, parts[:place], after)
        current = owner
        axis = 0
        tensors: dict[int, Any] = {}
        for part in parts:
            if is_tensor(part):
                tensors[axis] = part
                axis += 1
                continue
            current, kept = self._take(current, axis, part)
            axis += kept
        if tensors:
            indices = [tensors.get(i) for i in range(max(tensors) + 1)]
            return self.operator("aten.index.Tensor", (current, indices))
        return current if current is not owner else self.operator("aten.alias", (owner,))

    def _index_around(self, owner: Handle, before: list[Any], after: list[Any]) -> Any:
        """Index a tensor of unknown rank on both sides of an ellipsis, first from the end."""
        if any(map(is_tensor, (*before, *after))):
            raise UnknownCallError("indexing by tensors around an ellipsis where the rank is not known")
        current = owner
        axis = -1
        for part in reversed(after):
            current, kept = self._take(current, axis, part)
            axis -= kept
        axis = 0
        for part in before:
            current, kept = self._take(current, axis, part)
            axis += kept
        return current

    def _take(self, current: Handle, axis: int, part: Any) -> tuple[Handle, int]:
        """Apply one part of an index; return the result, and 1 if the dimension stays."""
        if part is None:
            return self.operator("aten.unsqueeze", (current, axis)), 1
        if isinstance(part, slice):
            if part == slice(None):
                return current, 1
            step = 1 if part.step is None else part.step
            start = 0 if part.start is None else part.start
            stop = 2**63 - 1 if part.stop is None else part.stop
            return self.operator("aten.slice.Tensor", (current, axis, start, stop, step)), 1
        if isinstance(part, int) or type(part) is Value:
            return self.operator("aten.select.int", (current, axis, part)), 0
        raise UnknownCallError(f"indexing by a {type(part).__qualname__}")

    def set_item(self, owner: Any, index: Any, value: Any) -> None:
        """Lower `owner[index] = value`.

        Raises:
            UnknownCallError: when no operator stands for it.
        """
        if type(owner) is not Handle:
            raise UnknownCallError("assignment to an item of something that is not a tensor")
        parts = index if isinstance(index, tuple) else (index,)
        if any(map(is_tensor, parts)):
            if not all(map(is_tensor, parts)) or not is_tensor(value):
                raise UnknownCallError("assignment by tensors and other indices")
            self.operator("aten.index_put_", (owner, list(parts), value))
            return
        view = self._index(owner, index)
        if is_tensor(value):
            self.operator("aten.copy_", (view, value))
        else:
            self.operator("aten.fill_.Scalar", (view, value))
