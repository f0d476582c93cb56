"""A subclass of a dropout with a `forward` of its own passed for a dropout: `eval()` switched it off."""

from torch import nn
from torch.nn import functional as F

from fuzz.modules.case import InputSpec, ModuleCase


class MCDropout(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p, training=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = MCDropout(0.5)

    def forward(self, x):
        return self.drop(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, training=True, ways=("export",), kind="own layer: dropout that is always on"
)
