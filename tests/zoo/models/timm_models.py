"""One model of each family of timm, named in `data/timm.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.models import import_torchvision
from tests.zoo.models.entry import Entry, Made, images

_LIST = Path(__file__).resolve().parents[1] / "data" / "timm.txt"
_SIZES = (64, 96, 128, 192, 224, 256, 299, 331)
_OPTIONS: dict[str, dict[str, Any]] = {
    # the encoder of SAM is for images of 1024 pixels: minutes of attention
    "samvit_base_patch16": {"img_size": 256},
}


def names() -> list[str]:
    """Return the models of the list."""
    lines = (line.partition("#")[0].strip() for line in _LIST.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def entries() -> Iterator[Entry]:
    """Yield the models of the list."""
    for name in names():
        yield Entry(f"timm/{name}", partial(_make, name))


def _make(name: str) -> Made:
    import_torchvision()  # timm's import does not survive an extension that does not fit this PyTorch
    import timm

    options = _OPTIONS.get(name, {})
    model: Any = timm.create_model(name, num_classes=10, **options).eval()
    size = options.get("img_size", model.pretrained_cfg["input_size"][-1])
    is_fixed = model.pretrained_cfg.get("fixed_input_size", False)
    return model, (images(model, (size,) if is_fixed else (*_SIZES, size)),), {}
