"""The modules that fused regions are emitted as: small, readable, with their parts as children.

Each has a `kind`, and `quantization_points`: the names of those arguments of `forward` that a quantizer puts
quantize/dequantize pairs on. What has no class here is emitted as a `FusedRegion` with a generated `forward`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from compiler.emitted.graphmodule import FusedRegion


class FusedModule(nn.Module):
    """Base class of the fused modules; its parts are called one after the other.

    Args:
        **parts: the children, in the order of the calls.
    """

    kind: ClassVar[str] = ""
    """The kind of the region: `conv_bn_act`."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the children, in the order of the calls."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those that may be absent."""
    quantization_points: tuple[str, ...] = ("input",)
    """Names of the arguments that are quantized."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Apply the parts one after the other."""
        output = input
        for name in self.parts:
            part = self._modules.get(name)
            if part is not None:
                output = part(output)
        return output


class FusedConvBN(FusedModule):
    """conv → [bn]"""

    kind = "conv_bn"
    parts = ("conv", "bn")
    optional = ("bn",)


class FusedConvBNAct(FusedModule):
    """conv → [bn] → act"""

    kind = "conv_bn_act"
    parts = ("conv", "bn", "act")
    optional = ("bn",)


class FusedConvBNActMaxPool(FusedModule):
    """conv → [bn] → act → max pool"""

    kind = "conv_bn_act_max_pool"
    parts = ("conv", "bn", "act", "pool")
    optional = ("bn",)


class FusedConvBNAddAct(FusedModule):
    """conv → [bn] → + residual → [act]"""

    kind = "conv_bn_add_act"
    parts = ("conv", "bn", "act")
    optional = ("bn", "act")
    quantization_points = ("input", "residual")
    conv: nn.Module
    bn: nn.Module
    act: nn.Module

    @override
    def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """Add `residual`, of the shape of the convolution's result, before the activation."""
        output: Tensor = self.conv(input)
        if "bn" in self._modules:
            output = self.bn(output)
        output = output + residual
        if "act" in self._modules:
            output = self.act(output)
        return output


class FusedLinear(FusedModule):
    """linear"""

    kind = "linear"
    parts = ("linear",)


class FusedLinearAct(FusedModule):
    """linear → act"""

    kind = "linear_act"
    parts = ("linear", "act")


class FusedLayerNorm(FusedModule):
    """layer norm"""

    kind = "layer_norm"
    parts = ("norm",)


class FusedAdaptiveAvgPool2d(FusedModule):
    """adaptive average pooling"""

    kind = "adaptive_avg_pool2d"
    parts = ("pool",)


class MHAInProjection(FusedRegion):
    """The projections of attention's queries, keys and values, split to heads; `forward` is generated.

    Its children are the projections: `in_proj` where there is a joint one, else `q_proj`, `k_proj` and `v_proj`.
    """

    kind = "mha_in_projection"
    quantization_points = ("input",)


class ScaledDotProductAttention(nn.Module):
    """softmax(query · keyᵀ · scale + mask) · value

    Args:
        dropout_p: probability with which an attention weight is dropped, in training.
        always_drop: drop in eval too (the user's code passed a fixed probability).
        is_causal: mask out the keys behind each query.
        scale: factor of the products; None means 1/sqrt(width of a head).
        enable_gqa: let groups of query heads share key and value heads.
    """

    kind = "scaled_dot_product_attention"
    quantization_points: tuple[str, ...] = ("query", "key", "value")

    def __init__(
        self,
        dropout_p: float = 0.0,
        always_drop: bool = False,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        super().__init__()
        self.dropout_p = dropout_p
        self.always_drop = always_drop
        self.is_causal = is_causal
        self.scale = scale
        self.enable_gqa = enable_gqa

    @override
    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend; shapes are (..., heads, length, width), the mask broadcasts to (..., heads, queries, keys)."""
        dropout_p = self.dropout_p if self.training or self.always_drop else 0.0
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        """Return the options that differ from the defaults."""
        shown = {"dropout_p": 0.0, "always_drop": False, "is_causal": False, "scale": None, "enable_gqa": False}
        return ", ".join(f"{k}={getattr(self, k)}" for k, v in shown.items() if getattr(self, k) != v)


CHAIN_CLASSES: dict[str, type[FusedModule]] = {
    cls.kind: cls
    for cls in (
        FusedConvBN,
        FusedConvBNAct,
        FusedConvBNActMaxPool,
        FusedConvBNAddAct,
        FusedLinear,
        FusedLinearAct,
        FusedLayerNorm,
        FusedAdaptiveAvgPool2d,
    )
}
"""The hand-written classes by kind; a region must have exactly their shape to become one."""

REGION_CLASSES: dict[str, type[FusedRegion]] = {MHAInProjection.kind: MHAInProjection}
"""Classes with a generated `forward`."""
