"""`if x.is_contiguous()` was answered once for all inputs."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if x.is_contiguous() else x * 3


CASE = ModuleCase(
    Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("export",), kind="question that matters: is_contiguous"
)
