"""A question about strides of inputs in channels_last: inputs in a third order were not refused."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if x.stride(1) == 1 else x * 3


FATES = ("equal, some calls refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4), channels_last=True),),
    seed=1,
    ways=("export",),
    kind="question that matters: stride of the channels",
)
