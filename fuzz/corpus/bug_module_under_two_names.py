"""One module under two names became two: a switch of one of them left the other in its mode."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.twin = self.norm

    def forward(self, x):
        return self.norm(x) + self.twin(x * 2)


FATES = ("equal",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="shared module: batch norm")
