"""An `enable_grad` region: called under `no_grad`, the result required no gradient."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(()))

    def forward(self, x):
        with torch.enable_grad():
            return x * self.weight


CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="grad region: enable_grad")
