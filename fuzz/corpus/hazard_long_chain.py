"""A graph that is deep: nothing recurses over it, no walk is quadratic."""

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x):
        for _ in range(400):
            x = torch.relu(torch.relu(x * 0.99))
        return x


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties(gradients=False, text=False)
FIRES = True
CASE = ModuleCase(
    Net,
    (InputSpec("x", (3, 4)),),
    ways=("fx",),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
