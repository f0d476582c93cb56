"""A dropout of channels is returned beside its operand: in eval, torch.export takes the two for one."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x):
        y = x * 2
        return self.drop(y), y


FATES = ("equal, some calls refused",)
CASE = ModuleCase(Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("exported",), kind="asked mode: dropout")
