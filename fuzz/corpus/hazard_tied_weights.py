"""Tied weights stay one tensor: through a step of training, and through other weights by the parameter map."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), seed=8)
