"""A number that grows with the inputs, kept in an attribute: hidden state, though two equal calls agree."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.most = 0.0

    def forward(self, x):
        self.most = max(self.most, float(x.detach().abs().sum()))
        return x * self.most


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="hidden state: the largest so far",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
