"""Two modules called U+00B5 and U+03BC are one attribute to Python's parser: the emitted module read one of them twice."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("\u00b5", nn.Linear(3, 3))
        self.add_module("\u03bc", nn.Linear(3, 3))

    def forward(self, x):
        return self._modules["\u00b5"](x) - 2 * self._modules["\u03bc"](x)


FATES = ("refused",)
CASE = ModuleCase(Net, (InputSpec("x", (4, 3)),), seed=1, ways=("export",), kind="names: modules")
