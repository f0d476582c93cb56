"""An `ExportedProgram` of a model that asks for its mode: `train()` was accepted, and reached nothing."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x * 3


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("exported",), kind="asked mode: if self.training")
