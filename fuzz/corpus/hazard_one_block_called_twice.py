"""One convolution and its batch norm are called at two places, in training: statistics are written twice."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, momentum=0.3)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return torch.relu(self.norm(self.conv(y)))


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (2, 3, 4, 4)),), seed=8, training=True)
