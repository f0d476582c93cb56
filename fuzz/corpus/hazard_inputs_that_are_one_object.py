"""Two inputs that are one tensor object in the example are two inputs: `torch.export` alone makes `y * 2 - y` of this."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x, y):
        return x * 2 - torch.relu(torch.relu(y))


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)), InputSpec("y", (3, 4), same_as="x")))
