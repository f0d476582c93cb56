"""A buffer that carries its gradient to the next call: the emitted module cut it off."""

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
        self.gain = nn.Parameter(torch.full((), 0.7))
        self.register_buffer("state", torch.zeros(()))

    def forward(self, x):
        self.state = self.state * 0.5 + (x * self.gain).mean()
        return x * self.state


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="re-assigned buffer: with a gradient",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
