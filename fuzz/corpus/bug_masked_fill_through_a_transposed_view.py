"""`v.masked_fill_(v > 0.1, 0.25)` of a transposed view: the result had the strides of the view."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x):
        y = x * 1.5
        v = y.t()
        v.masked_fill_(v > 0.1, 0.25)
        return y


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="in place through a view: masked_fill_",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
