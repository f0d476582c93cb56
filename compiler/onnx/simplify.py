"""Simplification of what PyTorch's exporter writes, by rules that change no number.

The exporter's own optimization takes a constant near 0 or 1 for 0 or 1, and drops `x + 1e-12`; it folds batch norms in
the precision of the weights, and merges minimum and maximum into operators that treat NaN otherwise. Its rules are
chosen here one by one: these move elements, or compute sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compiler.extras import import_extra

_RULES = (
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice2_rule",
    "collapse_slice_rule",
    "dropout_inference_rule",
    "dropout_zero_rule",
    "fuse_pad_into_conv_rule",
    "materialize_reshape_shape_rule",
    "no_op_cast_rule",
    "no_op_dynamic_scatter_nd_rule",
    "no_op_expand_rule",
    "no_op_static_scatter_nd_rule",
    "no_op_transpose_rule",
    "one_reshape_matmul_reshape_rule",
    "reshape_reshape_rule",
    "slice_split_rule",
    "squeeze_reshape_1d_rule",
    "transpose_transpose_rule",
    "two_reshapes_matmul_reshape_rule",
    "unsqueeze_unsqueeze_rule",
)
"""Names of `onnxscript.rewriter.rules.common`."""

_ROUNDS = 2


def simplify(model: Any) -> None:
    """Inline functions, fold constants, and remove what moves or computes nothing, in place.

    Args:
        model: an `onnx_ir.Model`.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
    """
    passes = import_extra("onnx_ir.passes.common")
    optimizer = import_extra("onnxscript.optimizer")
    rewriter = import_extra("onnxscript.rewriter")
    rules = import_extra("onnxscript.rewriter.rules.common")
    chosen = rewriter.RewritePass([getattr(rules, name) for name in _RULES])
    passes.InlinePass()(model)
    _drop_zeros(model)
    for _ in range(_ROUNDS):
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        chosen(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    with _quiet("onnx_ir.passes.common.initializer_deduplication"):  # it names each weight that is an output as well
        passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _drop_zeros(model: Any) -> None:
    """Drop the biases that the exporter makes up for convolutions that have none: those of conv3d have two rows."""
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3 and _is_expanded_zero(node.inputs[2]):
            node.resize_inputs(2)


def _is_expanded_zero(bias: Any) -> bool:
    expand = bias.producer()
    zero = None if expand is None or expand.op_type != "Expand" else expand.inputs[0].producer()
    while zero is not None and zero.op_type == "CastLike":
        zero = zero.inputs[0].producer()
    if zero is None or zero.op_type != "Constant":
        return False
    tensor = import_extra("onnx_ir").convenience.get_const_tensor(zero.outputs[0])
    return tensor is not None and not tensor.numpy().any()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger say errors only inside the `with` block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
