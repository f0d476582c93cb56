"""Hazards that somebody found who did not build the boundary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from compiler.capture.boundary.outcomes import difference
from compiler.capture.boundary.runs import Outcome
from graphwright import CaptureError, transform
from tests.hazards.holding import FLAT, X, hold, line_of, refused, run, same


class Swapped(nn.Module):
    a: torch.Tensor
    b: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.ones(4))
        self.register_buffer("b", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a, self.b = self.b, self.a
        return x + self.a


class Stateful(nn.Module):
    h: torch.Tensor
    c: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 3, batch_first=True)
        self.register_buffer("h", torch.zeros(1, 4, 3))
        self.register_buffer("c", torch.zeros(1, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (h, c) = self.lstm(x, (self.h, self.c))
        self.h, self.c = h.detach(), c.detach()
        return torch.as_tensor(y)


class InAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.weights = [self.fc.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + F.linear(x, self.weights[0])


class Inverted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, not self.training)


def test_buffers_that_change_places() -> None:
    hold(Swapped(), FLAT)
    hold(nn.Sequential(Swapped()), FLAT)


def test_a_recurrent_layer_that_keeps_its_state() -> None:
    hold(Stateful(), X[:, 0])


def test_a_parameter_that_a_list_holds_is_trained_whole() -> None:
    model = InAList()
    result = transform(model, (FLAT,))
    for module in (model, result.model):
        module(FLAT).sum().backward()
    key = next(key for key, names in result.parameter_map.items() if names == ("fc.weight",))
    same(result.model.get_parameter(key).grad, model.fc.weight.grad)


def test_the_mode_that_a_module_is_in_changes_nothing() -> None:
    for mode in (True, False):
        model = Inverted().train(mode)
        emitted = transform(model, (FLAT,)).model
        same(run(emitted.train(mode), FLAT), run(model, FLAT))


def test_a_list_that_holds_a_buffer_is_left_as_it_was() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.zeros(4))
            self.held = [self.a]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.held[0].add_(1)
            return x + self.a

    model = Writes()
    try:
        transform(model, (FLAT,))
    except CaptureError:
        pass
    else:
        raise AssertionError("a graph cannot express it")
    assert not model.get_buffer("a").any()


# ---- gradients ----


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.fc, self.reentrant = nn.Linear(4, 4), reentrant

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.fc, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_reentrant_checkpoint_is_refused_by_name(requires_grad: bool) -> None:
    x = FLAT.clone().requires_grad_(requires_grad)
    place = line_of(Checkpointed, "return checkpoint")
    model = nn.Sequential(nn.Linear(4, 4), Checkpointed(reentrant=True))
    refused(model, x, message="a reentrant torch.utils.checkpoint", place=f"at `1` (Checkpointed), {place}")
    # the remedies
    hold(nn.Sequential(nn.Linear(4, 4), Checkpointed(reentrant=False)), FLAT)
    kept = transform(model, (x,), leaf_modules=["1"]).model
    for module in (model, kept):
        module(x).sum().backward()
    same(kept.get_parameter("1.fc.weight").grad, model[1].fc.weight.grad)


def test_hooks_on_gradients_of_parameters_are_refused() -> None:
    for name in ("register_hook", "register_post_accumulate_grad_hook"):
        seen: list[Any] = []
        model = nn.Sequential(nn.Linear(4, 4))
        handle = getattr(model[0].weight, name)(seen.append)
        refused(model, FLAT, message="parameter '0.weight' has a hook on its gradient")
        handle.remove()  # the remedy
        result = transform(model, (FLAT,))
        (key,) = (key for key, names in result.parameter_map.items() if names == ("0.weight",))
        getattr(result.model.get_parameter(key), name)(seen.append)
        result.model(FLAT).sum().backward()
        assert len(seen) == 1


# ---- arguments ----


class Appends(nn.Module):
    def forward(self, x: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        kept.append(x * 2)
        return x + 1


class Replaces(nn.Module):
    def forward(self, x: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        kept[0] = kept[0] + x
        return x + kept[0]


class Enters(nn.Module):
    def forward(self, x: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        kept["new"] = x * 2
        return x + kept["old"]


class Pops(nn.Module):
    def forward(self, x: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        return x + kept.pop("old")


class Writes(nn.Module):
    def forward(self, x: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        kept[0].add_(x)
        return x + kept[0]


@pytest.mark.parametrize("model", [Appends(), Replaces(), Enters(), Pops()])
def test_lists_and_dicts_among_the_arguments_that_forward_changes_are_refused(model: nn.Module) -> None:
    given: Any = {"old": FLAT.clone()} if isinstance(model, (Enters, Pops)) else [FLAT.clone()]
    refused(model, FLAT, given, message="forward mutates a list or dict among its arguments", place=__file__)
    assert len(given) == 1
    same(given["old"] if isinstance(given, dict) else given[0], FLAT)


def test_a_tensor_in_a_list_among_the_arguments_may_be_written() -> None:
    emitted = transform(Writes(), (FLAT, [FLAT.clone()])).model
    ours, theirs = [FLAT.clone()], [FLAT.clone()]
    same(emitted(FLAT, ours), Writes()(FLAT, theirs))
    same(ours, theirs)


def test_keys_of_another_class_are_a_difference() -> None:
    class Word(str):
        __slots__ = ()

    for key, other in ((Word("k"), "k"), (True, 1), (1.0, 1), ((Word("k"), 1), ("k", 1))):
        found = difference(Outcome([{key: FLAT}]), Outcome([{other: FLAT}]))
        assert found is not None
        assert "of other classes" in found
        assert difference(Outcome([{key: FLAT}]), Outcome([{key: FLAT}])) is None


def test_no_message_has_an_address() -> None:
    a, b = ({"k": FLAT, object(): FLAT} for _ in range(2))
    found = difference(Outcome(a), Outcome(b))
    assert found is not None
    assert "another in each call" in found
    assert "0x" not in found
