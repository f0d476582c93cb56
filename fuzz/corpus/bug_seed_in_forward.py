"""`torch.manual_seed` in `forward` was lost."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)
        return x * torch.rand_like(x)


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="foreign randomness: seed")
