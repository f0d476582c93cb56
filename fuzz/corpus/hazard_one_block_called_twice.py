"""One convolution and its batch norm are called at two places, in training: statistics are written twice."""

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
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, momentum=0.3)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return torch.relu(self.norm(self.conv(y)))


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4)),),
    seed=8,
    training=True,
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
