"""An exported program whose code asks for the mode, and in which no layer shows it: eval() was taken for no change."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x * 3


FATES = ("equal, some calls refused",)
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, training=True, ways=("exported",), kind="asked mode: if self.training"
)
