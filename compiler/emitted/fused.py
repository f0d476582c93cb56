"""The modules that fused regions are emitted as: small, readable, with their parts as children.

Each has a `kind`, and `quantization_points`: the names of those arguments of `forward` that a quantizer puts
quantize/dequantize pairs on. Both, and the names of the parts, are those that the fusion rule declares.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from compiler.emitted.graphmodule import FusedRegion
from ir.caches import cached
from passes.fuse.attention import MHAInProjectionPattern, ScaledDotProductAttentionPattern
from passes.fuse.base import FusionPattern
from passes.fuse.conv import (
    ConvBNActPattern,
    ConvBNAddActPattern,
    ConvBNPattern,
    ConvTransposeBNActPattern,
    ConvTransposeBNPattern,
    StemConvBNActMaxPoolPattern,
)
from passes.fuse.dense import (
    AdaptiveAvgPoolPattern,
    GatedLinearPattern,
    LayerNormPattern,
    LinearActPattern,
    LinearBNActPattern,
    LinearBNPattern,
    LinearPattern,
)
from passes.fuse.norms import GroupNormPattern, RMSNormPattern


class FusedModule(nn.Module):
    """A fused region whose parts are called one after the other; base class of those with a `forward` of their own.

    Args:
        **parts: the children. Without a rule that declares them, they are called in this order.
    """

    kind: str = ""
    """The kind of the region: `conv_bn_act`."""
    parts: tuple[str, ...] = ()
    """Names of the children, in the order of the calls; some may be absent."""
    quantization_points: tuple[str, ...] = ("input",)
    """Names of the arguments that are quantized."""

    def __init_subclass__(cls, rule: type[FusionPattern] | None = None) -> None:
        """Take kind, parts and quantization points from the declaration of a fusion rule."""
        super().__init_subclass__()
        if rule is not None:
            cls.kind, cls.parts, cls.quantization_points = rule.kind, rule.parts, rule.quantization_points

    def __init__(self, /, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        if not self.parts:
            self.parts = tuple(parts)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if type(self) is fused_class(self.kind):  # which nothing else can import where it was made for a user's kind
            return _empty, (self.kind,), self.__dict__.copy()
        return super().__reduce_ex__(protocol)  # type: ignore[return-value]

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Apply the parts one after the other."""
        output = input
        for name in self.parts:
            part = self._modules.get(name)
            if part is not None:
                output = part(output)
        return output


class FusedConvBN(FusedModule, rule=ConvBNPattern):
    """conv → [bn]"""


class FusedConvBNAct(FusedModule, rule=ConvBNActPattern):
    """conv → [bn] → act"""


class FusedConvBNActMaxPool(FusedModule, rule=StemConvBNActMaxPoolPattern):
    """conv → [bn] → act → max pool"""


class FusedConvBNAddAct(FusedModule, rule=ConvBNAddActPattern):
    """conv → [bn] → + residual → [act]

    Attributes:
        conv: the convolution.
        bn: the norm, where there is one.
        act: the activation, where there is one.
    """

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


class FusedConvTransposeBN(FusedModule, rule=ConvTransposeBNPattern):
    """transposed conv → bn"""


class FusedConvTransposeBNAct(FusedModule, rule=ConvTransposeBNActPattern):
    """transposed conv → bn → act"""


class FusedLinear(FusedModule, rule=LinearPattern):
    """linear"""


class FusedLinearAct(FusedModule, rule=LinearActPattern):
    """linear → act"""


class FusedLinearBN(FusedModule, rule=LinearBNPattern):
    """linear → bn"""


class FusedLinearBNAct(FusedModule, rule=LinearBNActPattern):
    """linear → bn → act"""


class FusedGatedLinear(FusedModule, rule=GatedLinearPattern):
    """(gate → act) · up, or of one linear that is both

    Attributes:
        gate: the linear layer whose result is activated.
        act: the activation.
        up: the other linear layer.
    """

    gate: nn.Module
    act: nn.Module
    up: nn.Module

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Multiply the gate by the other layer's result."""
        gate: Tensor = self.act(self.gate(input))
        up: Tensor = self.up(input)
        return gate * up


class FusedGroupNorm(FusedModule, rule=GroupNormPattern):
    """group norm → [act]"""


class FusedLayerNorm(FusedModule, rule=LayerNormPattern):
    """layer norm"""


class FusedRMSNorm(FusedModule, rule=RMSNormPattern):
    """RMS norm"""


class FusedAdaptiveAvgPool2d(FusedModule, rule=AdaptiveAvgPoolPattern):
    """adaptive average pooling"""


class MHAInProjection(FusedRegion):
    """The projections of attention's queries, keys and values, split to heads; `forward` is generated.

    Its children are the projections: `in_proj` where there is a joint one, else `q_proj`, `k_proj` and `v_proj`.
    """

    kind = MHAInProjectionPattern.kind
    quantization_points = MHAInProjectionPattern.quantization_points


class ScaledDotProductAttention(nn.Module):
    """softmax(query · keyᵀ · scale + mask) · value

    Args:
        dropout_p: probability with which an attention weight is dropped, in training.
        always_drop: drop in eval too (the user's code passed a fixed probability).
        is_causal: mask out the keys behind each query.
        scale: factor of the products; None means 1/sqrt(width of a head).
        enable_gqa: let groups of query heads share key and value heads.

    Attributes:
        kind: the region's kind.
        quantization_points: names of the arguments that are quantized.
        dropout_p: as above.
        always_drop: as above.
        is_causal: as above.
        scale: as above.
        enable_gqa: as above.
    """

    kind = ScaledDotProductAttentionPattern.kind
    quantization_points: tuple[str, ...] = ScaledDotProductAttentionPattern.quantization_points

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


_CLASSES: dict[str, type[Any]] = {
    kind: made
    for made in [*vars().values()]
    if isinstance(made, type) and issubclass(made, nn.Module) and (kind := getattr(made, "kind", ""))
}
"""The classes of this module, by their kind."""


@cached()
def fused_class(kind: str) -> type[Any]:
    """Return the class of the modules of a kind of region: of one that is the user's, a `FusedModule` of its name."""
    found = _CLASSES.get(kind)
    if found is not None:
        return found
    text = "".join(c if c.isalnum() or c == "_" else "_" for c in kind)
    name = "Fused" + "".join(part.capitalize() for part in text.split("_"))
    return type(name, (FusedModule,), {"kind": kind, "__module__": __name__, "__doc__": f"A fused `{kind}`."})


def _empty(kind: str) -> FusedModule:
    cls: type[FusedModule] = fused_class(kind)
    return cls.__new__(cls)
