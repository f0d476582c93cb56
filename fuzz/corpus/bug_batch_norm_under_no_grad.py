"""A batch norm without a momentum, under `no_grad`: the emitted module raised."""

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=None)

    def forward(self, x):
        with torch.no_grad():
            return self.norm(x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    training=True,
    ways=("export",),
    kind="batch norm elsewhere: cumulative, under no_grad",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
