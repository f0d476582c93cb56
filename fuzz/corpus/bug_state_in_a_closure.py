"""A closure that counts was frozen."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


def counter():
    count = 0

    def step():
        nonlocal count
        count += 1
        return count

    return step


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = counter()

    def forward(self, x):
        return x * self.step()


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="hidden state: closure",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
