"""The table of OpenVINO on CPUs: long chains of integers, quantized at the inputs."""

from __future__ import annotations

from passes.quant.tables.floats import IN_FLOAT
from passes.quant.tables.row import LAYOUT, Table, register_table

_LPT = "OpenVINO, Low Precision Transformations"
_NNCF = "NNCF, quantization of the CPU target"
_CONV = {
    "inputs": {"input": "u8"},
    "weights": "s8",
    "reason": "the plugin merges Q/DQ at the inputs with what comes before, and all that follows into one kernel",
    "source": _LPT,
}
_CONVOLUTION = {
    **_CONV,
    "when": ["flat groups"],
    "source": f"{_LPT}; conv3d of groups in the plugin, which took the padding for another number than 0",
}
_TRANSPOSED = {
    **_CONV,
    "when": ["one group", "no gaps", "inputs never negative"],
    "reason": f"{_CONV['reason']}; its kernel for transposed convolutions has no zero points and no groups",
    "source": f"{_LPT}; transposed convolutions in the plugin: of 2 to 32 groups, or behind a zero point, they ran in "
    "float; kernels smaller than the stride gave other integers (up to 184 steps)",
}
_SUM = {
    "inputs": {"*": "u8"},
    "when": ["plain sum", "behind a convolution"],
    "reason": "the plugin merges a sum into the convolution before it if both operands are quantized; sums of "
    "transformers stay in float, since norms read them",
    "source": f"{_NNCF}; resnet18 in the plugin: 8 of 8 sums merged, 3 of 8 with Q at the skip input alone",
}
_CHAIN = {
    "inputs": {"*": "u8"},
    "when": ["behind integers", "integers follow"],
    "reason": "it keeps a chain of integers whole",
    "source": _LPT,
}
_EXTREMUM = {
    "carries": True,
    "reason": "the largest integer stands for the largest number: Q moves in front of it; the plugin merges a Q behind "
    "a reduction into it, with another result",
    "source": "maxima over a dimension before a linear layer in the plugin: 11 dB with Q behind them",
}

OPENVINO = register_table(
    Table.of(
        "openvino",
        {
            "conv_bn": _CONVOLUTION,
            "conv_bn_act": _CONVOLUTION,
            "aten.conv_transpose1d": _TRANSPOSED,
            "aten.conv_transpose2d.input": _TRANSPOSED,
            "aten.conv_transpose3d.input": _TRANSPOSED,
            "conv_transpose_bn": _TRANSPOSED,
            "conv_transpose_bn_act": _TRANSPOSED,
            "linear": _CONV,
            "linear_bn": _CONV,
            "linear_bn_act": _CONV,
            "linear_act": _CONV,
            "gated_linear": _CONV,
            "mha_in_projection": _CONV,
            "scaled_dot_product_attention": {
                "reason": "the plugin has one kernel for attention in float; with Q/DQ two products, a softmax, six "
                "transpositions",
                "source": "two layers of ViT-B in the plugin, which were slower with query, key and value in integers",
            },
            "add_act": _SUM,
            "aten.add.Tensor": _SUM,
            "aten.mul.Tensor": {
                **_CHAIN,
                "when": ["fixed sizes", "behind a convolution", "integers follow"],
                "reason": "the scaling of a map between convolutions keeps the chain of integers whole",
                "source": f"{_LPT}; mobilenet_v3_small in the plugin: products in float if the batch varies",
            },
            "aten.cat": {
                **_CHAIN,
                "shares": True,
                "reason": "operands of one scale are joined as integers",
            },
            "adaptive_avg_pool2d": _CHAIN,
            "aten.avg_pool2d": {
                **_CHAIN,
                "when": [*_CHAIN["when"], "whole windows", "16 results"],
                "source": f"{_LPT}; averages of the plugin, which were others where fewer than 16 came out",
            },
            "aten.max_pool2d": {
                "carries": True,
                "reason": "the largest integer stands for the largest number: Q moves in front of it",
                "source": _LPT,
            },
            **dict.fromkeys(("aten.amax", "aten.amin", "aten.max.dim", "aten.min.dim"), _EXTREMUM),
            LAYOUT: {
                "carries": True,
                "reason": "it moves integers as it moves floats: Q moves in front of it",
                "source": _LPT,
            },
            **IN_FLOAT,
        },
    )
)
"""Activations u8 with a zero point, weights s8 with a scale for each channel.

The integer instructions multiply u8 by s8. Zero points cost no kernel and no time (resnet18, an attention net and a
multilayer perceptron in the plugin). s8 activations have to be moved by 128 first, or, without VNNI, meet halved
weights.
"""
