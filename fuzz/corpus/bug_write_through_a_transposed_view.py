"""`y.t().index_add_(...)`: the result had the strides of the view."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        y = x * 1.5
        y.t().index_add_(0, torch.tensor([0]), torch.ones(1, 4, dtype=x.dtype))
        return y


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="in place through a view: index_add_")
