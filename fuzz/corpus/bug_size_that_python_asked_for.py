"""With `Dim.AUTO`, torch.export goes the way of the example where Python asks for a size, and its ranges do not say so.

Capture: for odd sizes the emitted module gave the numbers of even ones. Found by hand, after `no error` among modules had
shown that guards on sizes get lost; fixed in compiler/lower/guards.py: the module refuses such inputs.
"""

from torch import nn

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import InputSpec, ModuleCase
from fuzz.programs.check import Properties
from fuzz.search.sound import check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        return y * 2 if x.shape[0] % 2 == 0 else y * 3


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (4, 4)),), dynamic=(("x", 0),), ways=("export",))

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
