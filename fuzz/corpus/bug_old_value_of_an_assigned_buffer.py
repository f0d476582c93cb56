"""The value that a buffer had before it was assigned is returned: it was taken for the new one."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(()))

    def forward(self, x):
        before = self.state
        self.state = self.state + x.detach().mean()
        return before


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: its old value")
