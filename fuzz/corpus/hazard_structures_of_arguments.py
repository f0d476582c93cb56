"""Keyword arguments, None, nested results, a result that is an input, the same result twice, a constant."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x, y=None):
        z = torch.relu(torch.relu(x if y is None else x + y))
        return {"a": (z, [x, None]), "b": z, "c": 3}


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)), InputSpec("y", (3, 4), seed=1, keyword=True)))
