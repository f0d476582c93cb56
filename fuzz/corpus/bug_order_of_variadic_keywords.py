"""A model that walks through `**features` took the order of the call that was captured, whatever the order of a call."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x, **features):
        for feature in features.values():
            x = x * 0.5 + feature
        return x


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
CASE = ModuleCase(
    Net,
    (
        InputSpec("x", (4, 3)),
        InputSpec("b", (4, 3), seed=1, keyword=True),
        InputSpec("a", (4, 3), seed=2, keyword=True),
    ),
    seed=1,
    ways=("export",),
    kind="variadic keywords: values",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
