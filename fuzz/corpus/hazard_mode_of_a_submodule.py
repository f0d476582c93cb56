"""A batch norm that was left in training inside of a model in eval mode."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 2, 1)
        self.last_norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return self.last_norm(self.last(torch.relu(self.norm(self.conv(x)))))


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, modes=(("norm", True),))
