"""A `RandomState` of the module was frozen."""

import numpy as np
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = np.random.RandomState(3)

    def forward(self, x):
        return x + float(self.noise.rand())


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: RandomState")
