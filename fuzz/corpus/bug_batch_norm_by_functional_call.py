"""A batch norm that `functional_call` runs did not count its batches."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return torch.func.functional_call(self.block, {"norm.weight": self.block.norm.weight * 2}, (x,))


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    training=True,
    ways=("export",),
    kind="batch norm elsewhere: functional_call of a block",
)
