"""With `Dim.AUTO`, torch.export goes the way of the example where Python asks for a size, and its ranges do not say so.

Capture: for odd sizes the emitted module gave the numbers of even ones. Found by hand, after `no error` among modules had
shown that guards on sizes get lost; fixed in compiler/lower/guards.py: the module refuses such inputs.
"""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        return y * 2 if x.shape[0] % 2 == 0 else y * 3


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (4, 4)),), dynamic=(("x", 0),), ways=("export",))
