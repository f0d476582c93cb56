"""In eval mode a dropout is its operand; what was written to a view of its result was lost.

Lowering of `torch.export`. Found by `values` among modules; the tracer gives the result memory of its own, and the view was
taken for a fresh tensor. Fixed in compiler/lower/functional/functionalizer.py.
"""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        y = self.dropout(self.linear(x))
        y.select(0, 0).zero_()
        return y + 0.5


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),))
