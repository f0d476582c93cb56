"""The text form lost the defaults of parameters: what was parsed was emitted with another signature."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x, y=None, scale=2.0):
        return x * scale if y is None else x * scale + y


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",))
