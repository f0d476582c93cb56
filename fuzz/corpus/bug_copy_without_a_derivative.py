"""`copy_` into a tensor of unknown type became `aten.copy`, which has no derivative.

Emission. Found by `it still runs` among modules, traced with torch.fx: the emitted module could not be trained.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        y = F.silu(x)
        y.copy_(x * 2)
        return torch.softmax(torch.relu(torch.relu(y)), -1)


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), ways=("fx",))
