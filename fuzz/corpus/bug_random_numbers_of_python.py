"""`random.random()` in `forward` was one number for all calls."""

import random

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * random.random()


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="foreign randomness: random")
