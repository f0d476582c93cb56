"""channels_last goes in, and comes out."""

import torch
from torch import nn
from torch.nn import functional as F

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x), F.avg_pool2d(x, 2)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4), channels_last=True),),
    seed=8,
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
