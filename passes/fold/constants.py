"""Constant folding: what depends on constants alone is computed once, and reshaped weights become weights.

A module's floating buffers follow `.to(dtype)`, and so do the tensors that a program makes in the dtype of another
(`new_zeros`). Folding an operation on such a source is exact only if computing and converting commute: it is done
where the same computation in float64 gives exactly the same numbers, and left alone elsewhere. Literals of the user's
code (`WeightKind.CONSTANT`) have their own dtype in the original as well.

Parameters and persistent buffers are never folded by value: they belong to the `state_dict`, and a checkpoint that is
loaded later must still take effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from typing_extensions import override

from ir.core import Operation, Value
from ir.errors import GraphwrightError
from ir.fake import flat_results, kernel_call
from ir.memory.aliasing import aliases_output, is_written, may_alias_operands, reaches_kernel, reaches_output
from ir.memory.strides import is_contiguous
from ir.opdef import Trait
from ir.program import Program, Weight, WeightKind, weight_of
from ir.types import TensorType, type_of_tensor
from passes.manager.manager import Pass, PassContext
from passes.rewrite.effects import is_foldable
from passes.rewrite.expressions import has_literals
from passes.rewrite.rewriter import Rewriter

_MAX_BYTES = 16 << 20
_MAX_CREATED_BYTES = 1 << 20
_MAX_INTERNED_BYTES = 1 << 20


@attrs.frozen
class FoldConstants(Pass):
    """Computes what depends on constants alone."""

    name: ClassVar[str] = "fold-constants"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Evaluate the operations whose operands are constants.

        Results that others still use become weights named `folded_<value>`.
        """
        if not _anything_to_fold(program):
            return
        known: dict[Value, _Constant] = {}
        followers: dict[Value, bool | None] = {}
        folded: list[Operation] = []
        scope = self.scope
        for op in program.graph.operations():
            if not scope.holds(op):
                continue
            constants = _fold(op, known, followers)
            if constants is not None:
                known.update(zip(op.results, constants, strict=True))
                folded.append(op)
        rewriter = Rewriter(program)
        interned: dict[Any, Value] = {}
        for op in reversed(folded):
            for result in op.results:
                # the users among the folded operations come later in the graph, and are erased by now
                if result._uses:
                    rewriter.replace_value(result, _materialize(program, result, known[result], op, interned))
            rewriter.erase(op)


@attrs.frozen(eq=False)
class _Constant:
    """A known tensor, and whether it follows `.to(dtype)` of the module."""

    tensor: torch.Tensor
    follows: bool


def _anything_to_fold(program: Program) -> bool:
    """Whether any operation could be folded: most programs have no constants."""
    for op in program.graph.operations():
        if op.opdef.facts.creates or op.opdef.facts.fill is not None:
            return True
    return any(_constant_of(w.value, {}) is not None and not w.value.is_unused for w in program.weights.values())


def _constant_of(value: Value, known: dict[Value, _Constant]) -> _Constant | None:
    found = known.get(value)
    if found is not None:
        return found
    weight = weight_of(value)
    if weight is None or not weight.is_constant:
        return None
    if weight.kind is WeightKind.BUFFER and (weight.persistent or is_written(value)):
        return None
    data = weight.data
    if type(data) is not torch.Tensor or data.device.type == "meta" or data.layout is not torch.strided:
        return None
    return _Constant(data, weight.kind is WeightKind.BUFFER and data.dtype.is_floating_point)


def _fold(op: Operation, known: dict[Value, _Constant], followers: dict[Value, bool | None]) -> list[_Constant] | None:
    """Return the results of an operation on constants; None where it must not be folded."""
    facts = op.opdef.facts
    # of what is made like an operand, only its dtype, device and shape matter
    fill = None if facts.creates else facts.fill
    if not op.operands and not facts.creates:
        return None
    operands: list[_Constant | None] = []
    if fill is None:
        for value in op.operands:
            constant = None if value is None else _constant_of(value, known)
            if value is not None and constant is None:
                return None
            operands.append(constant)
    if not is_foldable(op) or not has_literals(op) or not _is_small(op, operands):
        return None
    if not may_alias_operands(op.opdef) and any(map(_is_own, op.results)):
        return None  # each call returns a tensor of its own
    if fill is not None:
        return _filled(op, fill, known, followers)
    follows = any(c is not None and c.follows for c in operands)
    tensors = [None if c is None else c.tensor for c in operands]
    results = _evaluate(op, tensors)
    if results is None or not _as_inferred(op, results) or any(made.is_meta for made in results):
        return None
    given = {t.untyped_storage().data_ptr() for t in tensors if t is not None}
    for value, made in zip(op.results, results, strict=True):
        if made.untyped_storage().data_ptr() not in given and _is_own(value):
            return None  # the operator may return its operand, and did not
    if not follows or op.opdef.has(Trait.LAYOUT):
        return [_Constant(t, follows and t.dtype.is_floating_point) for t in results]
    wide = _evaluate(op, [None if c is None else c.tensor.double() if c.follows else c.tensor for c in operands])
    if wide is None or not all(map(_same_numbers, results, wide)):
        return None
    # a cast may end it, and so may a literal that decides the dtype
    return [_Constant(t, w.dtype is torch.float64) for t, w in zip(results, wide, strict=True)]


def _is_small(op: Operation, operands: Sequence[_Constant | None]) -> bool:
    size = 0
    for result in op.results:
        type_ = result.type
        if type(type_) is not TensorType or not type_.is_static or type_.dtype is None:
            return False
        count = type_.numel
        assert type(count) is int
        size += count * type_.dtype.itemsize
    given = sum(c.tensor.numel() * c.tensor.element_size() for c in operands if c is not None)
    if not operands:
        return size <= _MAX_CREATED_BYTES
    return size <= max(_MAX_BYTES, given)


def _filled(
    op: Operation, fill: float | str, known: dict[Value, _Constant], followers: dict[Value, bool | None]
) -> list[_Constant] | None:
    type_ = op.result.tensor_type
    value = op.attributes[fill] if isinstance(fill, str) else fill
    if type_.dtype is None or type_.device is None or type_.device.type == "meta":
        return None
    if op.attributes.get("memory_format") not in (None, torch.preserve_format) or op.attributes.get("layout"):
        return None
    if op.name.endswith("_like"):
        # it has the strides of its operand, which are observable in an output, and in the rounding of sums
        is_known = is_contiguous(op.operand_values[0])
        if reaches_output(op.result) or (not is_known and reaches_kernel(op.result)):
            return None
    shape = [int(d) for d in type_.shape or () if type(d) is int]
    follows = False
    if op.attributes.get("dtype") is None and type_.dtype.is_floating_point:
        known_to = _follows(op.operand_values[0], known, followers)
        if known_to is None:
            return None
        follows = known_to
    tensor = torch.full(shape, value, dtype=type_.dtype, device=type_.device)
    if follows and not bool((tensor.double() == value).all()):
        return None
    return [_Constant(tensor, follows)]


def _follows(value: Value, known: dict[Value, _Constant], followers: dict[Value, bool | None]) -> bool | None:
    """Return whether a float follows `.to(dtype)` of the module, as inputs do; None where that is not known.

    `followers` has the answers so far.
    """
    stack = [value]
    while stack:
        current = stack[-1]
        op, constant = current.defining_op, _constant_of(current, known)
        if constant is not None or op is None:
            weight = weight_of(current)
            is_literal = weight is not None and weight.kind is WeightKind.CONSTANT
            followers[current] = not is_literal if constant is None else constant.follows
        elif op.opdef.facts.creates or any(map(_is_float, op.attributes.values())):
            followers[current] = False
        else:
            sources = [v for v in op.operand_values if _may_be_float(v)]
            pending = [v for v in sources if v not in followers]
            if pending:
                stack += pending
                continue
            answers = {followers[v] for v in sources}
            # of two that differ, promotion takes one
            followers[current] = None if len(answers) > 1 else next(iter(answers), False)
        stack.pop()
    return followers[value]


def _may_be_float(value: Value) -> bool:
    return type(value.type) is TensorType and (value.type.dtype is None or value.type.dtype.is_floating_point)


def _is_float(attribute: Any) -> bool:
    return isinstance(attribute, torch.dtype) and attribute.is_floating_point


def _evaluate(op: Operation, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor] | None:
    """Return what the operator's kernel returns; None where it fails or returns something else."""
    opdef = op.opdef
    kernel, args, kwargs = kernel_call(opdef, opdef.group(tensors, op.segments), op.attributes, lambda leaf: leaf)
    if kernel is None:
        return None
    try:
        with torch.no_grad():
            results = flat_results(kernel(*args, **kwargs))
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, GraphwrightError):
        return None  # the error belongs to the user's call, not to us
    return results if all(type(t) is torch.Tensor for t in results) else None


def _as_inferred(op: Operation, results: Sequence[torch.Tensor]) -> bool:
    return len(results) == len(op.results) and all(
        type_of_tensor(t) == r.type for t, r in zip(results, op.results, strict=True)
    )


def _same_numbers(narrow: torch.Tensor, wide: torch.Tensor) -> bool:
    """Whether the result in float64 is the other one converted, bit for bit (any NaN is like any other)."""
    if not narrow.dtype.is_floating_point:
        return narrow.dtype == wide.dtype and torch.equal(narrow, wide)
    converted = narrow.double()
    if wide.dtype is not torch.float64:
        return wide.dtype == narrow.dtype and torch.equal(converted, wide.double())
    one, other = (t.masked_fill(t.isnan(), torch.nan).view(torch.int64) for t in (converted, wide))
    return torch.equal(one, other)


def _is_own(value: Value) -> bool:
    """Whether each call needs a tensor of its own: it escapes, or is mutated."""
    return aliases_output(value) or is_written(value)


def _materialize(
    program: Program, value: Value, constant: _Constant, op: Operation, interned: dict[Any, Value]
) -> Value:
    """Return the weight that holds a folded tensor; small equal ones are one weight."""
    tensor = constant.tensor
    key: Any = None
    if tensor.numel() * tensor.element_size() <= _MAX_INTERNED_BYTES and not _is_own(value):
        # `contiguous` keeps the strides of a single element
        flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
        raw = flat.view(torch.uint8).numpy(force=True).tobytes() if tensor.numel() else b""
        key = (value.type, tensor.stride(), constant.follows, raw)
        found = interned.get(key)
        if found is not None:
            return found
    base = (value.name or op.opdef.short_name).replace(".", "_")
    weight = Weight(
        name=program.unique_weight_name(f"folded_{base}"),
        kind=WeightKind.BUFFER if constant.follows else WeightKind.CONSTANT,
        type=type_of_tensor(tensor),
        data=tensor,
        persistent=False,
        is_folded=True,
    )
    new = program.add_weight(weight)
    if key is not None:
        interned[key] = new
    return new
