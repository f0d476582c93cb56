"""A root that is a batch norm itself did not count its batches."""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.BatchNorm2d):
    def __init__(self):
        super().__init__(3)


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("x", (2, 3, 4, 4)),),
    seed=1,
    ways=("export",),
    kind="batch norm elsewhere: the root",
)

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
