"""`if torch.is_inference_mode_enabled()` was answered once for all calls."""

import torch
from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if torch.is_inference_mode_enabled() else x * 3


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4)),),
    seed=1,
    ways=("export",),
    kind="question that matters: is_inference_mode_enabled",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
