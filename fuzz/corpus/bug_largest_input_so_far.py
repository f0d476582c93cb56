"""A number that grows with the inputs, kept in an attribute: hidden state, though two equal calls agree."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.most = 0.0

    def forward(self, x):
        self.most = max(self.most, float(x.detach().abs().sum()))
        return x * self.most


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: the largest so far")
