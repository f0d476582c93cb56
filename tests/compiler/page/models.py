"""A small model in which there is something of everything that a page shows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x))) + x


class Net(nn.Module):
    """Says `</script>`, and has a module that is called twice, one in a dead end and one with a name in Greek."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.shared = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
        self.κεφαλή = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x, scale):
        x = self.shared(x)
        for block in self.blocks:
            x = block(x)
            x = x * scale
        x = self.shared(x)
        x.abs()
        y = F.adaptive_avg_pool2d(x, 1).flatten(1)
        z = self.κεφαλή(y)
        return z, x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8), torch.randn(1)
