"""A hook that counts the calls was lost."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase

counts = {"calls": 0}


def count(module, args, output):
    counts["calls"] += 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.linear.register_forward_hook(count)

    def forward(self, x):
        return self.linear(x)


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hook with effects: count")
