"""`out += x` after a batch norm, and an activation in place: the residual is read before it is written."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(x * 1.5)
        out = self.norm(self.conv(x))
        out += x
        return self.relu(out), x


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1)
