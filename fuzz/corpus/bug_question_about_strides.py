"""A branch on `x.stride(1)` was taken once for all inputs."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if x.stride(1) == 1 else x * 3


CASE = ModuleCase(
    Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("export",), kind="question that matters: stride of the channels"
)
