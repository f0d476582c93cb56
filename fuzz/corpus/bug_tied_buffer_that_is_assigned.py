"""One of two names of a buffer is assigned: the other one was refused, where the assignment ends the tie."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(()))
        self.holder = nn.Module()
        self.holder.register_buffer("state", self.state)

    def forward(self, x):
        self.state = self.state + x.detach().mean()
        return x * self.state + self.holder.state


FATES = ("equal",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: tied to another")
