"""A root that is a batch norm itself did not count its batches."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.BatchNorm2d):
    def __init__(self):
        super().__init__(3)


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(Net, (InputSpec("x", (2, 3, 4, 4)),), seed=1, ways=("export",), kind="batch norm elsewhere: the root")
