"""The source text of a module while it is written; every statement is run at once on example inputs."""

from __future__ import annotations

import textwrap
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fuzz.modules.case import HEADER, InputSpec

T = TypeVar("T")

_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AssertionError, ZeroDivisionError)
"""Errors of PyTorch for operands that do not fit."""
LARGEST = 4096
"""Tensors with more elements are not used as operands."""

CLASSES = {
    "Block": """\
class Block(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = act
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.norm(x))))
""",
    "Residual": """\
class Residual(nn.Module):
    def __init__(self, channels, inplace):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)
""",
}


class Writer:
    """The text so far, and its values on the example inputs."""

    def __init__(
        self, draw: st.DrawFn, inputs: tuple[InputSpec, ...], dtype: torch.dtype, training: bool, writes_inputs: bool
    ) -> None:
        self.draw = draw
        self.inputs = inputs
        self.dtype = dtype
        self.writes_inputs = writes_inputs
        """Whether statements may mutate inputs."""
        self.module = nn.Module()
        self.module.train(training)
        self.scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional, "self": self.module}
        for text in CLASSES.values():
            exec(text, self.scope)
        made: dict[str, torch.Tensor] = {}
        for spec in inputs:
            made[spec.name] = made[spec.same_as] if spec.same_as is not None else spec.build()
        self.scope.update(made)
        self.definitions: list[str] = []
        """Statements of the Python module before the class."""
        self.setup: list[str] = []
        self.body: list[str] = []
        self.methods: list[str] = []
        """Further methods of the class."""
        self.base = ""
        """A base class that it does not change, with the constructor's arguments; empty for an ordinary module."""
        self.signature = ""
        """The parameters of `forward`; empty for the inputs in order."""
        self.values = list(made)
        """Names of tensors, oldest first."""
        self.layers: list[str] = []
        """Paths of layers that take one tensor."""
        self.count = 0

    # ---- draws ----

    def one_of(self, *choices: T) -> T:
        """Return one of some choices; draws shrink towards the first."""
        return self.draw(st.sampled_from(choices))

    def integer(self, lower: int, upper: int) -> int:
        """Return an integer between two bounds, both included; draws shrink towards the lower one."""
        return self.draw(st.integers(lower, upper))

    def flag(self) -> bool:
        """Return a bool; draws shrink towards False."""
        return self.draw(st.booleans())

    def order(self, rank: int) -> tuple[int, ...]:
        """Return a permutation of so many dimensions."""
        return tuple(self.draw(st.permutations(range(rank))))

    def dim(self, name: str) -> int:
        """Return a dimension of a value, positive or negative."""
        rank = self[name].dim()
        return self.integer(0, rank - 1) - (rank if self.flag() else 0)

    # ---- values ----

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self.scope[name]
        assert isinstance(value, torch.Tensor)
        return value

    def same_shape(self, name: str) -> str:
        """Return a drawn value of the shape and dtype of another."""
        x = self[name]
        alike = [n for n in reversed(self.values) if self[n].shape == x.shape and self[n].dtype == x.dtype]
        return self.one_of(*alike)

    def writable(self, name: str) -> bool:
        """Return whether a value may be mutated: not a weight or a view of one, and inputs only if wanted."""
        x = self[name]
        kept = [*self.module.parameters(), *self.module.buffers()]
        if not self.writes_inputs:
            kept += [self[spec.name] for spec in self.inputs]
        place = x.untyped_storage().data_ptr()
        overlaps = any(stride == 0 and size > 1 for size, stride in zip(x.shape, x.stride(), strict=True))
        return x.numel() > 0 and not overlaps and all(k.untyped_storage().data_ptr() != place for k in kept)

    # ---- statements ----

    def fresh(self, stem: str = "v") -> str:
        """Return a new name."""
        self.count += 1
        return f"{stem}{self.count}"

    def run(self, line: str) -> bool:
        """Append a statement of `forward` if it runs; return whether it does."""
        with torch.no_grad():
            try:
                exec(line, self.scope)
            except _ERRORS:
                return False
        self.body.append(line)
        return True

    def let(self, expression: str, count: int = 1) -> bool:
        """Append `name = expression`, with several names for several tensors; return whether it runs."""
        names = [self.fresh() for _ in range(count)]
        if not self.run(f"{', '.join(names)} = {expression}"):
            return False
        self.values += [n for n in names if isinstance(self.scope[n], torch.Tensor)]
        return True

    def define(self, text: str) -> None:
        """Put statements before the class, once."""
        if text not in self.definitions:
            exec(text, self.scope)
            self.definitions.append(text)

    def set_up(self, line: str) -> bool:
        """Append a statement of `__init__` that makes a layer, a weight or a buffer; return whether it runs."""
        try:
            exec(line, self.scope)
        except _ERRORS:
            return False
        self.module.to(self.dtype)
        self.module.train(self.module.training)
        self.setup.append(line)
        return True

    def layer(self, expression: str, source: str, call: str = "{layer}({x})", *, count: int = 1) -> bool:
        """Append a layer and its call, or neither if the call does not run; return whether it does."""
        stem = expression.partition("(")[0].rpartition(".")[2].lower()
        path = f"self.{self.fresh(stem)}"
        mark = len(self.setup)
        if not self.set_up(f"{path} = {expression}"):
            return False
        if not self.let(call.format(layer=path, x=source), count):
            self.roll_back(mark)
            return False
        if call == "{layer}({x})" and "inplace=True" not in expression:
            self.layers.append(path)
        return True

    def roll_back(self, mark: int) -> None:
        """Remove the statements of `__init__` after the first `mark` ones."""
        for line in self.setup[mark:]:
            name = line.partition(" = ")[0].removeprefix("self.")
            if name.isidentifier() and hasattr(self.module, name):
                delattr(self.module, name)
        del self.setup[mark:]

    # ---- the text ----

    def text(self, returned: str) -> str:
        """Return the source of the module with the expression that `forward` returns."""
        if self.base:
            name, _, arguments = self.base.partition("(")
            return f"{HEADER}\n\nclass Net({name}):\n    def __init__(self):\n        super().__init__({arguments}\n"
        names = [spec.name for spec in self.inputs if not spec.keyword]
        names += [f"{spec.name}=None" for spec in self.inputs if spec.keyword]
        lines = "\n".join(self.setup)
        classes = "".join(f"\n\n{text}" for name, text in CLASSES.items() if f"{name}(" in lines)
        classes += "".join(f"\n\n{text}\n" for text in self.definitions)
        setup, body = (_indented(part, 8) for part in (self.setup, self.body))
        methods = "".join(f"{_indented([method], 4)}\n" for method in self.methods)
        return (
            f"{HEADER}{classes}\n\nclass Net(nn.Module):\n"
            f"    def __init__(self):\n        super().__init__()\n{setup}\n{methods}"
            f"    def forward(self, {self.signature or ', '.join(names)}):\n{body}        return {returned}\n"
        )


def _indented(statements: list[str], depth: int) -> str:
    return "".join(f"{textwrap.indent(text, ' ' * depth)}\n" for text in statements)
