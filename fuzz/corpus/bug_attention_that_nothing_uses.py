"""An attention in training whose result nothing uses was decomposed again and again.

DecomposeMultiheadAttentionPattern. Found by `no error` among modules (DidNotConverge): dead code that draws random numbers
stays, and the rule left the old operation beside the new ones.
"""

import torch
from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5)

    def forward(self, x):
        self.attention(x, x, x)
        return x + torch.rand(4)


FIRES = True
CASE = ModuleCase(Net, (InputSpec("x", (3, 2, 4)),), training=True, seed=1)
