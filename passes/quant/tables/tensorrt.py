"""The table of TensorRT: explicit quantization, symmetric, at the inputs."""

from __future__ import annotations

from passes.quant.tables.floats import IN_FLOAT
from passes.quant.tables.row import LAYOUT, Table, register_table

_GUIDE = "TensorRT developer guide, Working with Quantized Types"
_OPTIMIZER = "TensorRT developer guide, Working with Quantized Types, Q/DQ placement recommendations"
_MODELOPT = "NVIDIA ModelOpt, modelopt.onnx.quantization"
_SYMMETRIC = "the builder fuses Q/DQ at the inputs and the weight into the layer's kernel, and needs none behind it"
_CONV = {
    "inputs": {"input": "s8"},
    "weights": "s8",
    "when": ["16 channels"],
    "reason": _SYMMETRIC,
    "source": _OPTIMIZER,
}
_LINEAR = {**_CONV, "when": ["matrix product"]}
_POOL = {
    "inputs": {"*": "s8"},
    "when": ["integers follow"],
    "reason": "average pooling does not commute with Q: it runs in integers where its result is read as integers",
    "source": _GUIDE,
}
_COMMUTES = {
    "reason": "it commutes with Q: the builder moves the Q of what follows in front of it",
    "source": _OPTIMIZER,
}
_SUM = {
    "reason": "a sum outside of a convolution's kernel gains nothing; residual streams need the range of floats",
    "source": _OPTIMIZER,
}

TENSORRT = register_table(
    Table.of(
        "tensorrt",
        {
            "conv_bn": _CONV,
            "conv_bn_act": _CONV,
            "conv_bn_act_max_pool": _CONV,
            "conv_bn_add_act": {
                **_CONV,
                "inputs": {"input": "s8", "residual": "s8"},
                "reason": "Q/DQ on the skip input only: on both operands of the sum they split it from the convolution",
            },
            "aten.conv_transpose1d": _CONV,
            "aten.conv_transpose2d.input": _CONV,
            "aten.conv_transpose3d.input": _CONV,
            "conv_transpose_bn": _CONV,
            "conv_transpose_bn_act": _CONV,
            "linear": _LINEAR,
            "linear_bn": _LINEAR,
            "linear_bn_act": _LINEAR,
            "linear_act": _LINEAR,
            "gated_linear": _LINEAR,
            "mha_in_projection": _LINEAR,
            "scaled_dot_product_attention": {
                "inputs": {"query": "s8", "key": "s8", "value": "s8"},
                "together": True,
                "reason": "both products of attention run in integers where query, key and value do; the softmax stays "
                "in float",
                "source": _MODELOPT,
            },
            "adaptive_avg_pool2d": _POOL,
            "aten.avg_pool2d": {**_POOL, "when": [*_POOL["when"], "whole windows"]},
            "aten.max_pool2d": _COMMUTES,
            "aten.cat": _COMMUTES,
            LAYOUT: _COMMUTES,
            "aten.add.Tensor": _SUM,
            **IN_FLOAT,
        },
    )
)
"""Symmetric activations of one scale, weights with a scale for each channel."""
