"""A table in a global dict: the original returned fake tensors after it was transformed."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase

tables: dict[int, torch.Tensor] = {}


class Net(nn.Module):
    def forward(self, x):
        if 3 not in tables:
            tables[3] = torch.arange(3) * 0.5
        return x + tables[3]


CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="cache: global dict")
