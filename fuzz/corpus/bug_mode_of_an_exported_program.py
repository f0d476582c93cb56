"""An `ExportedProgram` of a model that asks for its mode: `train()` was accepted, and reached nothing."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x * 3


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("exported",),
    kind="asked mode: if self.training",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
