"""Programs after `run_decompositions()` get the same rules as the export that they come from."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.driver import transform
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from passes.convert.recompose import RECOMPOSITIONS
from tests.helpers import randomize_batch_norm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # run_decompositions warns about PyTorch's own code


class Net(nn.Module):
    """A convolutional stem, squeeze-and-excitation, a window of attention, a block of a transformer, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.pool = nn.MaxPool2d(2)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.group = nn.GroupNorm(2, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, activation="gelu")
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(F.relu6(self.stem(x)))
        x = self.group(F.mish(self.up(x * self.down(F.adaptive_avg_pool2d(x, 1)))))
        windows = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 8)
        q, k, v = self.qkv(windows).view(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q * 0.5 @ k.transpose(-2, -1), -1) @ v
        tokens = self.out(y.transpose(1, 2).reshape(-1, 64, 8))
        q = tokens.view(-1, 2, 8, 8)
        tokens = tokens + F.scaled_dot_product_attention(q, q, q, is_causal=True).reshape_as(tokens)
        return self.fc(self.block(tokens).mean(1))


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = Net().eval()
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    return model, torch.export.export(model, (torch.randn(2, 3, 16, 16),))


def counts(result):
    recompositions = {pattern.__name__ for pattern in RECOMPOSITIONS}
    return Counter(m.pattern.__name__ for m in result.matches if m.pattern.__name__ not in recompositions)


def test_the_same_rules_apply(case):
    model, exported = case
    fresh = transform(exported, patterns=TENSORRT_PATTERNS)
    result = transform(exported.run_decompositions(), patterns=TENSORRT_PATTERNS)
    assert counts(result) == counts(fresh)
    assert {"ConvBNActPattern", "MHAInProjectionPattern", "DecomposeMultiheadAttentionPattern"} <= counts(result).keys()
    assert list(result.model.state_dict()) == list(fresh.model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(result.model(x), model(x))
    left = [op.name for op in result.program.graph.operations() if not op.name.startswith(("aten.", "fused."))]
    assert left == []
    names = [op.name for op in result.program.graph.operations()]
    assert not {"aten.convolution", "aten.addmm", "aten.mm", "aten.bmm", "aten.native_group_norm"} & {*names}
    causal = [op for op in result.program.graph.operations() if op.name == "fused.scaled_dot_product_attention"]
    assert [op.body.first.attributes["is_causal"] for op in causal if "is_causal" in op.body.first.attributes] == [
        True,
        False,
    ]


def test_statistics_that_are_used_stay(case):
    """The layer's mean and deviation are results of their own."""

    class Both(nn.Module):
        def forward(self, x):
            return torch.native_layer_norm(x, (4,), None, None, 1e-5)

    exported = torch.export.export(Both(), (torch.randn(2, 4),)).run_decompositions()
    result = transform(exported, patterns=TENSORRT_PATTERNS)
    x = torch.randn(2, 4)
    for a, b in zip(result.model(x), Both()(x), strict=True):
        assert torch.equal(a, b)
