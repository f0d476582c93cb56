"""A table in `lru_cache`: the original returned fake tensors after it was transformed."""

import functools

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


@functools.lru_cache
def table(size):
    return torch.arange(size) * 0.5


class Net(nn.Module):
    def forward(self, x):
        return x + table(3)


CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="cache: lru_cache")
