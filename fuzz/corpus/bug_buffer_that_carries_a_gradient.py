"""A buffer that carries its gradient to the next call: the emitted module cut it off."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((), 0.7))
        self.register_buffer("state", torch.zeros(()))

    def forward(self, x):
        self.state = self.state * 0.5 + (x * self.gain).mean()
        return x * self.state


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: with a gradient")
