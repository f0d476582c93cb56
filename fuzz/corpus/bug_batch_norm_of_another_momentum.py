"""A subclass of a batch norm with another momentum: the emitted one counted batches, and used its own."""

from torch import nn
from torch.nn import functional as F

from fuzz.modules.case import InputSpec, ModuleCase


class Slow(nn.BatchNorm1d):
    def forward(self, x):
        stats = self.running_mean, self.running_var
        return F.batch_norm(x, *stats, self.weight, self.bias, self.training, 0.01, self.eps)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Slow(3)

    def forward(self, x):
        return self.norm(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="own layer: batch norm of another momentum"
)
