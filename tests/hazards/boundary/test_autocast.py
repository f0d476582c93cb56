"""Regions of `torch.autocast` in `forward`: casts that give the same bits and gradients, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.equality.observation import seeded
from graphwright import CaptureError, InputError, transform

FLAT, IMAGE = torch.randn(2, 5, 4), torch.randn(2, 3, 8, 8)


class Region(nn.Module):
    """Calls a function of its layers in a region."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function
        self.options: dict[str, Any] = {"device_type": "cpu", "dtype": torch.bfloat16, **options}

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast(**self.options):
            return self.function(x, *self.layers)


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def numbers(x: torch.Tensor) -> torch.Tensor:
    products = x @ x.transpose(1, 2)
    sums = torch.baddbmm(products, x, x.transpose(1, 2)) + torch.einsum("bij,bkj->bik", x, x).exp()
    return products.softmax(-1).log() + sums + x.norm() + x.cumsum(0).sum() + x.std() + products.pow(2)


def losses(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return F.mse_loss(layer(x), x) + F.cross_entropy(x[0], torch.arange(5) % 4)


def written(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return torch.zeros(2, 5, 4).add_(layer(x)) + layer(x).add_(1).relu_()


def nested(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    y = layer(x)
    with torch.autocast("cpu", enabled=False):
        y = y.float() + layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(y)
    return torch.cat([y @ x.transpose(1, 2), layer(z) @ x.transpose(1, 2)])


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "a layer twice": lambda: (Region(lambda x, a: a(a(x)) + x, linear()), FLAT),
    "float16": lambda: (Region(lambda x, a: a(x), linear(), dtype=torch.float16), FLAT),
    "switched off": lambda: (Region(lambda x, a: a(x), linear(), enabled=False), FLAT),
    "another device": lambda: (Region(lambda x, a: a(x), linear(), device_type="cuda", dtype=torch.float16), FLAT),
    "convolution": lambda: (
        Region(lambda x, c, b, a: F.max_pool2d(a(b(c(x))), 2), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        IMAGE,
    ),
    "attention": lambda: (
        Region(lambda x, m: m(x, x, x, need_weights=False)[0], nn.MultiheadAttention(4, 2, batch_first=True)),
        FLAT,
    ),
    "encoder": lambda: (Region(lambda x, e: e(x), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), FLAT),
    "norms": lambda: (Region(lambda x, n, g: g(n(x).transpose(1, 2)), nn.LayerNorm(4), nn.GroupNorm(2, 4)), FLAT),
    "losses": lambda: (
        Region(lambda x, a: F.mse_loss(a(x), x) + F.cross_entropy(x[0], torch.arange(5) % 4), linear()),
        FLAT,
    ),
    "operators": lambda: (Region(numbers), FLAT),
    "writes": lambda: (Region(written, linear()), FLAT),
    "regions in regions": lambda: (Region(nested, linear()), FLAT),
    "a selection": lambda: (Region(lambda x, a: a(x[x[..., 0] > 0]), linear()), FLAT),
    "double": lambda: (Region(lambda x, a: a(x), linear().double()), FLAT.double()),
}


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning")
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_region_gives_the_same_bits_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    result = transform(model.eval(), (x,), validate="final")
    for mode in (False, True):
        model.train(mode)
        result.model.train(mode)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = []
        for module, given in zip((model, result.model), inputs, strict=True):
            module.zero_grad()
            with seeded(0):
                outputs.append(module(given * 1))  # autocast keeps its cast of a leaf
            outputs[-1].float().square().sum().backward()
        assert outputs[0].dtype == outputs[1].dtype and torch.equal(*outputs)
        for one, other in [inputs, *zip(model.parameters(), result.model.parameters(), strict=True)]:
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None and other.grad is not None:
                difference = (one.grad - other.grad).abs().max()
                assert difference <= (one.grad.abs().max() * _ULP if name in COMPUTED_ONCE else 0)


COMPUTED_ONCE = ("operators", "writes", "regions in regions")
"""They compute one thing twice, and the result once: gradients in bfloat16 are added in another order."""
_ULP = torch.finfo(torch.bfloat16).eps


def test_the_result_is_not_called_inside_of_another_region() -> None:
    """Outside of its own region, the original computes something else there."""
    model = Region(lambda x, a: a(x).float() @ x.transpose(1, 2), linear(), enabled=False).eval()
    for result in (transform(model, (FLAT,)), transform(torch.export.export(model, (FLAT,)))):
        assert torch.equal(result.model(FLAT), model(FLAT))
        with torch.autocast("cpu"), pytest.raises(InputError, match=r"outside of torch\.autocast"):
            result.model(FLAT)


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    @torch.autocast("cpu", dtype=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(self, x: torch.Tensor) -> Any:
        y = self.layer(x)
        return y * 2 if y.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu") else y


def test_a_decorator_and_questions_inside_of_the_region() -> None:
    model = Decorated().eval()
    assert torch.equal(transform(model, (FLAT,)).model(FLAT), model(FLAT))


class WithoutGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.layer(x)
        return self.layer(y.float())


def test_a_region_inside_of_no_grad() -> None:
    model = WithoutGradients()
    result = transform(model, (FLAT,))
    for module in (model, result.model):
        module(FLAT).square().sum().backward()
    for one, other in zip(model.parameters(), result.model.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_no_grad_inside_of_a_region_is_refused_and_the_remedy_works() -> None:
    """`torch.export` loses it."""

    def inside(x: torch.Tensor, layer: nn.Module) -> Any:
        with torch.no_grad():
            y = layer(x)
        return layer(y)

    model = nn.Sequential(Region(inside, linear())).eval()
    with pytest.raises(CaptureError, match="the gradient mode changes inside of a region") as caught:
        transform(model, (FLAT,))
    assert caught.value.location is not None and caught.value.location.file == __file__
    assert torch.equal(transform(model, (FLAT,), leaf_modules=(Region,)).model(FLAT), model(FLAT))


@pytest.mark.parametrize(
    ("layer", "leaves", "message"),
    [
        (nn.GRU(4, 4), (), "what torch.autocast does to aten.gru.input is no cast of its operands"),
        (linear(), (nn.Linear,), "would be called outside of the region of torch.autocast"),
    ],
)
def test_what_is_no_cast_is_refused_and_the_remedy_works(layer: nn.Module, leaves: Any, message: str) -> None:
    model = nn.Sequential(Region(lambda x, a: a(x), layer), nn.Identity()).eval()
    with pytest.raises(CaptureError, match=message) as caught:
        transform(model, (FLAT,), leaf_modules=leaves)
    assert caught.value.location is not None and caught.value.location.module_path.startswith("0.layers.0")
    kept = transform(model, (FLAT,), leaf_modules=(*leaves, Region)).model
    first, second = (module(FLAT) for module in (model, kept))
    assert torch.equal(*(value[0] if isinstance(value, tuple) else value for value in (first, second)))
