"""A view of a buffer that is written was returned as a tensor of its own."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(3))

    def forward(self, x):
        self.state.add_(x.detach().mean())
        return self.state[1:]


FATES = ("equal",)
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: a view of what is written"
)
