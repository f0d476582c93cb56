"""Conditions of rows: each says of an operation why it stays in float, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ir.core import Operation, Value
from ir.opdef import Trait
from ir.types import Dim, TensorType


class Decisions(Protocol):
    """What is decided so far, as conditions see it."""

    def readers(self, value: Value) -> Sequence[tuple[Operation, bool]]:
        """Return the operations that read a value, also through those that carry it, and whether as integers.

        The graph's `return` reads its outputs.
        """

    def writer(self, value: Value) -> Operation | None:
        """Return the operation that computes a value, through those that carry it; None for inputs and weights."""

    def is_placed(self, op: Operation) -> bool:
        """Return whether an operation is to run in integers."""

    def is_never_negative(self, value: Value) -> bool:
        """Return whether no number of a value is negative, as far as operators tell."""


Condition = Callable[[Operation, Decisions], str | None]
"""Returns why an operation stays in float; None where the condition holds."""

MIN_CHANNELS = 16
MIN_RESULTS = 16


def layers_of(op: Operation) -> tuple[Operation, ...]:
    """Return the convolutions and linear layers of a region, or of one operation."""
    ops = (op,) if op.body is None else tuple(op.body.operations())
    return tuple(
        each for each in ops if each.opdef.has(Trait.CONV) or is_transposed(each) or each.name == "aten.linear"
    )


def is_transposed(op: Operation) -> bool:
    """Return whether an operation is a transposed convolution."""
    return op.opdef.has(Trait.CONV_TRANSPOSE)


def channel_axis(layer: Operation) -> int:
    """Return the dimension of a weight that counts the output channels."""
    return 1 if is_transposed(layer) else 0


def data_operands(op: Operation) -> tuple[Value, ...]:
    """Return the operands that are floating-point values and no weights."""
    return tuple(value for value in op.operand_values if not value.is_weight and is_floating(value))


def is_floating(value: Value) -> bool:
    """Return whether a value is known to be a tensor of floating-point numbers."""
    return isinstance(value.type, TensorType) and value.type.dtype is not None and value.type.dtype.is_floating_point


def _enough_channels(op: Operation, decisions: Decisions) -> str | None:
    """its convolutions have 16 channels or more, in and out"""
    for layer in layers_of(op):
        shape = layer.input("weight").known_shape
        if shape is None or len(shape) < 2 or layer.name == "aten.linear":
            continue
        groups = layer.attributes["groups"]
        outer, inner = (shape[1], shape[0]) if is_transposed(layer) else (shape[0], shape[1])
        counts = (outer * groups, inner) if is_transposed(layer) else (outer, inner * groups)
        for count, what in zip(counts, ("output", "input"), strict=True):
            if isinstance(count, int) and count < MIN_CHANNELS:
                return f"the convolution has {count} {what} channels, fewer than {MIN_CHANNELS}"
    return None


def _matrix_product(op: Operation, decisions: Decisions) -> str | None:
    """its linear layers multiply more than one row"""
    for layer in layers_of(op):
        shape = layer.operand_values[0].known_shape
        if shape is not None and _is_one(shape[:-1]):
            return "the product is of a matrix and one vector, bound by the reading of the weight"
    return None


def _is_one(dims: Sequence[Dim]) -> bool:
    return all(isinstance(dim, int) and dim == 1 for dim in dims)


def _one_group(op: Operation, decisions: Decisions) -> str | None:
    """its convolutions have one group"""
    groups = max([layer.attributes.get("groups", 1) for layer in layers_of(op)], default=1)
    return None if groups == 1 else f"the convolution has {groups} groups"


def _flat_groups(op: Operation, decisions: Decisions) -> str | None:
    """it is no padded three-dimensional convolution of groups with a zero point"""
    if any(map(pads_groups, layers_of(op))) and not _are_never_negative(op, decisions):
        return "a padded convolution of groups in three dimensions, and its zero point is not 0"
    return None


def pads_groups(layer: Operation) -> bool:
    """Return whether a layer is a padded three-dimensional convolution of groups."""
    if layer.name != "aten.conv3d" or layer.attributes["groups"] == 1:
        return False
    return _is_padded(layer.attributes["padding"])


def _is_padded(padding: Sequence[int] | str) -> bool:
    return padding != "valid" if isinstance(padding, str) else any(padding)


def _are_never_negative(op: Operation, decisions: Decisions) -> bool:
    return all(map(decisions.is_never_negative, data_operands(op)))


def _no_gaps(op: Operation, decisions: Decisions) -> str | None:
    """the kernels of its convolutions are as large as the strides"""
    return next(filter(None, map(smaller_than_stride, layers_of(op))), None)


def smaller_than_stride(layer: Operation) -> str | None:
    """Return how the kernel of a convolution is smaller than its stride, or may be; None where it is not."""
    shape = layer.input("weight").known_shape
    if shape is None or layer.name == "aten.linear":
        return None
    kernel, strides = shape[2:], layer.attributes["stride"]
    strides = strides * len(kernel) if len(strides) == 1 else strides
    for taps, stride in zip(kernel, strides, strict=True):
        if not (isinstance(taps, int) and isinstance(stride, int) and taps >= stride):
            return f"the kernel has the size {list(kernel)}, less than the stride {list(strides)}"
    return None


def _inputs_never_negative(op: Operation, decisions: Decisions) -> str | None:
    """its inputs are never negative, as behind a ReLU, so that their zero points are 0"""
    for value in data_operands(op):
        if not decisions.is_never_negative(value):
            return f"its input {value.name or ''} may be negative, so its zero point is not 0".replace("  ", " ")
    return None


def _fixed_sizes(op: Operation, decisions: Decisions) -> str | None:
    """its results have fixed sizes"""
    for result in op.results:
        if any(not isinstance(dim, int) for dim in result.known_shape or (None,)):
            return "its size varies from call to call"
    return None


def _integers_follow(op: Operation, decisions: Decisions) -> str | None:
    """all that reads its results reads integers"""
    for result in op.results:
        readers = decisions.readers(result)
        if not readers:
            return "nothing reads it"
        for reader, as_integers in readers:
            if not as_integers:
                is_output = reader.name == "return"
                what = "an output of the model" if is_output else f"{reader.name} at `{reader.location.where}`"
                return f"what follows stays in float: {what}"
    return None


def _behind_integers(op: Operation, decisions: Decisions) -> str | None:
    """all its operands come from regions in integers"""
    for value in data_operands(op):
        writer = decisions.writer(value)
        if writer is None or not decisions.is_placed(writer):
            what = f"{writer.name} at `{writer.location.where}`" if writer is not None else "an input of the model"
            return f"an operand is computed in float: {what}"
    return None


def _behind_convolution(op: Operation, decisions: Decisions) -> str | None:
    """an operand comes from a convolution in integers, or from a sum or product of such"""
    for value in data_operands(op):
        writer = decisions.writer(value)
        if writer is None or not decisions.is_placed(writer):
            continue
        layers = layers_of(writer)
        if any(layer.name != "aten.linear" for layer in layers):
            return None
        if not layers and writer.body is not None and _behind_convolution(writer, decisions) is None:
            return None
    return "no operand comes from a convolution in integers"


def _plain_sum(op: Operation, decisions: Decisions) -> str | None:
    """its operands are added without a factor"""
    alpha = op.attributes.get("alpha", 1)
    return None if alpha == 1 else f"an operand is multiplied by {alpha}"


def _whole_windows(op: Operation, decisions: Decisions) -> str | None:
    """its windows have one size: `ceil_mode=False`, no divisor of their own, no zeros beside a zero point"""
    if op.attributes.get("divisor_override") is not None:
        return "the averages have a divisor of their own"
    if op.attributes["ceil_mode"]:
        return "windows may reach beyond the map (ceil_mode), and average fewer cells"
    if averages_padding(op) and not _are_never_negative(op, decisions):
        return "windows average zeros of the padding, where kernels have the integer 0, and the zero point is not 0"
    return None


def averages_padding(op: Operation) -> bool:
    """Return whether the windows of an average pool have zeros of the padding in them."""
    return bool(op.attributes["count_include_pad"]) and _is_padded(op.attributes["padding"])


def _sixteen_results(op: Operation, decisions: Decisions) -> str | None:
    """its results have 16 numbers or more, whatever the batch"""
    return few_results(op)


def few_results(op: Operation) -> str | None:
    """Return why the result of an operation may be too small for a kernel on vectors; None where it is not."""
    for result in op.results:
        known = [dim for dim in (result.known_shape or ())[1:] if isinstance(dim, int)]
        if math.prod(known) < MIN_RESULTS:
            return f"a result of fewer than {MIN_RESULTS} numbers is smaller than a vector of the kernel"
    return None


CONDITIONS: Mapping[str, Condition] = {
    "16 channels": _enough_channels,
    "matrix product": _matrix_product,
    "one group": _one_group,
    "flat groups": _flat_groups,
    "no gaps": _no_gaps,
    "inputs never negative": _inputs_never_negative,
    "fixed sizes": _fixed_sizes,
    "integers follow": _integers_follow,
    "behind integers": _behind_integers,
    "behind a convolution": _behind_convolution,
    "plain sum": _plain_sum,
    "whole windows": _whole_windows,
    "16 results": _sixteen_results,
}
"""The conditions that rows name; the docstring of each completes "a region runs in integers where …"."""
