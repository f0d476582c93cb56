"""A part of a tensor that was written in place and returned came out as a tensor of its own, with other strides.

Lowering of in-place operators. Found by `strides` among modules after 893 of them; fixed in compiler/lower/functional/functionalizer.py.
"""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        v = x + 0
        return self.relu(v[..., ::2]), v


FIRES = False
CASE = ModuleCase(Net, (InputSpec("x", (2, 3)),))
