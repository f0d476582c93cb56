"""A buffer that a submodule re-assigns after its use is written in place: the gradient of its use is gone, and
`backward` raised."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Stepper(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x):
        y = x * self.step
        self.step = self.step + 1
        return y


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stepper = Stepper()

    def forward(self, x):
        return self.stepper(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="re-assigned buffer: after its use in a submodule"
)
