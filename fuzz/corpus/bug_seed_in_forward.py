"""`torch.manual_seed` in `forward` was lost."""

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)
        return x * torch.rand_like(x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="foreign randomness: seed",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
