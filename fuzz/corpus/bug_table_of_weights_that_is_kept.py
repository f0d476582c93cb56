"""A table that a call makes of weights and keeps: each call of the result makes it anew."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(5))
        self.tables = {}

    def forward(self, x):
        if 3 not in self.tables:
            self.tables[3] = self.bias[torch.arange(3) % 5]
        return x + self.tables[3]


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="cache: of weights")
