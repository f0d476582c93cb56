"""Symbolic sizes: every size in the range gives the model's numbers, and a size that the model fixes is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from compiler.emitted.guard import checked_relations
from graphwright import CaptureError, InputError, transform
from graphwright.ir import parse_program, print_program
from ir.types import make_symbol
from tests.hazards.compare import assert_same, assert_same_at


class Model(nn.Module):
    """Computes a function of its inputs, with a layer beside it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.function = function

    def forward(self, x, y=None):
        return self.function(self.fc(x)) if y is None else self.function(self.fc(x), y)


def rows(*counts: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(counts))
    return tuple(torch.randn(count, 4, generator=generator) for count in counts)


def doubles(*counts: int) -> list[torch.Tensor]:
    return [tensor.double() for tensor in rows(*counts)]


def hold(function, example, others, shapes):
    """Compile for symbolic rows, and hold the result to the model at the sizes of `others`; return it."""
    torch.manual_seed(0)
    model = Model(function)
    names = ("x", "y")[: len(example)]
    given = {"x": {0: shapes[0]}, "y": None if len(shapes) == 1 else {0: shapes[1]}}
    result = assert_same(model, *rows(*example), dynamic_shapes={name: given[name] for name in names})["export"]
    for sizes in others:
        assert_same_at(model, result, *rows(*sizes))
    text = print_program(result.program)
    assert print_program(parse_program(text)) == text
    return result


N = Dim("n", min=1, max=64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(x.shape[0] * 2, 2),
        lambda x: x.view(x.size(0), -1).flatten(),
        lambda x: x[:1].expand(x.shape[0], 4) + x,
        lambda x: x + torch.arange(x.shape[0], dtype=x.dtype)[:, None],
        lambda x: torch.cat([x.new_zeros(x.shape[0], 1), x, x.new_ones(x.shape[0], 2)], 1),
        lambda x: x.sum(0) / x.shape[0],
        lambda x: x * x.shape[0] ** 0.5,
        lambda x: F.pad(x, (0, 0, 0, -x.shape[0] % 4)),
        lambda x: torch.cat([x, x, x[:1]]),
        lambda x: x @ x.t(),
        lambda x: x.repeat(2, 1).unflatten(0, (2, x.shape[0])),
        lambda x: x.new_full((x.shape[0] // 2 + 1, 3), 1.5),
        lambda x: F.interpolate(x[None, None], size=(x.shape[0] * 2, 4))[0, 0],
        lambda x: F.adaptive_avg_pool2d(x[None], x.shape),
    ],
    ids=[
        "reshape",
        "view",
        "expand",
        "arange",
        "new_zeros",
        "divisor",
        "root",
        "modulo",
        "twice_and_one",
        "square",
        "unflatten",
        "half",
        "interpolate",
        "identity_pool",
    ],
)
def test_a_size_that_is_read_and_used(function):
    hold(function, (3,), [(1,), (2,), (5,), (8,)], [N])


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda n: n, int),
        (lambda n: 2 * n + 1, int),
        (lambda n: n // 2, int),
        (lambda n: -n // 2, int),
        (lambda n: n % 3, int),
        (lambda n: n**2 - n, int),
        (lambda n: abs(n - 4), int),
        (lambda n: torch.sym_max(n, 4), int),
        (lambda n: math.ceil(n / 2), int),
        (lambda n: math.floor(n * 0.7), int),
        (lambda n: math.trunc(n / 3), int),
        (lambda n: round(n / 3), int),
        (lambda n: n / 2, float),
        (lambda n: 1 / n, float),
        (lambda n: n**0.5, float),
        (lambda n: n > 3, bool),
    ],
)
def test_a_size_that_is_returned(function, kind):
    result = hold(lambda x: (x.relu(), function(x.shape[0])), (6,), [(1,), (2,), (5,), (9,)], [N])
    for count in (2, 7):
        size = result.model(*doubles(count))[1]
        assert type(size) is kind and size == function(count)


def test_a_whole_shape_that_is_returned():
    result = hold(lambda x: {"shape": x.shape, "rows": [x, x.size(0)]}, (3,), [(1,), (5,)], [N])
    shape = result.model(*doubles(5))["shape"]
    assert type(shape) is torch.Size and shape == (5, 4)


def test_a_form_of_another_size():
    """x has n rows, and y has 2*n + 1."""
    n = Dim("n", min=2, max=16)
    result = hold(lambda x, y: torch.cat([x, x, x[:1]]) * y, (3, 7), [(2, 5), (5, 11)], [n, 2 * n + 1])
    with pytest.raises(InputError, match=r"`y` has shape \[6, 4\]"):
        result.model(*doubles(3, 6))


def test_an_even_size():
    n = Dim("n", min=2, max=16)
    hold(lambda x: x.reshape(x.shape[0] // 2, 2, 4).sum(1), (6,), [(4,), (10,)], [2 * n])
    hold(lambda x: x.chunk(2, 0)[1], (6,), [(4,), (10,)], [2 * n])


def test_two_sizes_are_concatenated():
    shapes = [N, Dim("m", min=1, max=64)]
    result = hold(lambda x, y: torch.cat([x, y]).cumsum(0), (3, 2), [(1, 1), (2, 5), (5, 1)], shapes)
    assert "f64[m + n, 4]" in str(result.program).replace("n + m", "m + n")
    hold(lambda x, y: (torch.cat([x, y]).relu(), x.shape[0] + y.shape[0]), (3, 2), [(1, 1), (5, 2)], shapes)


def test_equal_sizes():
    result = hold(lambda x, y: (x + y).relu(), (3, 3), [(1, 1), (5, 5)], [N, N])
    with pytest.raises(InputError, match=r"`y` has shape \[3, 4\].* where n=2"):
        result.model(*doubles(2, 3))
    with pytest.raises(InputError, match=r"`n` of the inputs is 65, and must be in \[1, 64\]"):
        result.model(*doubles(65, 65))


def test_equal_sizes_that_were_declared_as_different_are_refused():
    with pytest.raises(CaptureError, match="must always be equal") as caught:
        transform(Model(torch.add), rows(3, 3), dynamic_shapes={"x": {0: N}, "y": {0: Dim("m")}})
    assert "the same Dim" in caught.value.remedy


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        x = x * 2
        return x + self.bias  # FIXED


class Transposes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x.t())  # FIXED


class Branches(nn.Module):
    def forward(self, x):
        if x.shape[0] == 3:  # FIXED
            return x.relu()
        return x


class Counts(nn.Module):
    def forward(self, x):
        return torch.stack([x[i] * i for i in range(x.shape[0])])  # FIXED


def line_of(class_: type) -> int:
    lines = list(enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), start=1))
    start = next(number for number, text in lines if text.startswith(f"class {class_.__name__}("))
    return next(number for number, text in lines[start:] if text.rstrip().endswith("# FIXED"))


@pytest.mark.parametrize(
    ("class_", "code"),
    [
        (Adds, "return x + self.bias"),
        (Transposes, "return self.fc(x.t())"),
        (Branches, "if x.shape[0] == 3:"),
        (Counts, "torch.stack([x[i] * i for i in range(x.shape[0])])"),
    ],
)
def test_a_size_that_the_model_fixes_is_refused_with_the_operation_and_its_line(class_, code):
    model = nn.Sequential(nn.ReLU(), class_())
    with pytest.raises(CaptureError) as caught:
        transform(model, rows(3), dynamic_shapes={"input": {0: N}})
    error = caught.value
    assert code in error.message and "n as dynamic" in error.message and "(3)" in error.message
    assert "TORCH_LOGS" not in error.message and "mark_dynamic" not in error.message
    assert (error.location.module_path, error.location.file, error.location.line) == ("1", __file__, line_of(class_))
    assert "leave that dimension out" in error.remedy


@pytest.mark.parametrize("count", [1, 2])
def test_a_size_that_the_model_restricts_is_refused_with_the_restriction(count):
    def function(x):
        return x.split([count, x.shape[0] - count])[1]

    with pytest.raises(CaptureError, match=r"restricted by `return x\.split.*(shape\[0\]\) != 1|<= n)") as caught:
        transform(Model(function), rows(6), dynamic_shapes={"x": {0: Dim("n")}})
    assert "Dim(name, min=, max=)" in caught.value.remedy
    assert caught.value.location.file == __file__ and caught.value.location.line == line_after(function)
    hold(function, (6,), [(4,), (9,)], [Dim("n", min=4, max=9)])


def line_after(function: Callable[..., Any]) -> int:
    return function.__code__.co_firstlineno + 1


@pytest.mark.parametrize("dim", [Dim("n"), N])
def test_a_batch_of_one_in_the_example_is_refused_with_what_to_do(dim):
    """torch.export takes a size of one as fixed: the graph would broadcast where the model does not."""
    with pytest.raises(CaptureError, match=r"specialized it to be a constant \(1\)") as caught:
        transform(Model(torch.relu), rows(1), dynamic_shapes={"x": {0: dim}})
    assert "2 or more" in caught.value.remedy


def test_a_static_batch_of_one_beside_a_dynamic_size():
    hold(lambda x, y: x * y, (5, 1), [(1, 1), (2, 1)], [N])


def test_sizes_of_images():
    """Convolutions and pools compute sizes with floor divisions, of even and odd maps."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 2),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()
    height, width = Dim("height", min=16, max=40), Dim("width", min=16, max=40)
    shapes = {"input": {0: N, 2: height, 3: width}}
    result = assert_same(model, torch.randn(2, 3, 20, 24), dynamic_shapes=shapes)["export"]
    for count, h, w in ((1, 16, 16), (2, 17, 31), (3, 40, 18)):
        assert_same_at(model, result, torch.randn(count, 3, h, w))
    assert {match.pattern.__name__ for match in result.matches} >= {"ConvBNActPattern", "FlattenLinearToConv1x1Pattern"}


class Parity(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] % 2 == 0 else x * 3


class Product(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] * x.shape[0] > 10 else x * 3


class Halves(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2)
        return a.sum() + b


@pytest.mark.parametrize("form", ["module", "exported", "loaded"])
@pytest.mark.parametrize(("class_", "right", "wrong"), [(Parity, [2, 6], [3, 5]), (Product, [4, 9], [2, 3])])
def test_what_code_asks_of_an_open_size_is_asked_of_the_inputs(class_, right, wrong, form, tmp_path):
    """With `Dim.AUTO`, torch.export takes the way of the example, and its ranges do not say so."""
    model, shapes = class_(), {"x": {0: Dim.AUTO}}
    given = torch.randn(4, 4)
    if form == "module":
        result = transform(model, given, dynamic_shapes=shapes)
    else:
        exported = torch.export.export(model, (given,), dynamic_shapes=shapes)
        if form == "loaded":
            torch.export.save(exported, tmp_path / "model.pt2")
            exported = torch.export.load(tmp_path / "model.pt2")
        result = transform(exported)
    assert result.program.constraints
    text = print_program(result.program)
    assert "require " in text and print_program(parse_program(text)) == text
    for count in right:
        x = torch.randn(count, 4)
        assert torch.equal(result.model(x), model(x))
    for count in wrong:
        with pytest.raises(InputError, match=rf"sizes s0={count}, and the model was captured for those where"):
            result.model(torch.randn(count, 4))
    again = torch.export.export(result.model, (given,), dynamic_shapes={"x": {0: Dim.AUTO}}).module()
    with pytest.raises(AssertionError, match="Guard failed"):
        again(torch.randn(wrong[0], 4))


def test_what_only_fake_tensors_ask_of_an_open_size_is_not_asked():
    result = transform(Halves(), torch.randn(6, 4), dynamic_shapes={"x": {0: Dim.AUTO}})
    for count in (3, 4, 7):  # for 3, a half is contiguous, and for 6 not
        x = torch.randn(count, 4)
        assert torch.equal(result.model(x), Halves()(x))


class SplitsOpen(nn.Module):
    def forward(self, x):
        return torch.split(x, 2)[1]


def test_a_count_of_results_that_an_open_size_decides_is_refused_with_its_line():
    with pytest.raises(CaptureError, match=r"restricted by `return torch.split\(x, 2\)\[1\]`: Eq\(") as caught:
        transform(SplitsOpen(), torch.randn(4, 4), dynamic_shapes={"x": {0: Dim.AUTO}})
    assert caught.value.location.file == __file__


def test_a_relation_that_cannot_be_asked_of_the_inputs_is_refused():
    n, m = make_symbol("n"), make_symbol("m")
    (relation,) = checked_relations((n * m > 10,), {n: None, m: None})
    assert relation[1:] == (frozenset({"n", "m"}), "m*n > 10")
    with pytest.raises(CaptureError, match=r"m\*n > 10, which cannot be asked of its inputs"):
        checked_relations((n * m > 10,), {n: None})
