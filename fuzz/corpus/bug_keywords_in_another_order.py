"""Keywords in another order than the signature's were bound by position: a and b were swapped."""

from torch import nn

from fuzz.modules.case import InputSpec, ModuleCase


class Net(nn.Module):
    def forward(self, a, b):
        return a - 2 * b


FATES = ("equal", "equal, some calls refused")
CASE = ModuleCase(
    Net,
    (InputSpec("b", (4, 3), seed=1, keyword=True), InputSpec("a", (4, 3), seed=2, keyword=True)),
    seed=1,
    ways=("export",),
    kind="keywords: two in another order",
)
