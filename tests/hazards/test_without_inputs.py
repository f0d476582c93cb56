"""Hazards of modules that are traced without example inputs: what Python does while it is traced is done once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import GraphwrightError, transform
from ir.compare import programs_equal
from ir.text.parser import parse_program
from ir.text.printer import print_program


class Inner(nn.Module):
    b: torch.Tensor
    hidden: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(3, 3, 1)
        self.w = nn.Parameter(torch.randn(3))
        self.register_buffer("b", torch.ones(3))
        self.register_buffer("hidden", torch.ones(3) * 2, persistent=False)
        self.register_buffer("count", torch.tensor(0.0))
        self.register_buffer("unused", torch.ones(2))
        self.unused_too = nn.Linear(2, 2)
        self.plain = torch.zeros(3)
        self.calls = 0


class Outer(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.inner = Inner()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.inner, x)


def of_buffers(m: Inner, x: torch.Tensor) -> Any:
    return x * (m.b * m.hidden), (m.b + 1).sum(), m.w * 2 + x, m.hidden * 1


def counts(m: Inner, x: torch.Tensor) -> Any:
    m.count.add_(1)
    m.b.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x * m.count + m.b


def makes(m: Inner, x: torch.Tensor) -> Any:
    z, ones = torch.zeros(3), torch.ones(3)
    ones[1] = 4
    return x + z, z, ones, z, torch.zeros(3), x * torch.tensor([1.0, 2.0, 3.0]), m.plain + x


def halves(m: Inner, x: torch.Tensor) -> Any:
    z = torch.arange(6.0)
    return x * z[:3] + z[3:]


@pytest.mark.parametrize("function", [of_buffers, counts, makes, halves])
def test_what_is_computed_from_no_input_is_computed_in_each_call(function: Callable[..., Any]) -> None:
    model = Outer(function)
    attributes = set(model.__dict__)
    before = copy.deepcopy(model.state_dict())
    result = transform(model)
    assert set(model.__dict__) == attributes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(result.model.state_dict()) == list(before)
    expected = copy.deepcopy(model)
    for value in expected.state_dict().values():
        value.mul_(1.5) if value.is_floating_point() else value.add_(1)
    result.model.load_state_dict(result.parameter_map.convert(expected.state_dict()))
    for _ in range(3):
        x = torch.randn(2, 3)
        with torch.no_grad():
            for mine, theirs in zip(result.model(x), expected(x), strict=True):
                assert torch.equal(mine, theirs)
                mine.add_(1)
                theirs.add_(1)
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key])


def accumulates(m: Inner, x: torch.Tensor) -> Any:
    z = torch.zeros(3)
    z.add_(x[0])
    return z * 1


def assigns(m: Inner, x: torch.Tensor) -> Any:
    z = torch.zeros(3)
    z[0] = x.sum()
    return x + z


def writes_late(m: Inner, x: torch.Tensor) -> Any:
    z = torch.zeros(3)
    y = x + z
    z.add_(1)
    return y, x + z


def writes_a_view(m: Inner, x: torch.Tensor) -> Any:
    z = torch.zeros(3)
    v = z[1:]
    v += x[0, 1:]
    return z + x


def writes_an_attribute(m: Inner, x: torch.Tensor) -> Any:
    m.plain.add_(1)
    return x * m.plain


def changes_state(m: Inner, x: torch.Tensor) -> Any:
    m.calls += 1
    return x * m.calls


def assigns_a_buffer(m: Inner, x: torch.Tensor) -> Any:
    m.b = m.b * 0.9 + x.mean(0)
    return x * m.b


SEEN: list[Any] = []
COUNTS = {"calls": 0}


def remembers(m: Inner, x: torch.Tensor) -> Any:
    SEEN.append(x)
    return x * 2


def counts_outside(m: Inner, x: torch.Tensor) -> Any:
    COUNTS["calls"] += 1
    return x * COUNTS["calls"]


def draws_numpy(m: Inner, x: torch.Tensor) -> Any:
    return x * float(np.random.rand())


def draws(m: Inner, x: torch.Tensor) -> Any:
    return x + torch.rand(3)


def without_gradient(m: Inner, x: torch.Tensor) -> Any:
    with torch.no_grad():
        y = F.relu(x * m.w)
    return y + m.w


def inference(m: Inner, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        return x * m.w


def autocast(m: Inner, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.t()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 100


def own_backward(m: Inner, x: torch.Tensor) -> Any:
    return Doubled.apply(x * m.w)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (accumulates, "mutates a tensor that is not a buffer"),
        (assigns, "mutates a tensor that is not a buffer"),
        (writes_late, "mutates a tensor that is not a buffer"),
        (writes_a_view, "mutates a tensor that is not a buffer"),
        (writes_an_attribute, "mutates a tensor that is not a buffer"),
        (changes_state, r"changes Python state: `inner\.calls`"),
        (assigns_a_buffer, r"changes what buffers are: `inner\.b`"),
        (draws, "draws random numbers"),
        (draws_numpy, "draws random numbers"),
        (remembers, "keeps tensors of the call in"),
        (counts_outside, "changes Python state outside of it"),
        (without_gradient, "no_grad"),
        (inference, "no_grad"),
        (autocast, "autocast"),
        (own_backward, "the backward of Doubled"),
    ],
)
def test_what_one_trace_cannot_show_is_refused(function: Callable[..., Any], message: str) -> None:
    model = Outer(function)
    attributes = [(dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    plain, random, apply = model.inner.plain.clone(), torch.random.get_rng_state(), torch.autograd.Function.apply
    with pytest.raises(GraphwrightError, match=message):
        transform(model)
    for module, (before, buffers) in zip(model.modules(), attributes, strict=True):
        assert all(module.__dict__[key] is value for key, value in before.items())
        assert set(module.__dict__) == set(before)
        assert all(module._buffers[key] is value for key, value in buffers.items())
    assert torch.equal(model.inner.plain, plain)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.autograd.Function.apply == apply
    assert SEEN == [] and COUNTS == {"calls": 0}


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return Doubled.apply(x)


def test_functions_with_a_backward_of_their_own_are_refused_with_inputs_too() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Doubling())
    x = torch.randn(2, 3)
    with pytest.raises(GraphwrightError, match=r"the backward of Doubled(.|\n)*leaf_modules="):
        transform(model, x)
    emitted = transform(model, x, leaf_modules=(Doubling,)).model
    gradients = []
    for module in (model, emitted):
        module.zero_grad()
        module(x).sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("layer", [nn.LazyLinear(3), nn.LazyBatchNorm1d(affine=False)])
def test_lazy_modules_are_refused_until_they_are_initialized(layer: nn.Module) -> None:
    model, x = nn.Sequential(layer), torch.randn(4, 3)
    for args in ((x,), None):
        with pytest.raises(GraphwrightError, match=r"`0\.(weight|running_mean)` is not initialized yet"):
            transform(model, args)
    model(x)
    assert torch.equal(transform(model.eval(), x).model(x), model(x))


# ---- arguments that are no tensors ----

X = torch.randn(2, 3, 4, 8)


def attends(x: Any, mask: Any = None) -> Any:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def attends_or_not(x: Any, mask: Any = None) -> Any:
    return F.scaled_dot_product_attention(x.relu() if mask is None else x, x, x, attn_mask=mask)


def asks_only(x: Any, mask: Any = None) -> Any:
    return x if mask is None else x.relu()


def asks_for_both(x: Any, mask: Any = None, bias: Any = None) -> Any:
    y = x.relu() if mask is None and bias is None else x
    return F.scaled_dot_product_attention(y, x, x, attn_mask=mask) + F.linear(x, x[0, 0], bias).sum()


def subtracts(pair: Any) -> Any:
    return pair[0] - pair[1]


def looks_up(batch: Any) -> Any:
    return batch["a"] - batch["b"]


def concatenates(pieces: Any) -> Any:
    return torch.cat(pieces, 1)


def nested(pair: Any) -> Any:
    return pair[0][1] - pair[1:][0]


def scales(x: Any, unused: Any = None) -> Any:
    return x * 2


def writes_an_item(pair: Any) -> Any:
    return pair[0].add_(1)


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (attends, [(X,), (X, None), (X, torch.zeros(4, 4))]),
        (subtracts, [((X, X + 1),), ([X, X + 1],), (X,)]),
        (looks_up, [({"b": X, "a": X + 1},)]),
        (concatenates, [((X, X),), ([X, X + 1],)]),
        (nested, [((X, X),), (((X, X + 1), X),), ([[X, X + 1], X],)]),
        (scales, [(X,), (X, None), (X, 3), (X, X)]),
    ],
)
def test_a_graph_takes_what_its_code_takes(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> None:
    graph = torch.fx.symbolic_trace(function)
    result = transform(graph)
    for emitted in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        for args in calls:
            assert torch.equal(emitted(*args), graph(*args))
    text = print_program(result.program)
    assert programs_equal(parse_program(text), result.program) is None


@pytest.mark.parametrize(
    ("function", "args"), [(writes_an_item, ([X, X],)), (subtracts, ({0: X, 1: X},)), (attends, (X, (X, X)))]
)
def test_a_graph_refuses_what_its_code_may_take_otherwise(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    emitted = transform(torch.fx.symbolic_trace(function)).model
    with pytest.raises(GraphwrightError, match="but the program was compiled for"):
        emitted(*args)


class Traced(nn.Module):
    """Calls a function of one, two or three arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function


class OfOne(Traced):
    def forward(self, a: Any) -> Any:
        return self.function(a)


class OfTwo(Traced):
    def forward(self, a: Any, b: Any = None) -> Any:
        return self.function(a, b)


class OfThree(Traced):
    def forward(self, a: Any, b: Any = None, c: Any = None) -> Any:
        return self.function(a, b, c)


@pytest.mark.parametrize(
    ("model", "calls", "equal"),
    [
        (OfTwo(attends), [(X,), (X, None), (X, torch.zeros(4, 4))], 3),
        (OfTwo(attends_or_not), [(X, torch.zeros(4, 4)), (X,), (X, None)], 1),
        (OfTwo(asks_only), [(X, X), (X,), (X, None)], 1),
        (OfThree(asks_for_both), [(X, X[0, 0, :, :4], X[0, 0, 0, :4]), (X,), (X, None, X[0, 0, 0, :4])], 1),
        (OfOne(looks_up), [({"b": X, "a": X + 1},)], 1),
        (OfOne(subtracts), [(X,), ((X, X + 1),)], 1),
        (OfTwo(scales), [(X,), (X, None)], 2),
    ],
)
def test_a_trace_takes_none_where_the_code_did_not_ask_for_it(
    model: nn.Module, calls: list[tuple[Any, ...]], equal: int
) -> None:
    """A branch on `mask is None` is decided when the module is traced, without a word."""
    emitted = transform(model).model
    for number, args in enumerate(calls):
        if number < equal:
            assert torch.equal(emitted(*args), model(*args))
        else:
            with pytest.raises(GraphwrightError, match="but the program was compiled for"):
                emitted(*args)


class OfNumbers(nn.Module):
    def forward(self, x: torch.Tensor, n: int = 4, s: float = 0.5, flag: bool = False) -> Any:
        return x * n, x * s, x * flag


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("given", [3, 2.5, True, "abc", None, torch.tensor(3)], ids=str)
def test_a_number_is_one_of_its_kind(number: int, given: Any) -> None:
    model, result = OfNumbers(), transform(OfNumbers()).model
    args: list[Any] = [torch.ones(3), 3, 2.5, True]
    expected_type = type(args[number + 1])
    args[number + 1] = given
    if type(given) is expected_type:
        assert all(map(torch.equal, result(*args), model(*args)))
    else:
        name = "nsf"[number] if number < 2 else "flag"
        with pytest.raises(GraphwrightError, match=f"input `{name}` is a {type(given).__name__}, but the program"):
            result(*args)
