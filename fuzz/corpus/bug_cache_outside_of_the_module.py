"""A table in `lru_cache`: the original returned fake tensors after it was transformed."""

import functools

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


@functools.lru_cache
def table(size):
    return torch.arange(size) * 0.5


class Net(nn.Module):
    def forward(self, x):
        return x + table(3)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="cache: lru_cache",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
