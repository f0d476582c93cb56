"""A dropout of channels is returned beside its operand: in eval, torch.export takes the two for one."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x):
        y = x * 2
        return self.drop(y), y


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal, some calls refused",)
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4)),),
    seed=1,
    ways=("exported",),
    kind="asked mode: dropout",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
