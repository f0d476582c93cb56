from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import models as realmodels
from ir.errors import GraphwrightError, MissingPackageError
from tests.helpers import REAL_MODELS, quick_model, randomize_batch_norm, real_model


@pytest.mark.parametrize("name", REAL_MODELS)
def test_no_parameter_or_statistic_is_constant_and_the_output_depends_on_the_input(name: str) -> None:
    model, images = quick_model(name)
    for path, parameter in model.named_parameters():
        assert parameter.std() > 1e-3, path
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            weight, mean, variance = module.weight, module.running_mean, module.running_var
            assert mean is not None and variance is not None
            assert (weight < 0).any(), path
            assert (weight == 0).any(), path
            assert (variance > 0).all(), path
            assert mean.std() > 0, path
    with torch.no_grad():
        output = model(images)
    assert output.shape == (2, 10)
    assert output.isfinite().all()
    assert (output[0] - output[1]).abs().max() > 0.01 * output.abs().max()


def test_a_real_model_is_in_eval_mode_without_hooks_and_only_the_seed_decides() -> None:
    state = torch.get_rng_state()
    first, second, other = real_model("resnet18"), real_model("resnet18"), real_model("resnet18", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training or module._forward_pre_hooks for module in first.modules())
    for (path, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), path
    assert not torch.equal(first.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))
    assert not torch.equal(first.get_parameter("bn1.weight"), other.get_parameter("bn1.weight"))


def test_statistics_without_example_inputs() -> None:
    norm = nn.BatchNorm2d(64)
    randomize_batch_norm(norm, torch.Generator().manual_seed(0))
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.running_var.min() >= 0.5 and norm.running_var.max() <= 1.5
    assert 0.1 < norm.running_mean.std() < 0.3
    magnitudes = norm.weight[norm.weight != 0].abs()
    assert magnitudes.min() >= 0.5 and magnitudes.max() <= 1.5
    assert norm.training


def test_absent_weights_and_statistics_stay_absent_and_learned_values_stay() -> None:
    learned = nn.Linear(8, 8)
    before = learned.weight.clone()
    model = nn.Sequential(learned, nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8, track_running_stats=False))
    randomize_batch_norm(model, torch.Generator().manual_seed(0), torch.randn(4, 8))
    assert model[1].weight is None
    assert model[2].running_mean is None
    assert torch.equal(learned.weight, before)


def test_modes_are_restored_after_calibration() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout())
    model[2].eval()
    randomize_batch_norm(model, torch.Generator().manual_seed(0), torch.randn(2, 3, 8, 8))
    assert [module.training for module in model] == [True, True, False]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(GraphwrightError, match=r"'resnet9000'[\s\S]*resnet18, resnet50"):
        real_model("resnet9000")


def test_torchvision_missing_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    realmodels.import_torchvision.cache_clear()
    with pytest.raises(MissingPackageError, match=r"No module named 'torchvision'[\s\S]*pip install"):
        real_model("resnet18")
    monkeypatch.undo()
    realmodels.import_torchvision.cache_clear()
    assert real_model("resnet18") is not None
