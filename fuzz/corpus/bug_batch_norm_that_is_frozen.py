"""A subclass of a batch norm that never trains passed for a batch norm: `train()` switched it on."""

from torch import nn
from torch.nn import functional as F

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Frozen(nn.BatchNorm1d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Frozen(3)

    def forward(self, x):
        return self.norm(x)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (4, 3)),),
    seed=1,
    ways=("export",),
    kind="own layer: batch norm that is frozen",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
