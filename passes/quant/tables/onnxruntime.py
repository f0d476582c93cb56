"""The table of ONNX Runtime on CPUs: kernels between DQ and Q, unsigned activations with a zero point."""

from __future__ import annotations

from passes.quant.tables.floats import IN_FLOAT
from passes.quant.tables.row import LAYOUT, Table, register_table

_GUIDE = "ONNX Runtime, Quantize ONNX models; core/optimizer/qdq_transformer/selectors_actions"
_KERNEL = "its kernel is chosen for DQ → operator → Q: integers at the inputs and behind it"
_CONV = {
    "inputs": {"input": "u8"},
    "outputs": "u8",
    "weights": "s8",
    "reason": f"{_KERNEL}; ReLU is the lower end of the range behind it",
    "source": _GUIDE,
}
_LINEAR = {
    "inputs": {"input": "u8"},
    "weights": "s8",
    "reason": "its kernel reads integers, and writes floats as well as integers",
    "source": _GUIDE,
}
_SUM = {
    "inputs": {"*": "u8"},
    "outputs": "u8",
    "when": ["plain sum", "behind a convolution"],
    "reason": f"{_KERNEL}; sums of transformers stay in float, since norms read them",
    "source": _GUIDE,
}
_POOL = {
    "inputs": {"*": "u8"},
    "outputs": "u8",
    "when": ["behind integers"],
    "reason": f"{_KERNEL}; where the operand is in float, quantizing its small result costs less",
    "source": _GUIDE,
}
_TRANSPOSED = {"reason": "there is no kernel of integers for transposed convolutions", "source": _GUIDE}

ONNXRUNTIME = register_table(
    Table.of(
        "onnxruntime",
        {
            "conv_bn": _CONV,
            "conv_bn_act": _CONV,
            "conv_transpose_bn": _TRANSPOSED,
            "linear": _LINEAR,
            "linear_bn": _LINEAR,
            "linear_bn_act": _LINEAR,
            "linear_act": _LINEAR,
            "mha_in_projection": _LINEAR,
            "add_act": _SUM,
            "aten.add.Tensor": _SUM,
            "aten.mul.Tensor": {
                "inputs": {"*": "u8"},
                "outputs": "u8",
                "when": ["behind a convolution", "integers follow"],
                "reason": _KERNEL,
                "source": _GUIDE,
            },
            "aten.cat": {
                "inputs": {"*": "u8"},
                "outputs": "u8",
                "when": ["behind integers"],
                "reason": f"{_KERNEL}; it takes operands of different scales",
                "source": _GUIDE,
            },
            "adaptive_avg_pool2d": _POOL,
            "aten.avg_pool2d": {**_POOL, "when": [*_POOL["when"], "whole windows"]},
            "aten.max_pool2d": {
                "carries": True,
                "reason": "the largest integer stands for the largest number: Q behind it is dropped",
                "source": _GUIDE,
            },
            LAYOUT: {
                "carries": True,
                "reason": "it moves integers as it moves floats: Q behind it is dropped",
                "source": _GUIDE,
            },
            "aten.conv_transpose1d": _TRANSPOSED,
            "aten.conv_transpose2d.input": _TRANSPOSED,
            "aten.conv_transpose3d.input": _TRANSPOSED,
            "scaled_dot_product_attention": {
                "reason": "the softmax between its products stays in float, so each product would convert its result",
                "source": _GUIDE,
            },
            **IN_FLOAT,
        },
    )
)
"""Activations u8 with a zero point, weights s8 with a scale for each channel (`s7` on hosts without VNNI)."""
