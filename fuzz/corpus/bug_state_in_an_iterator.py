"""A counter in `itertools.count` was frozen."""

import itertools

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = itertools.count(1)

    def forward(self, x):
        return x * next(self.steps)


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: itertools.count")
