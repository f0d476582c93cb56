"""A batch norm without a momentum, under `no_grad`: the emitted module raised."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=None)

    def forward(self, x):
        with torch.no_grad():
            return self.norm(x)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    training=True,
    ways=("export",),
    kind="batch norm elsewhere: cumulative, under no_grad",
)
