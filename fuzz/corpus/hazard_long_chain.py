"""A graph that is deep: nothing recurses over it, no walk is quadratic."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.properties import Properties


class Net(nn.Module):
    def forward(self, x):
        for _ in range(400):
            x = torch.relu(torch.relu(x * 0.99))
        return x


PROPERTIES = Properties(gradients=False, text=False)
FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), ways=("fx",))
