"""`if torch.is_autocast_enabled()` was answered once for all calls."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if torch.is_autocast_enabled("cpu") else x * 3


CASE = ModuleCase(
    Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("export",), kind="question that matters: is_autocast_enabled"
)
