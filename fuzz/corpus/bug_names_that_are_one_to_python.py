"""Two modules called U+00B5 and U+03BC are one attribute to Python's parser: the emitted module read one of them twice."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("\u00b5", nn.Linear(3, 3))
        self.add_module("\u03bc", nn.Linear(3, 3))

    def forward(self, x):
        return self._modules["\u00b5"](x) - 2 * self._modules["\u03bc"](x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="names: modules",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
