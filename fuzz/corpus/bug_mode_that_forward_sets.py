"""`self.norm.eval()` in `forward`: after `train()` the emitted module used statistics of the batch."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        self.norm.eval()
        return self.norm(x)


CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="overridden mode: eval() in forward")
