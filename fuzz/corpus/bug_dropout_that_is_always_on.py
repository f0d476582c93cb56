"""A subclass of a dropout with a `forward` of its own passed for a dropout: `eval()` switched it off."""

from torch import nn
from torch.nn import functional as F

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class MCDropout(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p, training=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = MCDropout(0.5)

    def forward(self, x):
        return self.drop(x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    training=True,
    ways=("export",),
    kind="own layer: dropout that is always on",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
