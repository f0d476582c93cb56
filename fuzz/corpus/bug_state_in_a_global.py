"""A global dict that `forward` counts in was frozen."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase

calls = {"count": 0}


class Net(nn.Module):
    def forward(self, x):
        calls["count"] += 1
        return x * calls["count"]


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: global dict")
