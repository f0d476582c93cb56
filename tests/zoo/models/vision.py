"""All models of torchvision: classification, segmentation, detection, video, optical flow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.models import import_torchvision
from tests.zoo.models.entry import Entry, Made, images

_SIZES = (64, 96, 128, 224, 299)


def entries() -> Iterator[Entry]:
    """Yield the models that torchvision lists, those for eager quantization excepted."""
    models = import_torchvision().models
    rooms = {
        "": (models, _classifier),
        "segmentation": (models.segmentation, _segmenter),
        "detection": (models.detection, _detector),
        "video": (models.video, _of_video),
        "optical_flow": (models.optical_flow, _of_flow),
    }
    for room, (module, make) in rooms.items():
        for name in models.list_models(module=module):
            yield Entry("/".join(filter(None, ("torchvision", room, name))), partial(make, models, name))


def _classifier(models: Any, name: str) -> Made:
    # of two auxiliary heads, GoogLeNet's take no small images
    options: dict[str, Any] = {"num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if name.startswith("vit_"):
        size = 64 if not name.endswith("14") else 56
        model = models.get_model(name, weights=None, image_size=size, **options).eval()
        return model, (images(model, (size,)),), {}
    model = models.get_model(name, weights=None, **options).eval()
    return model, (images(model, _SIZES),), {}


def _segmenter(models: Any, name: str) -> Made:
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()
    return model, (images(model, _SIZES),), {}


def _detector(models: Any, name: str) -> Made:
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()
    # a detector resizes what it gets
    for attribute in ("min_size", "max_size", "fixed_size"):
        if getattr(model.transform, attribute, None):
            value = {"min_size": (128,), "max_size": 160, "fixed_size": model.transform.fixed_size}[attribute]
            setattr(model.transform, attribute, value)
    return model, ([torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))],), {}


def _of_video(models: Any, name: str) -> Made:
    model = models.get_model(name, weights=None, num_classes=10).eval()
    size, frames = (224, 16) if name.startswith("mvit") else (64, 8 if name.startswith("swin") else 16)
    return model, (torch.randn(1, 3, frames, size, size, generator=torch.Generator().manual_seed(0)),), {}


def _of_flow(models: Any, name: str) -> Made:
    model = models.get_model(name, weights=None).eval()
    first, second = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return model, (first, second), {"num_flow_updates": 2}
