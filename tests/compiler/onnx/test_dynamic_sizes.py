"""ONNX files with dynamic sizes: right for all of them, or refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from compiler.onnx.traced import example_sizes
from graphwright import CodegenError, transform
from tests.helpers import randomize_batch_norm

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")

_LONG = {2: Dim.AUTO}
_WIDE = {2: Dim.AUTO, 3: Dim.AUTO}


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "dynamic"),
    [
        *((nn.AdaptiveAvgPool1d(count), _LONG) for count in (1, 2, 3)),
        *((nn.AdaptiveAvgPool2d(count), _WIDE) for count in (2, 3, (None, 2))),
        (nn.AdaptiveAvgPool3d(2), _WIDE | {4: Dim.AUTO}),
        (nn.AdaptiveMaxPool1d(3, return_indices=True), _LONG),
        (nn.AdaptiveMaxPool2d(3, return_indices=True), _WIDE),
        (nn.AdaptiveMaxPool3d(2, return_indices=True), _WIDE | {4: Dim.AUTO}),
        (lambda x: x[..., : -(-x.shape[-1] // 4)], _LONG),
        (lambda x: F.pad(x, (0, -x.shape[-1] % 4)), _LONG),
        (lambda x: x - (-x.shape[-1] // 2), _LONG),
        (lambda x: x + x.shape[-1], _LONG),
        (
            lambda x: torch.hstack([torch.vstack([x, x]), torch.dstack([x[0], x[1]]).sum() + torch.vstack([x, -x])]),
            _LONG,
        ),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), _WIDE),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), _WIDE),
        (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), _WIDE),
    ],
)
def test_files_are_right_for_sizes_unlike_the_example(function, dynamic):
    rank = max(dynamic) - 1
    shapes = [[2, 3, *sizes[:rank]] for sizes in ((7, 8, 9), (12, 9, 10), (5, 6, 4), (33, 31, 4))]
    generator = torch.Generator().manual_seed(0)
    result = transform(Of(function).eval(), (torch.randn(shapes[0]),), dynamic_shapes=(dynamic,), check=False)
    fast = result.to_runtime("onnxruntime", threads=1)
    for shape in shapes:
        x = torch.randn(shape, generator=generator)
        torch.testing.assert_close(fast(x), function(x))


def test_the_first_of_ties_is_the_place_of_a_maximum():
    x = torch.randint(0, 3, (2, 3, 7, 8)).float()
    pool = nn.AdaptiveMaxPool2d(3, return_indices=True)
    fast = transform(pool.eval(), (x,)).to_runtime("onnxruntime", threads=1)
    torch.testing.assert_close(fast(x), pool(x))


def test_a_choice_that_holds_for_some_sizes_is_refused_and_fixed_sizes_are_not():
    model, x = Of(lambda x: x[..., : max(x.shape[-1] - 3, 2)]).eval(), torch.randn(2, 3, 12)
    result = transform(model, (x,), dynamic_shapes=({2: Dim.AUTO},))
    with pytest.raises(
        CodegenError, match=r"aten\.slice\.Tensor would be written for sizes where s0 - 3 > 2 only.*s0="
    ) as e:
        result.to_runtime("onnxruntime")
    assert "fixed sizes" in e.value.remedy
    assert __file__ in str(e.value)
    fast = transform(model, (x,)).to_runtime("onnxruntime", threads=1)
    torch.testing.assert_close(fast(x), model(x))


def test_a_net_that_halves_its_map_five_times_has_dynamic_sizes():
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 4), (4, 4), (4, 4), (4, 4), (4, 4)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5)).eval()
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    result = transform(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=(_WIDE,), check=False)
    assert min(example_sizes(result.program).values()) >= 32  # the map is never empty
    fast = result.to_runtime("onnxruntime", threads=1)
    for height, width in ((64, 96), (131, 100), (257, 65)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(fast(x), model(x).detach(), rtol=1e-4, atol=1e-5)
