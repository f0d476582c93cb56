"""`if torch.compiler.is_compiling()`: the emitted module took the way of tracing."""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if torch.compiler.is_compiling() else x * 3


CASE = ModuleCase(
    Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("export",), kind="question that matters: is_compiling"
)
