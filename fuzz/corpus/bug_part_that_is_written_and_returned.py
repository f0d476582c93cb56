"""A part of a tensor that was written in place and returned came out as a tensor of its own, with other strides.

Lowering of in-place operators. Found by `strides` among modules after 893 of them; fixed in compiler/lower/functional/functionalizer.py.
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
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        v = x + 0
        return self.relu(v[..., ::2]), v


SUBJECT = pipeline_of(TENSORRT_PATTERNS)
PROPERTIES = Properties()
FIRES = False
CASE = ModuleCase(Net, (InputSpec("x", (2, 3)),))

if __name__ == "__main__":
    check(SUBJECT, CASE, PROPERTIES)
