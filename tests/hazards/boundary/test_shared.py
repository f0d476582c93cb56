"""Hazards of modules that are reached in several ways: under several names, from inside and outside of another one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from graphwright import transform
from tests.hazards.boundary.test_aliases import ROWS, Writer


class Twins(nn.Module):
    """One module under several names."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = layer
        self.second = self.first
        self.listed = nn.ModuleList([nn.Linear(4, 4), self.first])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it by each of them."""
        y: torch.Tensor = self.first(x) + self.second(x * 2)
        return self.listed[1](y) + self.listed[0](x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "linear": lambda: nn.Linear(4, 4),
    "sequence": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3)),
    "buffer": lambda: Writer(torch.zeros(4)),
}


def _call(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)
    found: torch.Tensor = module(ROWS)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_under_several_names_is_one(name: str) -> None:
    model = Twins(LAYERS[name]()).eval()
    result = transform(copy.deepcopy(model), (ROWS,))
    emitted = result.model
    assert emitted.get_submodule("first") is emitted.get_submodule("second") is emitted.get_submodule("listed.1")
    for path in ("second", "first", "listed.1", "listed"):
        for mode in (True, False):
            for module in (model, emitted):
                module.get_submodule(path).train(mode)
            torch.testing.assert_close(_call(model), _call(emitted))
    loaded = transform(Twins(LAYERS[name]()).eval(), (ROWS,))
    loaded.model.load_state_dict(loaded.parameter_map.convert(model.state_dict()))
    torch.testing.assert_close(_call(model), _call(loaded.model))
    torch.testing.assert_close(_call(copy.deepcopy(model)), _call(pickle.loads(pickle.dumps(emitted))))
    if name == "batch norm":
        for module in (model, emitted):
            module.second.running_mean = torch.ones(4)
        torch.testing.assert_close(_call(model), _call(emitted))


@pytest.mark.parametrize("name", ["batch norm", "sequence"])
def test_an_exported_program_tells_of_shared_modules_with_weights(name: str) -> None:
    model = Twins(LAYERS[name]()).eval()
    emitted = transform(torch.export.export(model, (ROWS,))).model
    assert emitted.get_submodule("first") is emitted.get_submodule("second")
    for module in (model, emitted):
        module.get_submodule("second").train()
    torch.testing.assert_close(_call(model), _call(emitted))


class TwiceNormed(nn.Module):
    """Calls one normalization behind a convolution, and once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One call is fused, the other is not."""
        found: torch.Tensor = self.norm(F.relu(self.norm(self.conv(x))))
        return found


def _shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(3, 3, 1), norm)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("make", [TwiceNormed, _shared_norm])
def test_a_normalization_that_is_called_twice(make: Callable[[], nn.Module], mode: bool) -> None:
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    model = make().train(mode)
    result = transform(copy.deepcopy(model), (x,))
    (norm,) = {m for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    (twin,) = {m for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)}
    for switch in (False, True):
        norm.train(switch)
        twin.train(switch)
        torch.testing.assert_close(model(x), result.model(x))
        assert torch.equal(norm.num_batches_tracked, twin.num_batches_tracked)
    model.train(not mode)
    result.model.train(not mode)
    torch.testing.assert_close(model(x), result.model(x))


class PartOutside(nn.Module):
    """Calls a part of a module outside of it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.part = self.block[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call both."""
        found: torch.Tensor = self.part(torch.tanh(self.block(x)))
        return found


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("leaf", ["block", "part"])
def test_a_part_of_a_kept_module_that_is_called_outside(leaf: str, mode: bool) -> None:
    model = PartOutside().train(mode)
    emitted = transform(copy.deepcopy(model), (ROWS,), leaf_modules=leaf).model
    for path in ("part", "block"):
        for switch in (not mode, mode):
            for module in (model, emitted):
                module.get_submodule(path).train(switch)
            torch.testing.assert_close(model(ROWS), emitted(ROWS))


class Attending(nn.Module):
    """Calls one attention twice: its weights are asked for once."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend twice."""
        y = self.at(x, x, x, need_weights=False)[0]
        found: torch.Tensor = self.at(y, x, x)[0]
        return found


@pytest.mark.filterwarnings("ignore:.*Pattern skipped")
def test_a_layer_that_is_taken_apart_in_one_of_two_calls() -> None:
    x = torch.randn(2, 3, 4)
    graph = fx.symbolic_trace(Attending().eval())
    torch.testing.assert_close(transform(graph).model(x), graph(x))


class Called(nn.Module):
    """Calls a block that is somebody else's as well."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it."""
        found: torch.Tensor = self.block(x)
        return found


class Owner(nn.Module):
    """Has a block, and calls it through others only."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.left, self.right = Called(self.block), Called(self.block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it twice."""
        found: torch.Tensor = self.left(x) + self.right(x + 1)
        return found


@pytest.mark.parametrize("path", ["block.0", "left.block.0", "right.block", "block"])
def test_an_exported_program_whose_module_is_called_through_others(path: str) -> None:
    model = Owner().train()
    emitted = transform(torch.export.export(copy.deepcopy(model), (ROWS,))).model
    for module in (model, emitted):
        module.get_submodule(path).eval()
    torch.testing.assert_close(model(ROWS), emitted(ROWS))


def test_normalizations_that_share_statistics_and_count_apart() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4)).train()
    for name in ("running_mean", "running_var"):
        setattr(model[2], name, getattr(model[0], name))
    emitted = transform(copy.deepcopy(model), (ROWS,)).model
    for _ in range(2):
        torch.testing.assert_close(model(ROWS), emitted(ROWS))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(emitted.state_dict()[key], value)


def test_an_exported_program_that_was_saved_and_loaded(tmp_path: Path) -> None:
    model = Twins(nn.BatchNorm1d(4)).train()
    torch.export.save(torch.export.export(copy.deepcopy(model), (ROWS,)), tmp_path / "twins.pt2")
    emitted = transform(torch.export.load(tmp_path / "twins.pt2")).model
    for _ in range(2):
        torch.testing.assert_close(emitted(ROWS), model(ROWS))
