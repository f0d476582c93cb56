"""A Python number that `forward` counts up would be frozen: refused by name."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


FIRES = False
REFUSED = "calls"
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), ways=("export",))
