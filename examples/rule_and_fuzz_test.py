"""A rewrite rule of your own, with its tests. Run `pytest examples/rule_and_fuzz_test.py`, or the script itself.

RMSNorm, as many models spell it out, becomes PyTorch's operator. Rounding differs, so the rule is numeric, not exact.
"""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import nn

from graphwright import Match, Pattern, PatternBuilder, Rewriter, transform
from graphwright.fuzz import Properties, assert_sound


class RMSNormFromParts(Pattern):
    """x * rsqrt(mean(x ** 2, -1) + eps) * weight = rms_norm(x, [size], weight, eps), weight: f[size]"""

    is_conversion = True

    def pattern(self, p: PatternBuilder):
        x, weight = p.any("x"), p.any("weight")
        squares = p.op("aten.pow.Tensor_Scalar", x, exponent=2)
        variance = p.op("aten.mean.dim", squares, dim=(-1,), keepdim=True, dtype=None)
        scale = p.rsqrt(p.op("aten.add.Scalar", variance, other=p.attr("eps"), alpha=1))
        return p.mul(weight, p.mul(x, scale))

    def check(self, m: Match):
        x, weight = m.x.tensor_type, m.weight.tensor_type
        if not x.is_known or not x.shape or weight.shape != x.shape[-1:]:
            return f"the weight {weight} does not match the last dimension of {x}"
        if x.dtype not in (torch.float32, torch.float64) or weight.dtype != x.dtype:
            return f"{x} and {weight} do not have the same dtype of full precision"
        if type(m.eps) is not float or m.eps <= 0:
            return f"eps={m.eps} is not positive"
        return None

    def rewrite(self, m: Match, b: Rewriter):
        size = m.x.tensor_type.shape[-1]
        return b.rms_norm(m.x, (size,), m.weight, m.eps)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_the_rule_is_sound() -> None:
    seen = assert_sound(RMSNormFromParts, properties=Properties(strides=False), settings=settings(max_examples=100))
    assert seen.fired["RMSNormFromParts"] > 0


def test_it_fires_in_a_model() -> None:
    model, x = Net().eval(), torch.randn(2, 5, 16)
    result = transform(model, (x,), patterns=(RMSNormFromParts,), validate="each")
    assert [match.pattern for match in result.matches] == [RMSNormFromParts]
    assert "rms_norm" in result.model.code
    torch.testing.assert_close(result.model(x), model(x))


if __name__ == "__main__":
    test_the_rule_is_sound()
    test_it_fires_in_a_model()
    print("sound, and fires")
