"""A hook that appends to a list: a fake tensor lay in it afterwards, and the hook was lost."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check

kept: list[object] = []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.linear.register_forward_hook(lambda module, args, output: kept.append(output.detach()))

    def forward(self, x):
        return self.linear(x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="hook with effects: list",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
