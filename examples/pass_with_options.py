"""A pass with options, named in the text of a pipeline. It refuses programs that call an operator too often."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import attrs
import torch
from torch import nn

from graphwright import Pass, PassContext, PassError, parse_pipeline, transform
from graphwright.ir import Program


@attrs.frozen
class Budget(Pass):
    """Fail if a program has more than `most` operations of one operator; `operator` says whose."""

    name: ClassVar[str] = "budget"
    most: int = 100
    operator: str = ""

    def run(self, program: Program, context: PassContext) -> None:
        counts = Counter(op.name for op in program.graph.operations() if not self.operator or self.operator in op.name)
        for name, count in counts.most_common(1):
            if count > self.most:
                raise PassError(
                    f"{name} is called {count} times, more than {self.most}", remedy="fuse more, or raise `most`"
                )


def main() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))).eval()
    x = torch.randn(2, 8)

    pipeline = parse_pipeline("canonicalize,budget{most=3 operator=linear}", passes=[Budget])
    result = transform(model, (x,), pipeline=pipeline)
    print(sum(op.name == "aten.linear" for op in result.program.graph.operations()), "linears are within the budget")

    try:
        transform(model, (x,), pipeline=parse_pipeline("canonicalize,budget{most=2}", passes=[Budget]))
    except PassError as error:
        print(error.message)


if __name__ == "__main__":
    main()
