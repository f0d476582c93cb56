"""Each conversion and fusion: where it fires, and each condition under which it must not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.driver import transform
from compiler.targets.tensorrt import TENSORRT_CONVERSION_PATTERNS
from passes.convert.pooling import RemoveIdentityAdaptiveAvgPoolPattern
from tests.passes.compiled import Calls, image, run
from tests.zoo.equality import assert_equal_outputs

# --- conversions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "removed"), [((6, 6), 1), (6, 1), ((None, None), 1), ((6, None), 1), ((6, 3), 0), (1, 0), ((3, 6), 0)]
)
def test_identity_pooling_is_removed(size, removed):
    result = run(
        lambda s, x: F.relu(s.pool(s.conv(x))), image(), pool=nn.AdaptiveAvgPool2d(size), conv=nn.Conv2d(4, 4, 1)
    )
    assert result.counts().get("RemoveIdentityAdaptiveAvgPoolPattern", 0) == removed


def test_identity_pooling_of_symbolic_sizes_is_proved():
    model = Calls(lambda s, x: F.relu(F.adaptive_avg_pool2d(x + 1, (x.shape[2], x.shape[3])))).eval()
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    result = transform(model, (image(2, 3, 6, 8),), dynamic_shapes={"args": ({2: height, 3: width},)})
    assert result.counts()["RemoveIdentityAdaptiveAvgPoolPattern"] == 1
    for size in ((5, 9), (2, 2)):
        x = image(2, 3, *size)
        assert torch.equal(result.model(x), model(x))


def test_identity_pooling_of_an_input_still_returns_a_fresh_tensor():
    result = transform(Calls(lambda s, x: F.adaptive_avg_pool2d(x, (6, 6))).eval(), (image(),))
    x = image()
    before = x.clone()
    result.model(x).add_(1)
    assert torch.equal(x, before)


# --- attention --------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """One nn.MultiheadAttention, called as given."""

    def __init__(self, call, **options):
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, **options)
        self.call = call

    def forward(self, *args):
        return self.call(self.mha, *args)


MASK = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
ATTENTION_CALLS = {
    "plain": (lambda m, x: m(x, x, x, need_weights=False)[0], {}, True),
    "no bias": (lambda m, x: m(x, x, x, need_weights=False)[0], {"bias": False}, True),
    "weights unused": (lambda m, x: m(x, x, x)[0], {}, True),
    "weights unused, mask": (lambda m, x: m(x, x, x, attn_mask=MASK)[0], {}, True),
    "float mask": (lambda m, x: m(x, x, x, attn_mask=MASK, need_weights=False)[0], {}, None),
    "weights used": (lambda m, x: m(x, x, x), {}, False),
    "bool mask": (lambda m, x: m(x, x, x, attn_mask=MASK < 0, need_weights=False)[0], {}, None),
    "padding": (lambda m, x: m(x, x, x, key_padding_mask=x[..., 0] > 9, need_weights=False)[0], {}, None),
    "causal": (lambda m, x: m(x, x, x, attn_mask=MASK, is_causal=True, need_weights=False)[0], {}, None),
    "cross": (lambda m, x: m(x, x + 1, x + 1, need_weights=False)[0], {}, False),
    "value differs": (lambda m, x: m(x, x, x * 2, need_weights=False)[0], {}, False),
    "kdim": (lambda m, x: m(x, x[..., :6], x[..., :6], need_weights=False)[0], {"kdim": 6, "vdim": 6}, False),
    "bias_kv": (lambda m, x: m(x, x, x, need_weights=False)[0], {"add_bias_kv": True}, False),
    "zero_attn": (lambda m, x: m(x, x, x, need_weights=False)[0], {"add_zero_attn": True}, False),
}


@pytest.mark.parametrize("leaf", [False, True], ids=["export", "fx"])
@pytest.mark.parametrize("case", ATTENTION_CALLS)
def test_every_way_to_call_attention_is_right_or_left_alone(case, leaf):
    call, options, expected = ATTENTION_CALLS[case]
    model = SelfAttention(call, batch_first=True, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(3, 5, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if leaf:
            graph = trace(model)
            torch.fx.passes.shape_prop.ShapeProp(graph).propagate(x)
            result = transform(graph)
        else:
            result = transform(model, (x,))
    assert_equal_outputs(model, result.model, x)
    decomposed = "DecomposeMultiheadAttentionPattern" in result.counts()
    if expected is not None:
        assert decomposed == expected
    if leaf and not decomposed:
        assert any("MultiheadAttention at `mha` is left as it is" in str(w.message) for w in caught)


def trace(model):
    """Trace `forward(x)` with the attention as a leaf."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha, self.call = model.mha, model.call

        def forward(self, x):
            return self.call(self.mha, x)

    return torch.fx.symbolic_trace(One().eval())


def heads(x, count=2):
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def written_out(q, k, v, mask=None, scale=0.5, dim=-1):
    scores = q @ k.transpose(-2, -1) * scale
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim) @ v


ATTENTIONS = {
    "operator": (lambda s, x: F.scaled_dot_product_attention(heads(s.q(x)), heads(s.k(x)), heads(s.v(x))), 1, 1),
    "operator, causal": (
        lambda s, x: F.scaled_dot_product_attention(
            heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), is_causal=True, scale=0.3
        ),
        1,
        1,
    ),
    "written out": (lambda s, x: written_out(heads(s.q(x)), heads(s.k(x)), heads(s.v(x))), 1, 1),
    "with mask": (lambda s, x: written_out(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), torch.ones(4, 4)), 1, 1),
    "divided": (
        lambda s, x: torch.softmax(heads(s.q(x)) @ heads(s.k(x)).transpose(-1, -2) / 1.4, -1) @ heads(s.v(x)),
        1,
        1,
    ),
    "scaled query": (
        lambda s, x: torch.softmax((heads(s.q(x)) * 0.7) @ heads(s.k(x)).permute(0, 1, 3, 2), -1) @ heads(s.v(x)),
        1,
        1,
    ),
    "temperature and two masks": (
        lambda s, x: (
            torch.softmax(
                heads(s.q(x)) @ heads(s.k(x)).mT * s.v.bias[:2].view(2, 1, 1).exp()
                + s.q.weight[:4, :4]
                + torch.ones(4, 4),
                -1,
            )
            @ heads(s.v(x))
        ),
        1,
        1,
    ),
    "softmax in another dtype": (
        lambda s, x: torch.softmax((heads(s.q(x)) @ heads(s.k(x)).mT).double(), -1).to(x.dtype) @ heads(s.v(x)),
        1,
        1,
    ),
    "joint": (
        lambda s, x: F.scaled_dot_product_attention(
            *s.joint(x).reshape(x.shape[0], x.shape[1], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        ),
        1,
        1,
    ),
    "joint by chunks": (
        lambda s, x: F.scaled_dot_product_attention(*(heads(part) for part in s.joint(x).chunk(3, -1))),
        1,
        1,
    ),
    "joint, heads first": (
        lambda s, x: F.scaled_dot_product_attention(
            *s.joint(x).reshape(x.shape[0], x.shape[1], 2, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        ),
        1,
        0,
    ),
    # of a key that is permuted otherwise, the key of the region is what is transposed in the end
    "wrong softmax dim": (lambda s, x: written_out(heads(s.q(x)), heads(s.k(x)), heads(s.v(x)), dim=-2), 0, 0),
    "key not transposed": (
        lambda s, x: torch.softmax(heads(s.q(x)) @ heads(s.k(x)).permute(0, 1, 2, 3), -1) @ heads(s.v(x)),
        1,
        0,
    ),
    "key permuted otherwise": (
        lambda s, x: torch.softmax(heads(s.q(x)) @ heads(s.k(x)).permute(1, 0, 3, 2), -1) @ heads(s.v(x)),
        1,
        0,
    ),
    "weights used": (
        lambda s, x: (lambda w: (w @ heads(s.v(x)), w))(torch.softmax(heads(s.q(x)) @ heads(s.k(x)).mT, -1)),
        0,
        0,
    ),
    "query used elsewhere": (
        lambda s, x: (lambda q: (F.scaled_dot_product_attention(heads(q), heads(s.k(x)), heads(s.v(x))), q))(s.q(x)),
        1,
        0,
    ),
    "other input": (
        lambda s, x: F.scaled_dot_product_attention(heads(s.q(x)), heads(s.k(x + 1)), heads(s.v(x + 1))),
        1,
        0,
    ),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_fusions(case):
    function, attentions, projections = ATTENTIONS[case]
    # equal sizes on purpose: batch = heads = 2, tokens = head_dim = 4
    layers = {name: nn.Linear(8, 8) for name in "qkv"} | {"joint": nn.Linear(8, 24)}
    result = run(function, torch.randn(2, 4, 8), **layers)
    counts = result.counts()
    assert counts.get("ScaledDotProductAttentionPattern", 0) == attentions, [str(r) for r in result.remarks]
    assert counts.get("MHAInProjectionPattern", 0) == projections, [str(r) for r in result.remarks]


# --- fusions around convolutions --------------------------------------------------------------------------

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.ELU(0.5),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Mish(),
    nn.PReLU(4),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_bn_act_of_every_rank_and_activation(rank, activation):
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    x = torch.randn(2, 4, *[5] * rank)
    result = run(lambda s, x: s.act(s.bn(s.conv(x))), x, conv=conv(4, 4, 3, bias=False), bn=norm(4), act=activation)
    assert result.counts() == {"ConvBNActPattern": 1}
    module = result.model.get_submodule("conv")
    assert type(module).__name__ == "FusedConvBNAct" and list(dict(module.named_children())) == ["conv", "bn", "act"]
    assert type(module.act) is type(activation)


RESIDUALS = {
    "left": (lambda s, x: F.relu(s.bn(s.conv(x)) + x), 1),
    "right": (lambda s, x: F.relu(x + s.bn(s.conv(x))), 1),
    "no activation": (lambda s, x: x + s.bn(s.conv(x)), 1),
    "no norm": (lambda s, x: F.relu(s.conv(x) + x), 1),
    "in place": (lambda s, x: F.relu_(s.bn(s.conv(x)).add_(x)), 1),
    "two convolutions": (lambda s, x: F.relu(s.bn(s.conv(x)) + s.conv(x * 2)), 1),
    "itself": (lambda s, x: (lambda y: F.relu(y + y))(s.bn(s.conv(x))), 0),
    "alpha": (lambda s, x: F.relu(torch.add(s.bn(s.conv(x)), x, alpha=2)), 0),
    "broadcast": (lambda s, x: F.relu(s.bn(s.conv(x)) + x[:, :1]), 0),
    "scalar": (lambda s, x: F.relu(s.bn(s.conv(x)) + 1), 0),
    "subtraction": (lambda s, x: F.relu(s.bn(s.conv(x)) - x), 0),
    "promoted": (lambda s, x: F.relu(s.bn(s.conv(x)) + x.double()), 0),
    "used again": (lambda s, x: (lambda y: (F.relu(y + x), y))(s.bn(s.conv(x))), 0),
}


@pytest.mark.parametrize("case", RESIDUALS)
def test_residual_additions(case):
    function, expected = RESIDUALS[case]
    result = run(function, image(), conv=nn.Conv2d(4, 4, 3, padding=1), bn=nn.BatchNorm2d(4))
    assert result.counts().get("ConvBNAddActPattern", 0) == expected
    if expected:
        region = next(m for m in result.model.modules() if type(m).__name__ == "FusedConvBNAddAct")
        assert region.quantization_points == ("input", "residual")


@pytest.mark.parametrize(("channels", "kernel", "expected"), [(3, 7, 1), (4, 7, 0), (3, 5, 0)])
def test_the_stem_is_7x7_on_three_channels(channels, kernel, expected):
    result = run(
        lambda s, x: F.max_pool2d(F.relu(s.bn(s.conv(x))), 3, 2, 1, ceil_mode=True),
        image(1, channels, 16, 16),
        conv=nn.Conv2d(channels, 8, kernel, stride=2, padding=3),
        bn=nn.BatchNorm2d(8),
    )
    assert result.counts().get("StemConvBNActMaxPoolPattern", 0) == expected
    assert result.counts().get("ConvBNActPattern", 0) == 1 - expected


def test_one_convolution_called_twice_is_one_module_in_two_regions():
    result = run(lambda s, x: F.relu(s.conv(F.relu(s.conv(x)))), image(), conv=nn.Conv2d(4, 4, 1))
    assert result.counts() == {"ConvBNActPattern": 2}
    assert len(list(result.model.parameters())) == 2


def test_three_equal_activations_in_a_row():
    result = run(lambda s, x: F.gelu(F.gelu(F.gelu(s.conv(x)))), image(), conv=nn.Conv2d(4, 4, 1))
    assert result.counts() == {"ConvBNActPattern": 1}
    assert result.operations_after["aten.gelu"] == 2


def test_a_value_with_two_users_blocks_and_the_remark_says_which():
    result = run(
        lambda s, x: (lambda y: s.bn(y) + y)(s.conv(x)), image(), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)
    )
    (remark,) = [r for r in result.remarks if r.kind == "missed" and r.rule == "ConvBNPattern"]
    assert "`conv` has 2 users" in remark.message and __file__ in str(remark)
    (kept,) = [r for r in result.remarks if r.kind == "kept" and r.operation == "aten.batch_norm"]
    assert "ConvBNPattern: the output of aten.conv2d at `conv` has 2 users" in kept.reason


def test_conversions_alone():
    result = run(
        lambda s, x: s.fc(torch.flatten(s.pool(s.conv(x)), 1)),
        image(),
        conv=nn.Conv2d(4, 4, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(4, 2),
        patterns=TENSORRT_CONVERSION_PATTERNS,
    )
    assert result.counts() == {"FlattenLinearToConv1x1Pattern": 1}
    assert RemoveIdentityAdaptiveAvgPoolPattern in TENSORRT_CONVERSION_PATTERNS
