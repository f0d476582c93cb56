"""A subclass of a batch norm that never trains passed for a batch norm: `train()` switched it on."""

from torch import nn
from torch.nn import functional as F

from fuzz.modules.case import InputSpec, ModuleCase


class Frozen(nn.BatchNorm1d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Frozen(3)

    def forward(self, x):
        return self.norm(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="own layer: batch norm that is frozen")
