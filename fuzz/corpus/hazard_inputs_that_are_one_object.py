"""Two inputs that are one tensor object in the example are two inputs: `torch.export` alone makes `y * 2 - y` of this."""

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x, y):
        return x * 2 - torch.relu(torch.relu(y))


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (
        InputSpec("x", (3, 4)),
        InputSpec("y", (3, 4), same_as="x"),
    ),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
