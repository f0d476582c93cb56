"""Two buffers were swapped by writing one into the other: what was one tensor before was two afterwards."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("a", torch.zeros(()))
        self.register_buffer("b", torch.zeros(()))

    def forward(self, x):
        y = x + self.b
        self.b, self.a = self.a, self.b + x.detach().mean()
        return y


FATES = ("equal",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: two swapped")
