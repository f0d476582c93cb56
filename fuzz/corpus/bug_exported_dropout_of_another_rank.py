"""An exported program with a dropout of channels in eval mode, on rows, beside one in training: both were in training."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.resting = nn.Dropout2d(0.5)
        self.awake = nn.Dropout(0.5)

    def forward(self, x):
        return self.awake(self.resting(x))


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    modes=(("awake", True),),
    ways=("exported",),
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
