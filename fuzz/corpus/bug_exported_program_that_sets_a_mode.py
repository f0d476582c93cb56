"""An exported program whose forward puts a norm into eval: train() put it into training."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        self.norm.eval()
        return self.norm(x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal, some calls refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4)),),
    seed=1,
    training=True,
    ways=("exported",),
    kind="overridden mode: eval() in forward",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
