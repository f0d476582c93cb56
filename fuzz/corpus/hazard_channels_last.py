"""channels_last goes in, and comes out."""

import torch
from torch import nn
from torch.nn import functional as F

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x), F.avg_pool2d(x, 2)


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (2, 3, 4, 4), channels_last=True),), seed=8)
