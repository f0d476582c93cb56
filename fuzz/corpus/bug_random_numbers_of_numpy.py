"""`np.random` in `forward` was one number for all calls."""

import numpy as np
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand())


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="foreign randomness: numpy")
