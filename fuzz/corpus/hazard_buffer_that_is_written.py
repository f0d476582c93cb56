"""A buffer that is written, and a view of it that is read later, is no constant."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(3, 4))

    def forward(self, x):
        last = self.cache[-1]
        self.cache[1:] = self.cache[:2].clone()
        self.cache[0] = x.detach()[0]
        return torch.relu(torch.relu(x)) + last, self.cache.sum()


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),))
