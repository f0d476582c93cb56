"""Checks of the traits, names and numbers of the operator table against the kernels, on one call with real tensors.

The traits RANDOM, OPAQUE, VIEW and UNINITIALIZED only forbid: a claim too many costs a rewrite and no number. So the
lack of RANDOM is what is checked here, and that of VIEW in `fuzz/calls/columns.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fuzz.calls.columns import Call, broken_columns, same, tensors_of
from ir.columns import Dims, Layout
from ir.fake import kernel_call
from ir.opdef import Trait
from ir.types import TensorType, type_of_tensor, types_agree

_READS: dict[Layout, tuple[str, ...]] = {
    Layout.PERMUTE: ("dims",),
    Layout.MOVE: ("source", "destination"),
    Layout.SELECT: ("dim", "index"),
    Layout.SLICE: ("dim", "start", "end", "step"),
    Layout.NARROW: ("dim", "start", "length"),
    Layout.SPLIT: ("dim",),
    Layout.UNBIND: ("dim",),
}
"""The attributes that a layout is computed from."""


def broken_claims(call: Call) -> list[str]:
    """Return all claims of the table about the operator that this call disproves."""
    missing = [f"{call.op.name}: {claim}" for claim in _names(call)]
    if missing:
        return missing  # what a column reads is not there
    return [*broken_columns(call), *(f"{call.op.name}: {claim}" for check in _CHECKS for claim in check(call))]


def _names(call: Call) -> Iterator[str]:
    """The attributes that columns name are in the schema."""
    opdef, facts = call.op.opdef, call.op.opdef.facts
    named: list[str | None] = [facts.shape, opdef.training]
    named += [facts.fill if isinstance(facts.fill, str) else None, "dim" if facts.dims is not None else None]
    named += _READS.get(opdef.layout, ()) if opdef.layout is not None else ()
    for name in named:
        if name is not None and name not in call.op.attributes:
            yield f"it has an attribute `{name}`, but has none"
    if opdef.has(Trait.DROPOUT) and opdef.training is None:
        yield "it is a dropout, but has no training flag"
    if facts.dims is Dims.REDUCED and not isinstance(call.op.attributes.get("dim"), tuple | int | None):
        yield "`dim` numbers dimensions, but did not"


def _types(call: Call) -> Iterator[str]:
    """Inference gives the types that the kernel gives."""
    for index, (value, result) in enumerate(zip(call.op.results, call.results, strict=False)):
        is_concrete = isinstance(value.type, TensorType) and all(type(dim) is int for dim in value.type.shape or ())
        if is_concrete and not types_agree(value.type, type_of_tensor(result)):
            yield f"result {index} is {value.type}, but was {type_of_tensor(result)}"


def _pure(call: Call) -> Iterator[str]:
    """PURE: the same result each time, and no effect; without RANDOM, no random numbers."""
    op = call.op
    copies = [_copied(each) for each in call.operands]
    state = torch.get_rng_state()
    results = tensors_of(call.again(operands=copies))
    draws = not torch.equal(state, torch.get_rng_state())
    if draws and not op.is_random:
        yield "it draws no random numbers, but did"
    if not op.is_pure or op.opdef.has(Trait.UNINITIALIZED):
        return
    if draws or not all(map(same, call.results, results)):
        yield "it is pure, but gave another result"
    flat = (
        (before, after)
        for one, other in zip(call.operands, copies, strict=True)
        for before, after in (zip(one, other, strict=True) if isinstance(one, list) else [(one, other)])
    )
    if any(before is not None and not same(before, after) for before, after in flat):
        yield "it is pure, but mutated an operand"


def _elementwise(call: Call) -> Iterator[str]:
    """ELEMENTWISE: what lies elsewhere in an operand makes no difference to an element."""
    if not call.op.opdef.has(Trait.ELEMENTWISE) or call.op.is_random:
        return
    shape = torch.broadcast_shapes(*(each.shape for each in call.tensors))
    if any(result.shape != shape for result in call.results):
        yield f"it is elementwise, but the result is not of shape {tuple(shape)}"
        return
    for number, x in enumerate(call.operands):
        if not isinstance(x, torch.Tensor) or x.numel() < 2:
            continue
        changed = torch.rand(x.shape, generator=torch.Generator().manual_seed(number)) < 0.5
        others = list(call.operands)
        others[number] = torch.where(changed, x.reshape(-1).roll(1).reshape(x.shape), x)
        kept = ~changed.broadcast_to(shape)
        for before, after in zip(call.results, tensors_of(call.again(operands=others)), strict=True):
            if not same(before[kept], after[kept]):
                yield f"it is elementwise, but other elements of operand {number} made a difference"


def _selects(call: Call) -> Iterator[str]:
    """SELECTS: a function that keeps order can be applied to the operands or to the result, in integers too."""
    if not call.op.opdef.has(Trait.SELECTS) or any(each.isnan().any() for each in call.tensors):
        return
    (result,) = call.results
    for make in (_coarser, _in_integers):
        made = [[make(t) for t in each] if isinstance(each, list) else make(each) for each in call.operands]
        if not same(call.again(operands=made), make(result)):
            yield "its elements are elements of an operand, but others came out"
            return


def _coarser(x: torch.Tensor) -> torch.Tensor:
    return (x.double() * 4).floor().clamp(-100, 27)


def _in_integers(x: torch.Tensor) -> torch.Tensor:
    return _coarser(x).to(torch.int8)


def _activation(call: Call) -> Iterator[str]:
    """ACTIVATION: one tensor (of PReLU: and its slope), whose shape and dtype the result has."""
    if not call.op.opdef.has(Trait.ACTIVATION):
        return
    (x, *_), (result,) = call.operands, call.results
    if any(param.name != "weight" for param in call.op.opdef.operand_params[1:]):
        yield "it is an activation, but takes another tensor"
    if x.dtype.is_floating_point and (result.shape, result.dtype) != (x.shape, x.dtype):
        yield f"it is an activation, but made {type_of_tensor(result)} of {type_of_tensor(x)}"


def _cast(call: Call) -> Iterator[str]:
    """CAST: the operand's elements in another dtype, place or memory format."""
    if call.op.opdef.has(Trait.CAST):
        (result,) = call.results
        if not same(result, call.operands[0].to(result.dtype)):
            yield "it is a cast, but changed elements"


def _commutative(call: Call) -> Iterator[str]:
    """COMMUTATIVE: the first two operands swapped give the same bits (of a sum: where neither is scaled)."""
    if call.op.opdef.has(Trait.COMMUTATIVE) and call.op.attributes.get("alpha", 1) == 1:
        a, b, *rest = call.operands
        if not all(map(same, call.results, tensors_of(call.again(operands=[b, a, *rest])))):
            yield "it commutes, but did not"


def _idempotent(call: Call) -> Iterator[str]:
    """IDEMPOTENT: applied to its own result it changes nothing."""
    if call.op.opdef.has(Trait.IDEMPOTENT):
        (result,) = call.results
        if not all(map(same, [result], tensors_of(call.again(operands=[result, *call.operands[1:]])))):
            yield "it is idempotent, but was not"


def _unit(call: Call) -> Iterator[str]:
    """The unit as the second operand changes nothing but the dtype and the sign of zero."""
    opdef = call.op.opdef
    unit = opdef.facts.unit
    if unit is None:
        return
    x, *rest = call.operands
    if rest:
        made = call.again(operands=[x, torch.full_like(x, unit), *rest[1:]])
    else:
        made = call.again(attributes={opdef.attribute_params[0].name: unit})
    if not same(made + 0, x.to(made.dtype) + 0):
        yield f"{unit} is its unit, but changed elements"


def _evaluated(call: Call) -> Iterator[str]:
    """What is evaluated in place of the kernel gives what the kernel gives."""
    op = call.op
    if op.opdef.facts.evaluate is not None and not op.is_random:
        copies = tuple(_copied(each) for each in call.operands)
        evaluate, args, kwargs = kernel_call(op.opdef, copies, op.attributes, lambda leaf: leaf)
        assert evaluate is not None
        if not all(map(same, call.results, tensors_of(evaluate(*args, **kwargs)))):
            yield "it is evaluated as the kernel computes, but was not"


def _copied(operand: Any) -> Any:
    if isinstance(operand, list):
        return [_copied(each) for each in operand]
    return operand.clone() if isinstance(operand, torch.Tensor) else operand


_CHECKS: tuple[Callable[[Call], Iterator[str]], ...] = (
    _types,
    _pure,
    _elementwise,
    _selects,
    _activation,
    _cast,
    _commutative,
    _idempotent,
    _unit,
    _evaluated,
)
