"""Keyword arguments, None, nested results, a result that is an input, the same result twice, a constant."""

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x, y=None):
        z = torch.relu(torch.relu(x if y is None else x + y))
        return {"a": (z, [x, None]), "b": z, "c": 3}


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (
        InputSpec("x", (3, 4)),
        InputSpec("y", (3, 4), seed=1, keyword=True),
    ),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
