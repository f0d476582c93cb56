"""FoldBatchNorm: right for every layer and shape, refused where it would be wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compiler.driver import transform
from compiler.equality.accuracy import measure_accuracy
from passes.canonicalize import Canonicalize
from passes.fold.batch_norm import FoldBatchNorm
from passes.manager.manager import PassManager
from tests.helpers import randomize_batch_norm
from tests.zoo.equality import assert_equal_outputs


class Turned(nn.Module):
    """A linear layer over tokens, with a norm of its channels."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.bn(self.fc(x).transpose(1, 2)).transpose(1, 2)


PIPELINE = PassManager([Canonicalize(), FoldBatchNorm()])


def folded(model, x):
    randomize_batch_norm(model, torch.Generator().manual_seed(1))
    return transform(model.eval(), (x,), pipeline=PIPELINE)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), (2, 4, 8, 8)),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)), (2, 4, 4, 4)),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), (4, 4, 4)),
        (nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (1, 2, 3, 3, 3)),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(3)), (1, 3, 3, 3)),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.BatchNorm2d(3, affine=False, eps=0.1)), (1, 3, 3, 3)),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (4, 4)),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)), (2, 4, 4, 4)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6)), (2, 4, 3, 4)),
        (nn.Sequential(nn.ConvTranspose1d(4, 2, 3, groups=2), nn.BatchNorm1d(2, affine=False)), (2, 4, 4)),
        (nn.Sequential(nn.Linear(4, 6), nn.Flatten(0, 1), nn.BatchNorm1d(6), nn.Unflatten(0, (2, 6))), (2, 6, 4)),
        (Turned(), (2, 5, 4)),
    ],
    ids=[
        *("conv2d", "grouped", "conv1d", "conv3d", "circular", "same-no-affine", "linear"),
        *("transposed", "transposed-grouped", "transposed-1d", "linear-rows", "linear-turned"),
    ],
)
def test_folded_and_equal(model, shape):
    x = torch.randn(shape)
    result = folded(model, x)
    assert "aten.batch_norm" not in result.operations_after
    assert not [key for key in result.model.state_dict() if key.startswith("1.")]
    assert any("bytes" in str(remark) for remark in result.remarks)
    # the folded weights are rounded to float32: only a model that is float64 from the start is equal in float64
    assert measure_accuracy(model, result.model, (x,)).is_within_bound
    double = copy.deepcopy(model).double()
    assert_equal_outputs(double, transform(double, (x.double(),), pipeline=PIPELINE).model, x.double())


def test_a_checkpoint_of_the_original_folds_too():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).double()
    x = torch.randn(2, 4, 5, 5).double()
    result = folded(model, x)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    assert_equal_outputs(other, result.model, x)


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (4, 4, 4), "channels in dimension 1"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), (2, 4, 4, 4), "training"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), (2, 4, 4, 4), ""),
        (nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2)), (4, 4), "moves its channels"),
    ],
    ids=["linear-3d", "batch-statistics", "norm-first", "linear-unflattened"],
)
def test_left_alone(model, shape, reason):
    x = torch.randn(shape)
    result = folded(model, x)
    assert result.operations_after["aten.batch_norm"] == 1
    assert_equal_outputs(model, result.model, x)
    if reason:
        assert any(reason in remark.message for remark in result.remarks if remark.kind == "missed")


def test_overflow_in_half_precision_is_refused_with_the_numbers():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).half()
    with torch.no_grad():
        model[0].weight.fill_(60000)
        model[1].weight.fill_(4)
    result = transform(model.eval(), (torch.zeros(1, 2, 2, 2).half(),), pipeline=PIPELINE)
    assert result.operations_after["aten.batch_norm"] == 1
    assert any("beyond torch.float16" in remark.message and "2.4e+05" in remark.message for remark in result.remarks)


class Shared(nn.Module):
    """One convolution with two norms behind it, and its weight tied to a second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.other.weight = self.conv.weight
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.conv(x)) + self.b(self.conv(x + 1)) + self.other(x)


def test_a_shared_convolution_is_folded_for_each_call():
    model = Shared().double()
    x = torch.randn(2, 3, 4, 4).double()
    result = folded(model, x)
    assert "aten.batch_norm" not in result.operations_after
    assert_equal_outputs(model, result.model, x)


def test_constants_that_a_folded_weight_comes_from_stay():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.bn = nn.BatchNorm2d(4, affine=False)

        def forward(self, x):
            y = self.conv(x)
            scale = y.new_tensor([1.0, 2.0, 0.5, 4.0]) * 2
            return nn.functional.batch_norm(y, self.bn.running_mean, self.bn.running_var, scale)

    model, x = Fixed().eval(), torch.randn(2, 3, 4, 4)
    pipeline = PassManager([Canonicalize(), FoldBatchNorm(), Canonicalize()])
    result = transform(model, (x,), pipeline=pipeline)
    assert "aten.batch_norm" not in result.operations_after
    other = copy.deepcopy(model)
    nn.init.normal_(other.conv.weight)
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(result.model(x), other(x))


@pytest.mark.parametrize("norms", [1, 3])
def test_checkpoints_fold_through_several_norms(norms):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), *(nn.BatchNorm2d(8) for _ in range(norms))).double()
    x = torch.randn(2, 4, 5, 5).double()
    randomize_batch_norm(model, torch.Generator().manual_seed(1))
    result = transform(model.eval(), (x,), pipeline=PIPELINE)
    assert dict(result.operations_after) == {"aten.conv2d": 1}
    assert_checkpoint_converts(model, result, x)


def assert_checkpoint_converts(model, result, x):
    """Check that a checkpoint of the original, with other weights, gives the emitted module the original's results."""
    assert_equal_outputs(model, result.model, x)
    other = copy.deepcopy(model)
    randomize_batch_norm(other, torch.Generator().manual_seed(2))
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    assert_equal_outputs(other, result.model, x)


class Own(nn.Module):
    """A convolution with a weight that the model itself makes of a parameter."""

    def __init__(self, weight):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.weight, self.scale = weight, nn.Parameter(torch.rand(4, 1, 1, 1).double())

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight(self), self.conv.bias)


def test_a_checkpoint_folds_into_a_weight_that_is_viewed():
    class Viewed(Own):
        def forward(self, x):
            return self.bn(super().forward(x))

    def view(s):
        return s.conv.weight.reshape(3, 4, 1, 1).permute(1, 0, 2, 3)

    model, x = Viewed(view).double().eval(), torch.randn(2, 3, 5, 5).double()
    randomize_batch_norm(model, torch.Generator().manual_seed(1))
    pipeline = PassManager([Canonicalize(fold_parameter_views=True), FoldBatchNorm()])
    result = transform(model, (x,), pipeline=pipeline)
    assert "aten.batch_norm" not in result.operations_after
    assert_checkpoint_converts(model, result, x)


def test_a_weight_that_the_model_scales_is_not_folded():
    model = Own(lambda s: (s.conv.weight.to(torch.float64) * s.scale).to(torch.float32)).eval()
    x = torch.randn(2, 3, 5, 5)
    result = transform(model, (x,), pipeline=PIPELINE)
    before = transform(model, (x,), pipeline=PassManager([Canonicalize()]))
    assert str(result.program) == str(before.program)
    assert "aten.mul.Tensor" in result.operations_after
