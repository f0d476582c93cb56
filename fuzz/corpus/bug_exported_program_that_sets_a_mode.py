"""An exported program whose forward puts a norm into eval: train() put it into training."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        self.norm.eval()
        return self.norm(x)


FATES = ("equal, some calls refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4)),),
    seed=1,
    training=True,
    ways=("exported",),
    kind="overridden mode: eval() in forward",
)
