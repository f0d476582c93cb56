"""A tensor that is written in place shares memory with a dropout's operand in eval mode, and not in training.

Lowering. Found by `inputs` in the other mode among modules: after `eval()` the model writes to its input, the emitted module
did not. Such a module keeps its mode now, and says why.
"""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.dropout(x)) * 2 + x


FIRES = False
CASE = ModuleCase(Net, (InputSpec("x", (3, 4)),), training=True)
