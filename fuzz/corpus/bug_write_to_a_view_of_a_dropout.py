"""In eval mode a dropout is its operand; what was written to a view of its result was lost.

Lowering of `torch.export`. Found by `values` among modules; the tracer gives the result memory of its own, and the view was
taken for a fresh tensor. Fixed in compiler/lower/functional/functionalizer.py.
"""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        y = self.dropout(self.linear(x))
        y.select(0, 0).zero_()
        return y + 0.5


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(
    Net,
    (InputSpec("x", (3, 4)),),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
