"""Calls on which a kernel of PyTorch 2.13 crashes the process."""

from __future__ import annotations

from ir.core import Operation
from ir.program import Program


def ends_the_process(program: Program) -> bool:
    """Return whether a convolution of a program may crash the process on the CPU, independent of the rule.

    It is a segmentation fault of `conv2d` in channels_last, and of `conv1d`, which calls it, for a map and a kernel
    of width 1, with padding, a stride and a dilation of more than 1 along the width, and a bias. The layout does not
    count: cases run in several.
    """
    return any(op.name in ("aten.conv1d", "aten.conv2d") and _may_fault(op) for op in program.graph.operations())


def _may_fault(op: Operation) -> bool:
    x, weight, bias = op.operands[:3]
    attributes = [op.attributes[name] for name in ("stride", "padding", "dilation")]
    if x is None or weight is None or bias is None or not all(isinstance(item, tuple) for item in attributes):
        return False
    shapes = x.tensor_type.shape, weight.tensor_type.shape
    stride, padding, dilation = (item[-1] for item in attributes)
    is_narrow = all(shape is not None and shape[-1] == 1 for shape in shapes)
    return is_narrow and stride > 1 and padding > 0 and dilation > 1
