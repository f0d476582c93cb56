"""The arguments of modules that are kept as they are: those that text can hold arrive, others are refused by name."""

from __future__ import annotations

import copy
import enum
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphwright import CaptureError, InputError, transform
from graphwright.ir import parse_program, print_program, programs_equal, verify
from ir.attributes import attribute_key

X = torch.randn(2, 3)


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.given[:] = [(args, kwargs)]
        return x * 1


class Calls(nn.Module):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.leaf = Leaf()
        self.args, self.kwargs = args, kwargs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.leaf(x, *self.args, **self.kwargs)
        return result + 1


def nested(item: Any, depth: int) -> Any:
    for _ in range(depth):
        item = [item]
    return item


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


class Flags(enum.IntFlag):
    B = 2


class Numbers(list[int]):
    pass


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.float16, torch.strided, torch.channels_last, torch.device("cpu")), {"dtype": torch.int8}),
        ((complex(-0.0, 1.0), complex(0.0, -1.0), complex("nan+infj"), [1 + 2j]), {"c": complex(1.0, -0.0)}),
        (({1: 2, None: 3, False: {2.5: "a"}, (1, "b"): []},), {"table": {torch.float16: {-0.0: 1}}}),
        ((), {"a-b": 1, "class": {"nested": [complex("inf")]}, "µ": torch.float16, "plain": 2}),
        ((10**77 - 1,), {"deep": nested(1, 90)}),
    ],
    ids=["codes of PyTorch", "complex numbers", "keys of dicts", "keywords", "limits"],
)
def test_what_text_can_hold_arrives(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    result = transform(Calls(args, kwargs), (X,), leaf_modules=(Leaf,))
    for module in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        module(X)
        leaf: Any = module.get_submodule("leaf")
        ((given, named),) = leaf.given
        assert attribute_key(given) == attribute_key(args)
        assert attribute_key(named) == attribute_key(kwargs)
    parsed = parse_program(print_program(result.program))
    assert programs_equal(parsed, result.program) is None
    verify(parsed)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({Color.RED: 1}, "a dict with a key of class Color"),
        ({b"a": 1}, "a dict with a key of class bytes"),
        (Color.RED, "an argument of class Color"),
        (Level.LOW, "an argument of class Level"),
        (Word.A, "an argument of class Word"),
        ([1, (Flags.B,)], "an argument of class Flags"),
        ({Word.A: 1}, "a dict with a key of class Word"),
        (np.float64(0.5), "an argument of class float64"),
        (Numbers([1]), "an argument of class Numbers"),
        (10**77, "a number of more than 77 digits"),
        ({-(10**80): 1}, "a number of more than 77 digits"),
        (nested(1, 91), "an argument that is nested more than 90 deep"),
    ],
)
def test_what_text_cannot_hold_is_refused_by_name(argument: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=f"an opaque call cannot take {message}"):
        transform(Calls((argument,), {}), (X,), leaf_modules=(Leaf,))


@pytest.mark.parametrize("argument", [Level.LOW, Word.A, Flags.B])
def test_a_member_of_an_enum_is_refused_without_inputs_too(argument: Any) -> None:
    message = f"an opaque call cannot take an argument of class {type(argument).__name__}"
    with pytest.raises(CaptureError, match=message):
        transform(Calls((argument,), {}), leaf_modules=(Leaf,))


class Nests(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, x: torch.Tensor) -> list[Any]:
        return [nested([x + 1, 10**80], self.depth - 2)]


def test_results_that_are_nested_deep() -> None:
    program = transform(Nests(90), (X,)).program
    assert programs_equal(parse_program(print_program(program)), program) is None
    with pytest.raises(CaptureError, match="the result of forward is nested more than 200 deep"):
        transform(Nests(400), (X,))
    with pytest.raises(InputError, match="the example inputs are nested more than 200 deep"):
        transform(Nests(2), (nested(X, 400),))
