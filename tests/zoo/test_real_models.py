"""Real models through the whole pipeline, by both captures: equal in eval and train mode, and fused as expected."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks.models import import_torchvision
from graphwright import Pattern, TransformResult, transform
from graphwright.tensorrt import TENSORRT_CONVERSION_PATTERNS
from tests.helpers import REAL_MODELS, example_input, model_params, quick_model, randomize_batch_norm, real_model
from tests.zoo.equality import assert_equal_outputs, assert_equal_training

# Stochastic depth and dropout draw the same numbers in both modules, since the order of the draws is kept.
_RESULTS: dict[tuple[str, str], tuple[nn.Module, torch.Tensor, TransformResult]] = {}
# have stochastic depth
_DEPTHS = ("efficientnet_b0", "convnext_tiny", "swin_t")

_FUSED = {
    "resnet18": {"StemConvBNActMaxPoolPattern": 1, "ConvBNActPattern": 8, "ConvBNAddActPattern": 8, "ConvBNPattern": 4},
    "resnet50": {
        "StemConvBNActMaxPoolPattern": 1,
        "ConvBNActPattern": 32,
        "ConvBNAddActPattern": 16,
        "ConvBNPattern": 5,
    },
    "mobilenet_v2": {"ConvBNActPattern": 35, "ConvBNAddActPattern": 10, "ConvBNPattern": 8},
    "vgg11_bn": {"ConvBNActPattern": 8, "LinearActPattern": 2, "LinearPattern": 1},
    "vit_b_16": {"DecomposeMultiheadAttentionPattern": 12, "LinearPattern": 25, "LinearActPattern": 12},
    "swin_t": {"MHAInProjectionPattern": 12, "ScaledDotProductAttentionPattern": 12},
}


def compiled(name: str, captured_by: str):
    """Compile a model once for all tests of this file."""
    key = (name, captured_by)
    if key not in _RESULTS:
        # the tests of a model run together (see conftest.py): what is held of others only takes memory
        for other in [k for k in _RESULTS if k[0] != name]:
            del _RESULTS[other]
        model, x = next((found[:2] for found in _RESULTS.values()), None) or quick_model(name)
        before = {k: (v.clone(), v.data_ptr()) for k, v in model.state_dict().items()}
        given = model if captured_by == "export" else torch.fx.symbolic_trace(model)
        if captured_by == "shapes":
            torch.fx.passes.shape_prop.ShapeProp(given).propagate(x)
        _RESULTS[key] = model, x, transform(given, None if captured_by == "shapes" else (x,))
        for k, v in model.state_dict().items():
            assert torch.equal(v, before[k][0]) and v.data_ptr() == before[k][1], f"{k} of the user's model changed"
    return _RESULTS[key]


_TRACEABLE = [name for name in REAL_MODELS if name != "swin_t"]
# an FX graph with example inputs; an FX graph lowered as it is, with the types of ShapeProp
_TRACED = [param for by in ("fx", "shapes") for param in model_params(by=by) if param.values[0] in _TRACEABLE]


@pytest.mark.parametrize(("name", "captured_by"), [*model_params(by="export"), *_TRACED])
def test_equal_in_eval_mode(name, captured_by):
    model, x, result = compiled(name, captured_by)
    assert not result.model.training
    assert_equal_outputs(model, result.model, x)


@pytest.mark.parametrize(("name", "captured_by"), [*model_params(by="export"), *_TRACED])
def test_equal_in_a_training_step(name, captured_by):
    model, x, result = compiled(name, captured_by)
    # one trace of torch.fx leaves no trace of modules that do nothing in eval mode: then it is the traced module's mode
    original = torch.fx.symbolic_trace(model) if captured_by != "export" and name in _DEPTHS else model
    assert_equal_training(result, original, x)


@pytest.mark.parametrize("name", model_params(_FUSED))
def test_fused_as_expected(name):
    _, _, result = compiled(name, "export")
    counts = Counter(result.counts())
    for pattern, count in _FUSED[name].items():
        assert counts[pattern] == count, (pattern, dict(counts))


def test_nothing_of_resnet50_is_left_over():
    _, _, result = compiled("resnet50", "export")
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
    left = {name for name in result.operations_after if not name.startswith("fused.")}
    assert left <= {"aten.reshape"}
    assert not [remark for remark in result.remarks if remark.kind == "kept"]


@pytest.mark.parametrize("name", model_params())
def test_what_stays_unfused_has_a_reason(name):
    _, _, result = compiled(name, "export")
    kept = [remark for remark in result.remarks if remark.kind == "kept"]
    computing = sum(
        count for op, count in result.operations_after.items() if not op.startswith("fused.") and op != "aten.reshape"
    )
    assert computing == 0 or kept
    assert all(remark.message and remark.location.file for remark in kept)


@pytest.mark.parametrize("name", model_params())
def test_emitted_module_survives(name, tmp_path):
    _, x, result = compiled(name, "export")
    with torch.no_grad():
        expected = result.model(x)
        for other in (
            copy.deepcopy(result.model),
            pickle.loads(pickle.dumps(result.model)),
            torch.export.export(copy.deepcopy(result.model), (x,)).module(),
        ):
            assert torch.equal(other(x), expected)
        torch.save(result.model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        assert torch.equal(loaded(x), expected)
        assert type(loaded) is type(result.model) or type(loaded).__name__ == type(result.model).__name__
        compiled_module = torch.compile(copy.deepcopy(result.model), fullgraph=True, backend="eager")
        assert torch.allclose(compiled_module(x), expected, rtol=1e-4, atol=1e-4)
        torch.compiler.reset()
        double = copy.deepcopy(result.model).double()
        assert double(x.double()).dtype == torch.float64
    assert "self." in result.model.code
    assert "Fused" in str(result.model)


@pytest.mark.parametrize("name", model_params(["resnet50", "vit_b_16", "mobilenet_v3_large"]))
def test_an_original_checkpoint_loads(name):
    _, x, result = compiled(name, "export")
    other, _ = quick_model(name, seed=5)
    target = copy.deepcopy(result.model)
    target.load_state_dict(result.parameter_map.convert(other.state_dict()), strict=True)
    assert_equal_outputs(other, target, x)


@pytest.mark.long
def test_untouched_modules_keep_their_keys():
    model, _, result = compiled("densenet121", "export")
    new, old = result.model.state_dict(), model.state_dict()
    kept = set(new) & set(old)
    assert {key for key in old if key.endswith("norm5.weight")} <= kept
    for key in kept:
        assert new[key].data_ptr() == old[key].data_ptr(), f"{key} was copied"


@pytest.mark.parametrize("name", model_params())
def test_weights_are_shared_and_not_copied(name):
    model, _, result = compiled(name, "export")
    storages = {v.untyped_storage().data_ptr() for v in [*model.parameters(), *model.buffers()]}
    for key, value in result.model.state_dict().items():
        assert value.untyped_storage().data_ptr() in storages, f"{key} has a storage of its own"


@pytest.mark.parametrize("name", model_params(["resnet18", "vit_b_16"]))
def test_symbolic_batch(name):
    model, x = quick_model(name)
    result = transform(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert "batch" in str(result.program)
    for size in (1, 2, 5):
        assert_equal_outputs(model, result.model, torch.randn(size, 3, 64, 64))


@pytest.mark.parametrize("captured_by", ["export", "shapes"])
@pytest.mark.parametrize("name", ["convnext_tiny"])
def test_the_classifier_of_convnext_is_converted(name, captured_by):
    _, _, result = compiled(name, captured_by)
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
    assert result.operations_after["aten.linear"] == 0


def test_the_classifier_of_convnext_of_timm_is_converted():
    import_torchvision()
    model = pytest.importorskip("timm").create_model("test_convnext").eval()
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    x = example_input(size=64)
    result = transform(model, (x,))
    assert result.counts()["FlattenLinearToConv1x1Pattern"] == 1
    assert_equal_outputs(model, result.model, x)


class LogSoftmax(Pattern):
    """softmax(x, -1) = exp(log_softmax(x, -1)): the guide's example of a literal"""

    is_conversion = True

    def pattern(self, p):
        return p.softmax(p.any("x"), dim=-1, name="softmax")

    def rewrite(self, m, b):
        return b.exp(b.log_softmax(m.x, -1))


@pytest.mark.long
def test_a_literal_dimension_that_is_counted_from_the_back_matches_a_real_model():
    model, x = quick_model("swin_t")
    result = transform(model, (x,), patterns=(LogSoftmax,))
    assert result.counts() == {"LogSoftmax": 12}
    assert_equal_outputs(model, result.model, x)


def test_no_inputs_at_all_still_converts_the_classifier_of_resnet50():
    model = real_model("resnet50")
    traced = torch.fx.symbolic_trace(model)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        result = transform(traced, patterns=TENSORRT_CONVERSION_PATTERNS)
    assert result.counts() == {"FlattenLinearToConv1x1Pattern": 1}
    x = torch.randn(2, 3, 64, 64)
    assert_equal_outputs(model, result.model, x)
    assert_equal_outputs(model, result.model, x[:1])


class Attention(nn.Module):
    """Two layers of self-attention with a residual and a norm; `batch_first` is the layout under test."""

    def __init__(self, batch_first: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=batch_first)
        self.second = nn.MultiheadAttention(16, 2, bias=False, batch_first=batch_first)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x + self.first(x, x, x, need_weights=False)[0])
        return y + self.second(y, y, y, need_weights=False)[0]


@pytest.mark.parametrize("captured_by", ["export", "fx", "shapes"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_our_own_in_both_layouts(batch_first, captured_by):
    model = Attention(batch_first, dropout=0.1).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 5, 16)
    if captured_by == "export":
        result = transform(model, (x,))
    else:
        traced = torch.fx.symbolic_trace(model)
        if captured_by == "shapes":
            torch.fx.passes.shape_prop.ShapeProp(traced).propagate(x)
            result = transform(traced)
        else:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                result = transform(traced)
    assert_equal_outputs(model, result.model, x)
    assert_equal_training(result, model, x)
    if batch_first or captured_by != "fx":
        assert result.counts()["DecomposeMultiheadAttentionPattern"] == 2
        names = [type(module).__name__ for module in result.model.modules()]
        assert names.count("MHAInProjection") == names.count("ScaledDotProductAttention") == 2
        assert names.count("FusedLinear") == 2
