"""An object with `__slots__` that `forward` counts in was frozen."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Meter:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.meter = Meter()

    def forward(self, x):
        self.meter.count += 1
        return x * self.meter.count


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: slots")
