"""A closure that counts was frozen."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


def counter():
    count = 0

    def step():
        nonlocal count
        count += 1
        return count

    return step


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = counter()

    def forward(self, x):
        return x * self.step()


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="hidden state: closure")
