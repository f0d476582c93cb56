"""A Python number that `forward` counts up would be frozen: refused by name."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = False
REFUSED = "calls"
CASE = ModuleCase(
    Net,
    (InputSpec("x", (3, 4)),),
    ways=("export",),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
