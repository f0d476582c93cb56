"""A size that is left open goes into views, and into arithmetic with it."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        n = x.shape[0]
        y = torch.cat([x, x, x[:1]]).reshape(2 * n + 1, 2, 2)
        return torch.relu(torch.relu(y.flatten(1))) / n, x.view(x.size(0), -1)


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), dynamic=(("x", 0),), ways=("export",))
