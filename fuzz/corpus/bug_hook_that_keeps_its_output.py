"""A hook that appends to a list: a fake tensor lay in it afterwards, and the hook was lost."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase

kept: list[object] = []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.linear.register_forward_hook(lambda module, args, output: kept.append(output.detach()))

    def forward(self, x):
        return self.linear(x)


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hook with effects: list")
