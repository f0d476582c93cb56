"""A buffer of a submodule that the root re-assigns: the second call was wrong."""

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
        self.holder = nn.Module()
        self.holder.register_buffer("average", torch.zeros(()))

    def forward(self, x):
        self.holder.average = self.holder.average * 0.5 + x.detach().mean()
        return x + self.holder.average


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="re-assigned buffer: from outside",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
