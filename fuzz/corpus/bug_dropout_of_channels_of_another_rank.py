"""`Dropout3d` of three dimensions is captured with a batch of one: as `Dropout3d` again it drew fewer numbers."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout3d(0.5)

    def forward(self, x):
        self.drop(x.select(-1, 0))
        return x.flip(-1)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net, (InputSpec("x", (2, 3, 6, 4)),), seed=1, training=True, ways=("export",), kind="asked mode: dropout"
)
