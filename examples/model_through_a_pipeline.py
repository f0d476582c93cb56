"""Run a model through a pipeline of your own: what fired, what did not and why, and where the weights went."""

from __future__ import annotations

import torch
from torch import nn

from graphwright import Fixpoint, PassManager, transform
from graphwright.passes import Canonicalize, Convert, Fuse, Timing
from graphwright.tensorrt import TENSORRT_CONVERSION_PATTERNS, TENSORRT_FUSION_PATTERNS


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.blocks(x)).flatten(1))


def main() -> None:
    model, x = Net().eval(), torch.randn(2, 8, 16, 16)
    convert = Fixpoint((Convert(TENSORRT_CONVERSION_PATTERNS), Canonicalize()))
    pipeline = PassManager((Canonicalize(), convert, Fuse(TENSORRT_FUSION_PATTERNS)))

    timing = Timing()
    result = transform(model, (x,), pipeline=pipeline.with_instruments(timing), validate="final")
    torch.testing.assert_close(result.model(x), model(x))

    for match in result.matches:
        print(match.pattern.__name__, "at", match.location.where)
    for remark in result.remarks:
        print(remark)
    for key, sources in result.parameter_map.renamed().items():
        print(key, "<-", *sources)
    result.model.load_state_dict(result.parameter_map.convert(model.state_dict()))


if __name__ == "__main__":
    main()
