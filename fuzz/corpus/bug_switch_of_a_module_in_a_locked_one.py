"""A module in one whose mode is locked: its own train() went past the lock."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head()

    def forward(self, x):
        return self.head(x)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        y = self.fc(x)
        return y if self.training else y.softmax(-1)


FATES = ("equal, some calls refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="asked mode: if self.training")
