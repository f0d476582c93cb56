"""`copy_` into a tensor of unknown type became `aten.copy`, which has no derivative.

Emission. Found by `it still runs` among modules, traced with torch.fx: the emitted module could not be trained.
"""

import torch
from torch import nn
from torch.nn import functional as F

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x):
        y = F.silu(x)
        y.copy_(x * 2)
        return torch.softmax(torch.relu(torch.relu(y)), -1)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (InputSpec("x", (3, 4)),),
    ways=("fx",),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
