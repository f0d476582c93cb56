"""A numpy array that `forward` writes was frozen."""

import numpy as np
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = np.zeros(1)

    def forward(self, x):
        self.calls[0] += 1
        return x * float(self.calls[0])


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: numpy array")
