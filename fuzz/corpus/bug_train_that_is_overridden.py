"""A backbone whose `train()` leaves its batch norm in eval: the emitted module trained it."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.norm(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()

    def forward(self, x):
        return self.backbone(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="overridden mode: batch norm stays in eval"
)
