"""Real models of torchvision with random weights, for the demo, the benchmarks and the tests.

torchvision is an optional dependency (`pip install 'graphwright[demo]'`), imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ir.errors import InputError, MissingPackageError

REAL_MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "vgg11_bn",
    "densenet121",
    "vit_b_16",
    "swin_t",
)
"""Names of the models that `real_model` makes, as `torchvision.models` spells them."""

_EXTENSION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_libraries: list[torch.library.Library] = []
"""Keeps the schemas registered: a collected `Library` removes them."""


@functools.cache
def import_torchvision() -> ModuleType:
    """Import torchvision, also with a build of PyTorch that its compiled extension does not fit.

    A torchvision built for CUDA cannot load its extension beside a CPU-only PyTorch, and then fails on import
    because two operators of the extension are unknown. None of the classification models uses them: declaring
    them is enough.

    Raises:
        MissingPackageError: torchvision is not installed, or fails to import for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise _missing(error) from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise _missing(error) from error
    library = torch.library.Library("torchvision", "DEF")
    for schema in _EXTENSION_SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise _missing(error) from error


def _missing(error: Exception) -> MissingPackageError:
    return MissingPackageError(
        f"torchvision cannot be imported: {error}",
        remedy=f"pip install 'graphwright[demo]' (the release that goes with torch {torch.__version__})",
    )


def real_model(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make one of `REAL_MODELS` in eval mode, with weights that only `seed` determines.

    Every value that initialization leaves constant is randomised (`randomize_batch_norm`), around running
    statistics that belong to the weights. The global random state is left as it was.

    Args:
        name: one of `REAL_MODELS`.
        seed: seeds the initialization.
        options: for torchvision's constructor (`num_classes=10`, `dropout=0.0`, vit_b_16's `image_size=64`).

    Raises:
        InputError: the name is not one of `REAL_MODELS`.
        MissingPackageError: torchvision cannot be imported.
    """
    if name not in REAL_MODELS:
        raise InputError(f"no real model is called {name!r}", remedy=f"choose one of {', '.join(REAL_MODELS)}")
    constructors = import_torchvision().models
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = getattr(constructors, name)(weights=None, **options)
    # Four images are enough statistics, and small ones are quick; only models without BatchNorm fix the size.
    images = (example_input(batch=4, size=128, seed=seed),)
    randomize_batch_norm(model, torch.Generator().manual_seed(seed), *images)
    return model.eval()


def example_input(*, batch: int = 2, size: int = 224, seed: int = 0) -> torch.Tensor:
    """Make a batch of random images, f32[batch, 3, size, size], that only `seed` determines."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomize_batch_norm(
    model: nn.Module, generator: torch.Generator, *example_inputs: Any, **example_kwargs: Any
) -> None:
    """Randomise, in place, the values of `model` that initialization leaves constant or nearly zero.

    A fresh model hides errors: BatchNorm with mean 0, variance 1, weight 1 and bias 0 is nearly the identity,
    a layer scale of 1e-6 drowns its branch, and vit_b_16's classifier of zeros answers 0 to everything. Here

    - constant scales (weights of BatchNorm, LayerNorm and GroupNorm, layer scale) get magnitudes in
      [0.5, 1.5], a quarter of them negative, and in each tensor of four or more at least one exact zero;
    - values that are all zero or nearly so (biases, class tokens, zeroed classifiers) become normal values
      of a trained layer's size;
    - running statistics of every BatchNorm move away from where they are: the mean by a fifth of a standard
      deviation, the variance by a factor in [0.5, 1.5].

    What a module does not have (`affine=False`, `track_running_stats=False`) stays absent.

    Args:
        model: real tensors, no meta device.
        generator: a CPU generator; the same state gives the same values on every device and dtype.
        example_inputs: when given, the running statistics are first set to those of the model on these
            inputs. Without that, the signal of a deep model dies out or grows from layer to layer, and its
            output hardly depends on its input.
        example_kwargs: keyword arguments of that run.
    """
    for parameter in model.parameters():
        if parameter.numel() == 1:
            continue  # a slope, a temperature: there is nothing to tell apart
        largest = float(parameter.abs().max())
        is_constant = bool((parameter == parameter.flatten()[0]).all())
        if is_constant and largest > 0:
            parameter.copy_(_signed_scales(parameter, generator))
        elif largest < 1e-3:
            fan_in = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 100
            parameter.copy_(_normal(parameter, generator) / math.sqrt(fan_in))
    norms = _norms_with_statistics(model)
    if not example_inputs and not example_kwargs:
        for norm in norms:
            _perturb_statistics(norm, generator)
    elif norms:
        _calibrate(model, norms, generator, example_inputs, example_kwargs)


def _perturb_statistics(norm: _BatchNorm, generator: torch.Generator) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    mean.add_((0.2 * _normal(mean, generator)).to(mean) * variance.sqrt())
    variance.mul_((0.5 + _uniform(variance, generator)).to(variance))


def _calibrate(
    model: nn.Module,
    norms: list[_BatchNorm],
    generator: torch.Generator,
    example_inputs: tuple[Any, ...],
    example_kwargs: dict[str, Any],
) -> None:
    """Set running statistics to those of one run in eval mode, each perturbed before the next layer runs."""

    def measure(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0], [0, *range(2, inputs[0].dim())])
        norm.running_mean.copy_(mean)
        # A channel behind a zero scale hardly varies; dividing by that would blow its rounding errors up.
        norm.running_var.copy_(variance.clamp(min=0.1 * float(variance.mean())))
        _perturb_statistics(norm, generator)

    training = [(module, module.training) for module in model.modules()]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.eval()
    try:
        model(*example_inputs, **example_kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training:
            module.training = mode


def _norms_with_statistics(model: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]


def _signed_scales(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    scales = (0.5 + _uniform(like, generator)).flatten()
    order = torch.randperm(len(scales), generator=generator)
    quarter = len(scales) // 4
    scales[order[:quarter]] *= -1
    zeros = -(-quarter // 8)
    scales[order[len(scales) - zeros :]] = 0
    return scales.view(like.shape)


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator)


def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(like.shape, generator=generator)
