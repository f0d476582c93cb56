"""Dead code with an effect: writes through views of intermediate values, slice assignment, `out=`."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.properties import Properties


class Net(nn.Module):
    def forward(self, x):
        y = x * 2
        y.t()[0].add_(1)
        y[1:, ::2] = x[1:, ::2]
        z = torch.empty_like(y)
        torch.mul(y, 3, out=z)
        y.view(-1)[:2].zero_()
        return torch.relu(torch.relu(y)) + z


PROPERTIES = Properties(gradients=False)
FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), ways=("export",))
