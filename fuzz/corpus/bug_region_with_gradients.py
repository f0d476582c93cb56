"""An `enable_grad` region: called under `no_grad`, the result required no gradient."""

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
        self.weight = nn.Parameter(torch.randn(()))

    def forward(self, x):
        with torch.enable_grad():
            return x * self.weight


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="grad region: enable_grad",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
