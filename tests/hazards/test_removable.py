"""Hazards of values that look removable: identities, copies, dead code with effects, random numbers, buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import GraphwrightError, transform
from tests.hazards.compare import assert_same
from tests.hazards.test_folding import Net, NetOfTwo

INF = float("inf")
SPECIAL = torch.tensor([[0.0, -0.0, float("nan"), INF, -INF, 1.0]])


def bits(values: Any) -> list[tuple[torch.dtype, list[Any]]]:
    """Return dtypes and values so that -0.0 and NaN are told apart."""
    return [
        (v.dtype, torch.stack([v, torch.signbit(v).to(v.dtype)]).nan_to_num(7.0, 8.0, 9.0).tolist()) for v in values
    ]


def identities(m: Any, x: torch.Tensor) -> Any:
    return (
        x + 0, x - 0, x * 1, x / 1.0, x * 0, x - x, 0 - x, 0 + x, x + (-0.0), x**1, x**0, x // 1, x.neg().neg(),
        x.abs(), x.to(x.dtype), x.float(), x.double(),
        x.contiguous(), x.clone(), x.view_as(x), x.expand(1, 6), x.reshape(1, 6),
        x[:], x[..., 0:], x.repeat(1, 1), x.squeeze(1), x.permute(0, 1), x.flatten(0, 0), torch.cat([x]),
        torch.cat([x, x[:, :0]], 1), x.split(6, 1)[0], x.unsqueeze(0).squeeze(0), x.sum(()), x.masked_fill(x > 2, 0),
        F.pad(x, (0, 0)), x.type_as(x), F.dropout(x, 0.0, True), x.nan_to_num(), F.relu(x), x.clamp(0),
        x.permute(1, 0).permute(1, 0), torch.relu(torch.relu(x)),
    )  # fmt: skip


def integers(m: Any, i: torch.Tensor) -> Any:
    b = i > 1
    return (
        i * 1.0, i + 0.0, i / 1, i * 1, i + 0, i // 1, i**1, i.long(), i.int(), i & i, b * 1, b + 0, b | b, b.bool(),
        i + True, i * 0, ~(~b), i.to(torch.uint8), torch.where(b, i, i), i.clone(), i.float(), i % 2,
    )  # fmt: skip


def test_identities_keep_dtypes_memory_and_the_sign_of_zero() -> None:
    assert_same(Net(identities), SPECIAL, ways=("export", "shapes"), gradients=False)
    model = Net(identities)
    for way in (transform(model, (SPECIAL,)).model, transform(torch.fx.symbolic_trace(model)).model):
        assert bits(way(SPECIAL)) == bits(model(SPECIAL))
    assert_same(Net(integers), torch.tensor([[0, 1, 2, 3]]), ways=("export", "shapes"))


def aliases(m: Any, x: torch.Tensor) -> Any:
    y = F.relu(x)
    return (
        x, x.clone(), x.view(4, 3), x.t(), x.t().contiguous(), x.t().reshape(-1), x[0], x.chunk(3)[1], x.unbind(0)[2],
        x.expand(2, 3, 4), x.diagonal(), x.detach(), y, y.clone(), y.view(4, 3), y, y.contiguous(), F.relu(x), x * 2,
        x * 2, x.as_strided((2, 2), (1, 1)), x.select(1, 0), x.unfold(0, 2, 1),
    )  # fmt: skip


def of_weights(m: Any, x: torch.Tensor) -> Any:
    w, b = m.l.weight, m.n.running_mean
    return w, b, w * 1, w.clone(), b.view(2, 2), b.clone(), w.detach(), w.view(2, 8), b + 0, w.t(), m.l(x), m.n.weight


def constants(m: Any, x: torch.Tensor) -> Any:
    z = torch.zeros(3)
    z[0] += 1
    return z, torch.zeros(3), torch.zeros(3), torch.ones(2) * 2, torch.arange(4), torch.zeros_like(x), torch.tensor([1])


@pytest.mark.parametrize("forward", [aliases, of_weights, constants])
def test_fresh_memory_stays_fresh_and_views_stay_views(forward: Any) -> None:
    assert_same(Net(forward, l=nn.Linear(4, 4), n=nn.BatchNorm1d(4)), torch.randn(3, 4))


def test_what_a_caller_writes_to_results_changes_nothing_but_them() -> None:
    model = Net(constants)
    result = transform(model, (torch.randn(2),)).model
    for values in (result(torch.randn(2)), result(torch.randn(2))):
        assert [v.tolist() for v in values[:4]] == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [2, 2]]
        for value in values:
            value.add_(5)


# ---- writes


def writes(m: Any, x: torch.Tensor) -> Any:
    a, b = F.relu(x), F.relu(x)
    a += 1
    y = x * 2
    y[:, 1:3] = 0
    y[0, 0] = 7.0
    y[x > 0] = -1
    y[..., -1] += x[..., 0]
    y[[0, 2]] = y[[2, 0]]
    y.view(-1)[::2] *= 2
    y.diagonal().fill_(9)
    y.unbind(0)[2].neg_()
    return a, b, y


def in_place_layers(m: Any, x: torch.Tensor) -> Any:
    y = m.l(x)
    z = F.relu(y, inplace=True)
    w = F.hardswish(z, inplace=True)
    v = m.l(w) * 1
    return y, z, w, F.elu(v, inplace=True), v


@pytest.mark.parametrize("forward", [writes, in_place_layers])
def test_writes_through_views(forward: Any) -> None:
    assert_same(Net(forward, l=nn.Linear(4, 4)), torch.randn(3, 4), gradients=False)


def writes_input(m: Any, x: torch.Tensor) -> Any:
    y = x * 2
    x.add_(1)
    x.view(-1)[2:5] = 0
    x.t()[0] += 1
    return y, x * 2, x


def swaps(m: Any, x: torch.Tensor, r: torch.Tensor) -> Any:
    z = x.clone()
    x.copy_(r)
    r.copy_(z)
    return x, r, z


def test_inputs_that_are_written_are_written_and_returned_themselves() -> None:
    assert_same(Net(writes_input), torch.randn(3, 4), gradients=False)
    assert_same(Net(lambda m, x: {"a": F.relu(x, inplace=True), "b": x}), torch.randn(3), gradients=False)
    assert_same(NetOfTwo(swaps), torch.randn(3), torch.randn(3), ways=("export", "fx"), gradients=False)


class State(nn.Module):
    count: torch.Tensor
    average: torch.Tensor
    cache: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("cache", torch.zeros(6, 4), persistent=False)
        self.register_buffer("fixed", torch.ones(4))

    def forward(self, x: torch.Tensor) -> Any:
        before = self.count
        folded = self.average * 2 + self.fixed * 3
        self.count += 1
        self.average.mul_(0.9).add_(x.mean(0).detach(), alpha=0.1)
        self.cache[:2] = x.detach()
        self.cache.narrow(0, 2, 2).copy_(x.detach() * 2)
        index = (self.count % 2) + torch.arange(2) + 3
        self.cache.index_copy_(0, index, x.detach())
        return x * self.count, before, self.average * 2, folded, x @ self.cache.t(), self.count


def test_buffers_that_are_written_are_no_constants() -> None:
    assert_same(State(), torch.randn(2, 4))


def test_a_buffer_that_a_view_shares_is_refused_by_name() -> None:
    class Shared(nn.Module):
        all: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("all", torch.ones(4, 4))
            self.register_buffer("first", self.all[0])

        def forward(self, x: torch.Tensor) -> Any:
            self.all[1] += 1
            return x @ self.all + self.first

    with pytest.raises(GraphwrightError, match=r"'all' is mutated .* shares its memory with first"):
        transform(Shared(), (torch.randn(2, 4),))


def test_dead_code_with_an_effect() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        m.n(x)
        torch.rand(3)
        m.d(x)
        return m.d(x * 2), m.n(x) + m.n(x)

    for training in (False, True):
        model = Net(forward, n=nn.BatchNorm1d(4), d=nn.Dropout(0.3)).train(training)
        assert_same(model, torch.randn(8, 4))


# ---- random numbers


def draws(m: Any, x: torch.Tensor) -> Any:
    return (
        torch.rand(3), torch.rand(3), torch.rand_like(x), torch.rand_like(x), torch.randint(0, 9, (4,)),
        torch.randperm(5), torch.bernoulli(torch.full((3,), 0.5)), torch.multinomial(torch.ones(5), 2), m.d(x), m.d(x),
        x + torch.randn_like(x), x.detach().clone().bernoulli_(0.5), F.gumbel_softmax(x, dim=1),
    )  # fmt: skip


def flags(m: Any, x: torch.Tensor) -> Any:
    return (
        F.dropout(x, 0.5), F.dropout(x, 0.5, True), F.dropout(x * 1, 0.5, False), F.dropout(x * 1, 0.5, m.training),
        F.dropout(x * 1, 0.5, training=not m.training), F.alpha_dropout(x * 1, 0.5, m.training),
        F.dropout(x, 0.5 if m.training else 0.25),
    )  # fmt: skip


def drop_helper(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    return F.dropout(x, 0.5, training=module.training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("forward", [draws, flags, lambda m, x: drop_helper(m.l(x), m.d)])
def test_two_random_calls_are_two_values(forward: Any, training: bool) -> None:
    model = Net(forward, d=nn.Dropout(0.3), l=nn.Linear(4, 4)).train(training)
    assert_same(model, torch.randn(8, 4))


@pytest.mark.parametrize("name", ["pad", "contiguous"])
def test_constants_that_are_results_are_made_for_each_call(name: str) -> None:
    fresh: Any = {"pad": lambda x: F.pad(x, ()), "contiguous": lambda x: x.t().contiguous()}[name]

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 1, fresh(torch.arange(6.0).reshape(2, 3))

    model = Net().eval()
    emitted = transform(model, (torch.randn(2),)).model
    x = torch.randn(2)
    emitted(x)[1].add_(1)
    torch.testing.assert_close(emitted(x)[1], model(x)[1], rtol=0, atol=0)


class CopiedStatistics(nn.Module):
    """Normalizes by copies of its statistics, so that training leaves them as they are."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.constant = constant
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        var = torch.ones(3) if self.constant else self.var.clone()
        y = F.batch_norm(x, self.mean.clone(), var, training=self.training)
        return F.batch_norm(F.relu(y), self.mean.clone(), self.var.clone(), training=self.training)


@pytest.mark.parametrize("constant", [False, True])
def test_statistics_that_are_copies_are_written_and_thrown_away(constant: bool) -> None:
    model, x = CopiedStatistics(constant).eval(), torch.randn(5, 3)
    emitted = transform(copy.deepcopy(model), (x,)).model
    for mode in (False, True, False):
        model.train(mode)
        emitted.train(mode)
        assert torch.equal(emitted(x), model(x))
    for name, buffer in emitted.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, float("mean" not in name))), name


def test_a_copy_taken_before_statistics_are_written_stays() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = self.bn.running_var.clone()
            return self.bn(x) + before

    model, x = Watched().eval(), torch.randn(5, 3)
    emitted = transform(copy.deepcopy(model), (x,)).model
    for mode in (False, True, True):
        model.train(mode)
        emitted.train(mode)
        torch.testing.assert_close(emitted(x), model(x), rtol=0, atol=0)
