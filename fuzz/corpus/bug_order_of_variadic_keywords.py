"""A model that walks through `**features` took the order of the call that was captured, whatever the order of a call."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, x, **features):
        for feature in features.values():
            x = x * 0.5 + feature
        return x


CASE = ModuleCase(
    Net,
    (
        InputSpec("x", (4, 3)),
        InputSpec("b", (4, 3), seed=1, keyword=True),
        InputSpec("a", (4, 3), seed=2, keyword=True),
    ),
    seed=1,
    ways=("export",),
    kind="variadic keywords: values",
)
