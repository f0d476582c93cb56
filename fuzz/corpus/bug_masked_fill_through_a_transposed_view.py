"""`v.masked_fill_(v > 0.1, 0.25)` of a transposed view: the result had the strides of the view."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x):
        y = x * 1.5
        v = y.t()
        v.masked_fill_(v > 0.1, 0.25)
        return y


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="in place through a view: masked_fill_"
)
