"""A new tensor was written into the old one instead of taking its place: whoever held that saw it change."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(()))

    def forward(self, x):
        self.state = self.state + x.detach().mean()
        return x * self.state


FATES = ("equal",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: of the root")
