"""`self.step = self.step + 1` in a submodule: `torch.export` loses it, and the second call was wrong."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Stepper(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x):
        self.step = self.step + 1
        return x * self.step


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stepper = Stepper()

    def forward(self, x):
        return self.stepper(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: in a submodule")
