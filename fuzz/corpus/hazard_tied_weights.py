"""Tied weights stay one tensor: through a step of training, and through other weights by the parameter map."""

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
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (InputSpec("x", (3, 4)),),
    seed=8,
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
