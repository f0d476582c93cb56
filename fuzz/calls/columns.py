"""Checks of the columns of the operator table against the kernels, on one call with real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch

from ir.attributes import has_ref
from ir.columns import Layout, StorageRule, StrideRule
from ir.core import Operation, Value
from ir.fake import call_arguments, flat_results
from ir.memory.aliasing import demands_strides, makes_view, may_alias_operands
from ir.memory.layout import LayoutMap
from ir.opdef import OpDef, Trait, get_opdef

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@attrs.frozen(eq=False)
class Call:
    """A call that was run: the operation, without symbolic attributes, its operands, and the kernel's results."""

    op: Operation
    operands: list[Any]
    """Tensors, lists of tensors and None, by parameter."""
    results: list[torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The operands that are tensors."""
        found: list[torch.Tensor | None] = []
        for operand in self.operands:
            found += operand if isinstance(operand, list) else [operand]
        return [each for each in found if each is not None]

    def again(
        self, opdef: OpDef | None = None, operands: list[Any] | None = None, attributes: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a kernel on the call, with operator, operands or attributes replaced."""
        opdef = opdef or self.op.opdef
        given = {**self.op.attributes, **(attributes or {})}
        grouped = tuple(self.operands if operands is None else operands)
        args, kwargs = call_arguments(opdef, grouped, given, lambda leaf: leaf)
        assert opdef.target is not None
        return opdef.target(*args, **kwargs)


def called(op: Operation, tensors: Mapping[Value, Any]) -> Call | None:
    """Run an operation on tensors; None if the kernel refuses them, or an attribute is an operand."""
    if any(has_ref(attribute) for attribute in op.attributes.values()) or op.opdef.target is None:
        return None
    parts: tuple[Any, ...] = op.grouped_operands()
    found: dict[Any, Any] = {None: None, **tensors}
    operands = [[found[each] for each in part] if isinstance(part, tuple) else found[part] for part in parts]
    call = Call(op, operands, [])
    try:
        returned = call.again()
    except (RuntimeError, IndexError, NotImplementedError):
        return None
    call.results.extend(tensors_of(returned))
    return call


def tensors_of(returned: Any) -> list[torch.Tensor]:
    """Return the tensors among the results of a kernel."""
    return [item for item in flat_results(returned) if isinstance(item, torch.Tensor)]


def broken_columns(call: Call) -> list[str]:
    """Return the claims of the table about the operator that this call disproves."""
    return [f"{call.op.name}: {claim}" for check in _CHECKS for claim in check(call)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have the same elements; NaN equals itself, and `meta` has none."""
    if a.is_meta or b.is_meta:
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    if a.dtype.is_floating_point or a.dtype.is_complex:
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    return torch.equal(a, b)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_dense(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _storage(call: Call) -> Iterator[str]:
    opdef = call.op.opdef
    tensors = [each for each in call.tensors if each.numel()]
    results = [each for each in call.results if each.numel()]
    places = {_place(each) for each in tensors}
    if not may_alias_operands(opdef) and any(_place(each) in places for each in results):
        yield "it aliases no operand, but did"
    if opdef.facts.storage is not None:
        others = {_place(each) for each in tensors[1:]} - {_place(each) for each in tensors[:1]}
        if any(_place(each) in others for each in results):
            yield "it aliases its first operand at most, but aliased another"
    first = tensors[0] if tensors else None
    is_view = demands_strides(opdef) or (makes_view(opdef) and opdef.facts.storage is not StorageRule.EITHER)
    if is_view and first is not None and any(_place(each) != _place(first) for each in results):
        yield "it is a view of its first operand, but was not"


def _layout(call: Call) -> Iterator[str]:
    layout = call.op.opdef.layout
    x = call.operands[0] if call.operands else None
    if layout is None or not isinstance(x, torch.Tensor) or not x.numel():
        return
    for index, result in enumerate(call.results):
        expected = _expected(call, layout, x, index)
        if expected is not None and not same(result, expected):
            yield f"{layout.value}: result {index} is another"


def _expected(call: Call, layout: Layout, x: torch.Tensor, index: int) -> torch.Tensor | None:
    attributes: Any = call.op.attributes
    if layout in (Layout.SAME, Layout.DETACHED):
        return x
    if layout is Layout.RESHAPE:
        return x.reshape(call.results[index].shape)
    if layout is Layout.EXPAND:
        return x.broadcast_to(call.results[index].shape)
    if layout is Layout.UNBIND:
        return x.select(attributes["dim"], index)
    if layout is Layout.NARROW:
        start = attributes["start"] % max(x.shape[attributes["dim"]], 1)
        return x.index_select(attributes["dim"], torch.arange(start, start + attributes["length"]))
    described = LayoutMap.identity(x.shape).step(call.op, index)
    if described is None:
        return None
    offset = described.offset
    assert isinstance(offset, int)
    places = torch.full(described.shape, offset)
    for dim, atoms in enumerate(described.dims):
        steps = torch.zeros(1, dtype=torch.int64)
        for size, stride in atoms:
            steps = (steps[:, None] + torch.arange(size) * stride).reshape(-1)
        places = places + steps.reshape([-1 if d == dim else 1 for d in range(len(described.dims))])
    return x.reshape(-1)[places]


def _strides(call: Call) -> Iterator[str]:
    rule = call.op.opdef.facts.strides
    if rule is None or not all(map(_is_dense, call.tensors)):
        return
    tensors = [each for each in call.operands if isinstance(each, torch.Tensor)]
    for result in call.results:
        if rule is StrideRule.CONTIGUOUS and not result.is_contiguous():
            yield "its result is contiguous, but was not"
        if rule is StrideRule.FORMAT and all(map(_has_format, tensors)) and not _has_format(result):
            yield "its result is contiguous or channels_last, but was neither"
        if rule is StrideRule.PASSED and _has_format(tensors[0]) and not _has_format(result):
            yield "it passes the memory format on, but did not"


def _has_format(tensor: torch.Tensor) -> bool:
    is_last = tensor.dim() in _LAST and tensor.is_contiguous(memory_format=_LAST[tensor.dim()])
    return tensor.is_contiguous() or is_last


def _fixed(call: Call) -> Iterator[str]:
    if not call.op.opdef.fixes_strides or not call.tensors or not all(map(_is_dense, call.tensors)):
        return
    turned = [_in_another_order(each) if isinstance(each, torch.Tensor) else each for each in call.operands]
    results = call.again(operands=turned)
    for before, after in zip(call.results, tensors_of(results), strict=False):
        sizes = [size != 1 for size in before.shape]
        pairs = zip(before.stride(), after.stride(), sizes, strict=True)
        if before.numel() and any(a != b for a, b, counts in pairs if counts):
            yield "its strides do not depend on those of its operands, but did"


def _in_another_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return an equal tensor with the dimensions in reverse memory order."""
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def _dims(call: Call) -> Iterator[str]:
    facts = call.op.opdef.facts
    x = call.tensors[0] if call.tensors else None
    if x is not None and facts.adds_dim and any(result.dim() != x.dim() + 1 for result in call.results):
        yield "its result has one dimension more, but had not"
    dim: Any = call.op.attributes.get("dim")
    if facts.dims is None or x is None or not x.dim() or dim is None or dim == ():
        return
    # a list of tensors to concatenate may hold an empty vector, whatever the rank of the others
    rank = max(t.dim() for t in call.tensors) if call.op.opdef.has_lists else x.dim()
    rank += facts.adds_dim
    turned = tuple(d - rank if d >= 0 else d + rank for d in dim[::-1]) if isinstance(dim, tuple) else dim
    turned = turned if isinstance(dim, tuple) else dim - rank if dim >= 0 else dim + rank
    results = call.again(attributes={"dim": turned})
    for before, after in zip(call.results, tensors_of(results), strict=False):
        if not same(before, after):
            yield f"dim={dim} and dim={turned} are one, but were two"


def _sizes(call: Call) -> Iterator[str]:
    facts = call.op.opdef.facts
    if facts.shape is not None:
        given: Any = call.op.attributes[facts.shape]
        if any(asked not in (-1, size) for asked, size in zip(given, call.results[0].shape, strict=True)):
            yield f"{facts.shape} is the shape of the result, but was not"


def _fill(call: Call) -> Iterator[str]:
    fill = call.op.opdef.facts.fill
    if fill is None:
        return
    (result,) = call.results
    number: Any = call.op.attributes[fill] if isinstance(fill, str) else fill
    if not same(result, torch.full_like(result, number)):
        yield f"each element is {number}, but was not"


def _creates(call: Call) -> Iterator[str]:
    if call.op.opdef.facts.creates:
        (result,) = call.results
        if call.op.operands or not same(result, call.again()):
            yield "its result depends on attributes alone, but did not"


def _synonym(call: Call) -> Iterator[str]:
    synonym = call.op.opdef.facts.synonym
    if synonym is not None:
        (result,) = call.results
        if not same(result, call.again(get_opdef(synonym))):
            yield f"it is another name of {synonym}, but gave something else"


def _inverse(call: Call) -> Iterator[str]:
    inverse = call.op.opdef.facts.inverse
    if inverse is not None:
        (result,) = call.results
        back = get_opdef(inverse).target
        assert back is not None
        if not same(back(result), call.operands[0]):
            yield f"{inverse} takes the result back, but did not"


def _modes(call: Call) -> Iterator[str]:
    opdef = call.op.opdef
    if opdef.has(Trait.DROPOUT) and opdef.training is not None:
        x = call.operands[0]
        if call.again(attributes={opdef.training: False}).data_ptr() != x.data_ptr():
            yield "outside of training it returns its operand, but did not"
    if opdef.has(Trait.NORMALIZES) and not {"running_mean", "running_var"} <= set(opdef.operand_index):
        yield "it reads running statistics, but takes none"


def _overwrites(call: Call) -> Iterator[str]:
    if call.op.opdef.has(Trait.OVERWRITES):
        (result,) = call.results
        state = torch.get_rng_state()
        first = call.again()
        torch.set_rng_state(state)
        others = [torch.ones_like(call.operands[0]), *call.operands[1:]]
        if first.shape == result.shape and not same(first, call.again(operands=others)):
            yield "its result does not depend on its operand, but did"


_CHECKS: tuple[Callable[[Call], Iterator[str]], ...] = (
    _storage,
    _layout,
    _strides,
    _fixed,
    _dims,
    _sizes,
    _fill,
    _creates,
    _synonym,
    _inverse,
    _modes,
    _overwrites,
)
