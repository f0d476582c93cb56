"""What the emitter reads is all in the text: modules of models with defaults, locks and strides are the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from compiler.capture.capture import capture
from compiler.codegen import emit
from compiler.driver import transform
from compiler.lower.lower import lower
from fuzz.programs.check import check_text
from fuzz.programs.emission import check_emission, check_emitted_run
from fuzz.programs.properties import Finding
from ir.attributes import UnknownObject
from ir.errors import CodegenError, InputError, ParseError
from ir.program import InputLeaf, OutputLeaf, Program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.verify import verify


class Defaults(nn.Module):
    def forward(
        self,
        x: Any,
        scale: float = 2.0,
        dims: Any = (),
        names: Any = [],  # noqa: B006
        table: Any = {"a": (1, [None])},  # noqa: B006
        kind: Any = object,
        /,
        *rest: Any,
        flag: bool = True,
        dtype: Any = torch.float32,
        limit: float = float("inf"),
        **options: Any,
    ) -> Any:
        return x * scale


class Literals(nn.Module):
    """Every default can be written."""

    def forward(
        self,
        x: Any,
        y: Any = None,
        dims: Any = (),
        names: Any = [],  # noqa: B006
        table: Any = {"a": (1, [True])},  # noqa: B006
        *,
        size: Any = ((2, 3), "same"),
        device: Any = torch.device("cpu"),  # noqa: B008
        limit: float = float("nan"),
    ) -> Any:
        return x if y is None else x + y


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, dropout=0.5)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Any, state: Any = None) -> Any:
        y, h = self.rnn(self.norm(x), state)
        return y * 2 if self.training else y.relu(), h


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return {"turned": y.transpose(1, 3).contiguous().transpose(1, 3), "size": x.shape[0], "same": x}


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step: Any
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x: Any, out: Any, mode: str = "add") -> Any:
        self.step += 1
        out.add_(x)
        return (out, self.step * 2, mode)


X = torch.randn(2, 3)
ROWS = torch.randn(5, 3)
IMAGES = torch.randn(2, 3, 4, 5)
MODELS: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
    (Defaults(), (X,), {}),
    (Defaults(), (X, 2.0, (), [X], {"a": (1, [X])}, None, X, X), {"flag": False, "other": X}),
    (Literals(), (X,), {}),
    (Literals(), (X, X, (X, 1)), {"size": ((2, X), "same")}),
    (Locked(), (ROWS,), {}),
    (Locked().eval(), (ROWS,), {}),
    (Strided().eval(), (IMAGES,), {}),
    (Writes(), (X, torch.zeros(2, 3)), {}),
]


def parsed(program: Program) -> Program:
    return check_text(program, print_program(program))


@pytest.mark.parametrize(("model", "args", "kwargs"), MODELS, ids=lambda value: type(value).__name__)
def test_models_are_the_same_from_their_text(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    program = lower(capture(model, args, kwargs))
    check_emission(program, parsed(program))


def test_strides_of_open_sizes_are_the_same_from_their_text() -> None:
    program = lower(capture(Strided().eval(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch")},)))
    assert "symbol batch" in print_program(program)
    check_emission(program, parsed(program))


def test_fx_graphs_and_results_of_transform_are_the_same_from_their_text() -> None:
    for model, args in ((Strided().eval(), (IMAGES,)), (Literals(), (X, X))):
        check_emission(program := transform(model, args).program, parsed(program))
    program = lower(capture(torch.fx.symbolic_trace(Literals(), {"y": None}), None))
    check_emission(program, parsed(program))


def test_explicit_empty_containers_stay_defaults() -> None:
    program = lower(capture(Literals(), (X,)))
    module = emit(parsed(program)).module
    shown = "(x, y=None, dims=(), names=[], table={'a': (1, [True])}, *, size=((2, 3), 'same'), device="
    assert str(inspect.signature(module.forward)).startswith(shown)
    assert torch.equal(module(X), X)
    assert torch.equal(module(X, None, (), [], {"a": (1, [True])}, size=((2, 3), "same")), X)
    wrong: Any
    for wrong in ([], (1,)):
        with pytest.raises(InputError, match="`dims` is"):
            module(X, None, wrong)
    with pytest.raises(InputError, match="`table` is"):
        module(X, table={"a": (1, [1])})
    with pytest.raises(InputError, match="`names` is"):
        module(X, names=[0])


@pytest.mark.parametrize(
    ("model", "args", "change", "message"),
    [
        (Literals(), (X,), lambda p: setattr(p.convention, "parameters", p.convention.parameters[:1]), "signature"),
        (Literals(), (X,), lambda p: setattr(p.convention, "parameters", ()), "signature"),
        (Locked(), (ROWS,), lambda p: setattr(p, "mode_locked", ""), "lock on the mode"),
        (Locked(), (ROWS,), lambda p: p.module_modes.update({"rnn": False}), "tree"),
        (Writes(), (X, X.clone()), lambda p: setattr(p.convention, "mutations", ()), "code"),
    ],
    ids=["defaults", "names", "lock", "mode", "writes"],
)
def test_what_is_lost_is_found(
    model: nn.Module, args: tuple[Any, ...], change: Callable[[Program], object], message: str
) -> None:
    program = lower(capture(model, args))
    other = parsed(program)
    change(other)
    with pytest.raises(Finding, match=message):
        check_emission(program, other)


class Corner(NamedTuple):
    x: Any
    y: Any


class MakesPair(nn.Module):
    def __init__(self, pair: Any) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, corner: Any) -> Any:
        return self.pair(corner.x + 1, corner.y)


def test_a_named_tuple_that_is_imported_is_read_back() -> None:
    program = lower(capture(MakesPair(Corner), (Corner(X, X),)))
    other = parsed(program)
    assert other.convention.out_spec == program.convention.out_spec
    check_emission(program, other)


def test_structures_that_nothing_can_import_are_refused_where_the_text_is_read() -> None:
    class Local(NamedTuple):
        x: Any
        y: Any

    text = print_program(lower(capture(MakesPair(Local), (Local(X, X),))))
    with pytest.raises(ParseError, match="a class that cannot be written as text") as info:
        parse_program(text)
    assert info.value.remedy
    assert info.value.line


@pytest.mark.parametrize("keys", [[(1, 2)], [torch.float32], [None, 1.5]])
def test_keys_that_are_no_texts_are_read_back(keys: list[Any]) -> None:
    class Model(nn.Module):
        def forward(self, x: Any) -> Any:
            return dict.fromkeys(keys, x + 1)

    program = lower(capture(Model(), (X,)))
    assert parse_program(print_program(program)).convention.out_spec == program.convention.out_spec


def test_of_an_unknown_object_nothing_is_emitted() -> None:
    program = lower(capture(Writes(), (X, torch.zeros(2, 3), "add")))
    program.convention.inputs = (*program.convention.inputs[:2], InputLeaf("mode", None, UnknownObject("user.Mode")))
    verify(program)
    with pytest.raises(CodegenError, match=r"`mode` is an object of class user\.Mode"):
        emit(program)
    program = lower(capture(Writes(), (X, torch.zeros(2, 3), "add")))
    outputs = program.convention.outputs
    program.convention.outputs = (*outputs[:2], OutputLeaf(None, UnknownObject("user.Mode")))
    with pytest.raises(CodegenError, match=r"a result is an object of class user\.Mode"):
        emit(program)


def test_a_module_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = parse_program("""
        program "net" {
          graph(%input : f32[3], %input_1 : f32[3]) {
            %relu = aten.relu(%input)
            %sub = aten.sub.Tensor(%input_1, %relu)
            return %sub
          }
        }
    """)
    inputs = torch.ones(3), torch.zeros(3)
    check_emitted_run(program, inputs)
    # as fx does it by itself: the second parameter is lost
    monkeypatch.setattr(
        "compiler.codegen.convention.add_placeholder", lambda graph, name, others, default: graph.placeholder(name)
    )
    with pytest.raises(Finding, match="result 0 of the module is not that of the program"):
        check_emitted_run(program, inputs)
