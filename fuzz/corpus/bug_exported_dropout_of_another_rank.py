"""An exported program with a dropout of channels in eval mode, on rows, beside one in training: both were in training."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.resting = nn.Dropout2d(0.5)
        self.awake = nn.Dropout(0.5)

    def forward(self, x):
        return self.awake(self.resting(x))


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, modes=(("awake", True),), ways=("exported",))
