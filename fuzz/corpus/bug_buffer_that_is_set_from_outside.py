"""A buffer of a submodule that the root re-assigns: the second call was wrong."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.holder = nn.Module()
        self.holder.register_buffer("average", torch.zeros(()))

    def forward(self, x):
        self.holder.average = self.holder.average * 0.5 + x.detach().mean()
        return x + self.holder.average


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: from outside")
