"""`x if x.is_contiguous() else x.contiguous()`: of an input with other strides the result had the input's."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x if x.is_contiguous() else x.contiguous()


CASE = ModuleCase(
    Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("export",), kind="question that matters: contiguous()"
)
