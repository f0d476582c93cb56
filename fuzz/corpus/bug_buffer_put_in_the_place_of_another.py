"""Two buffers were swapped by writing one into the other: what was one tensor before was two afterwards."""

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
        self.register_buffer("a", torch.zeros(()))
        self.register_buffer("b", torch.zeros(()))

    def forward(self, x):
        y = x + self.b
        self.b, self.a = self.a, self.b + x.detach().mean()
        return y


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="re-assigned buffer: two swapped",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
