"""Hazards of what surrounds a call: questions, the user's objects afterwards, threads, the check."""

from __future__ import annotations

import contextlib
import copy
import cProfile
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compiler.capture.boundary.runs import Twin
from compiler.capture.boundary.surroundings import holds_trace
from compiler.emitted.settings import SETTINGS
from graphwright import CaptureError, InputError, ValidationError, transform
from ir.program import SURROUNDINGS
from tests.hazards.holding import FLAT, X, hold, same

# ---- questions ----


class Asking(nn.Module):
    def __init__(self, ask: Callable[[torch.Tensor], bool], matters: bool) -> None:
        super().__init__()
        self.fc, self.ask, self.matters = nn.Linear(6, 6), ask, matters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        if self.ask(x):
            return y * 2 if self.matters else y
        return y


def _no_grad() -> Any:
    return torch.no_grad()


def _plain() -> Any:
    return contextlib.nullcontext()


def _autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


QUESTIONS: dict[
    str, tuple[Callable[[torch.Tensor], bool], Callable[[], Any], Callable[[torch.Tensor], torch.Tensor]]
] = {
    "is_grad_enabled": (lambda x: torch.is_grad_enabled(), _no_grad, lambda x: x),
    "not grad": (lambda x: not torch.is_grad_enabled(), _no_grad, lambda x: x),
    "is_autocast_enabled": (lambda x: torch.is_autocast_enabled("cpu"), _autocast, lambda x: x),
    "is_inference_mode_enabled": (
        lambda x: torch.is_inference_mode_enabled(),
        torch.inference_mode,
        lambda x: x,
    ),
    "requires_grad": (lambda x: x.requires_grad, _plain, lambda x: x.detach().requires_grad_()),
    "is_contiguous": (
        lambda x: x.is_contiguous(),
        _plain,
        lambda x: x.contiguous(memory_format=torch.channels_last),
    ),
    "stride": (lambda x: x.stride(-1) == 1, _plain, lambda x: x.contiguous(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("matters", [True, False])
@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_to_the_surroundings(name: str, matters: bool) -> None:
    ask, enter, change = QUESTIONS[name]
    model = Asking(ask, matters)
    result = transform(model, (X,))
    same(result.model(X), model(X))
    other = change(X)
    with enter():
        if not matters:
            torch.testing.assert_close(result.model(other), model(other), rtol=2e-2, atol=2e-2)
        else:
            with pytest.raises(InputError, match="it asks") as raised:
                result.model(other)
            assert __file__ in str(raised.value)
    # the remedy: an ordinary call, on inputs as in the example
    same(copy.deepcopy(result.model)(X), model(X))


class AsksInTheOtherMode(nn.Module):
    def __init__(self, captured: bool, matters: bool) -> None:
        super().__init__()
        self.fc, self.captured, self.matters = nn.Linear(6, 6), captured, matters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        if self.training != self.captured and torch.is_grad_enabled() and self.matters:
            return y * 2
        return y


@pytest.mark.parametrize("mode", [True, False])
def test_a_question_in_the_other_mode_only(mode: bool) -> None:
    model = nn.Sequential(AsksInTheOtherMode(mode, matters=True)).train(mode)
    result = transform(model, (X,))
    same(result.model(X), model(X))
    with pytest.raises(
        InputError, match="in the other mode it depends on its surroundings, which it asks about at `0`"
    ) as raised:
        result.model.train(not mode)
    assert __file__ in str(raised.value)
    model.train(not mode)  # the remedy
    same(transform(model, (X,)).model(X), model(X))
    hold(nn.Sequential(AsksInTheOtherMode(mode, matters=False)).train(mode), X)


def test_is_compiling_has_the_answer_of_export_where_both_ways_agree() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling() and x.sum() > 1e9:
                raise ValueError("too much")
            return x + 1

    result = transform(Branch(), (FLAT,))
    same(result.model(FLAT), FLAT + 1)

    class Differs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if torch.compiler.is_compiling() else x + 1

    with pytest.raises(ValidationError, match="output"):
        transform(Differs(), (FLAT,))


# ---- what autocast makes of dtypes ----


class Computes(nn.Module):
    def __init__(self, use: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.f, self.use = nn.Linear(4, 4), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self.f, self.f(x), x)


def _adds(f: nn.Module, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    q += x
    return q


def _adds_computed(f: nn.Module, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    q += f(x * 2)
    return q


AUTOCAST: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "float": lambda f, q, x: q.float().logsumexp(1),
    "to": lambda f, q, x: q.to(torch.float32).logsumexp(1),
    "dtype": lambda f, q, x: torch.cat([q, torch.zeros(4, 2, dtype=q.dtype)], 1),
    "new_ones": lambda f, q, x: torch.cat([q, q.new_ones(4, 2)], 1),
    "type_as": lambda f, q, x: x.type_as(q),
    "to a tensor": lambda f, q, x: x.to(q),
    "type": lambda f, q, x: x.type(q.type()),
    "finfo": lambda f, q, x: q.masked_fill(x > 0, torch.finfo(q.dtype).min),
    "in place": _adds,
}
AUTOCAST_FOLLOWED: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "double": lambda f, q, x: q.double(),
    "zeros_like": lambda f, q, x: torch.cat([q, torch.zeros_like(q)], 1),
    "dtype": lambda f, q, x: q if q.dtype != torch.float64 else q * 2,
    "to": lambda f, q, x: f(q.float()),
}
AUTOCAST_NOT_TRIED: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "input": lambda f, q, x: q + torch.zeros(4, dtype=x.dtype),
    "view": lambda f, q, x: q + x[:, :2].float().sum(),
    "device": lambda f, q, x: q.to("cpu"),
    "explicit": lambda f, q, x: torch.cat([q.sin(), q.new_ones(4, 2, dtype=torch.float32)], 1),
    "in place": _adds_computed,
    "library": lambda f, q, x: nn.functional.gelu(nn.functional.layer_norm(q, (4,))),
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_dtypes_of_what_is_computed_are_questions_about_autocast(name: str) -> None:
    model = Computes(AUTOCAST[name])
    result = transform(model, (FLAT,))
    same(result.model(FLAT), model(FLAT))
    with _autocast(), pytest.raises(InputError, match=r"outside of torch\.autocast: it asks") as raised:
        result.model(FLAT)
    assert __file__ in str(raised.value)
    same(copy.deepcopy(result.model)(FLAT), model(FLAT))  # the remedy


@pytest.mark.parametrize("name", AUTOCAST_FOLLOWED)
def test_what_follows_autocast_is_not_guarded(name: str) -> None:
    model = Computes(AUTOCAST_FOLLOWED[name])
    result = transform(model, (FLAT,))
    assert not result.program.surroundings
    with _autocast():
        same(result.model(FLAT), model(FLAT))
        assert result.model(FLAT).dtype == model(FLAT).dtype


@pytest.mark.parametrize("name", AUTOCAST_NOT_TRIED)
def test_autocast_is_tried_once_and_only_where_it_may_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    known = Twin.call

    def counted(self: Twin, args: Any, kwargs: Any, settings: Any = ()) -> Any:
        tried.extend(settings)
        return known(self, args, kwargs, settings)

    monkeypatch.setattr(Twin, "call", counted)
    transform(Computes(AUTOCAST_NOT_TRIED[name]), (FLAT,))
    assert not tried
    transform(Computes(lambda f, q, x: f(q.float()) + f(q.to(torch.float32)).type_as(q).float()), (FLAT,))
    assert tried == ["autocast", "autocast"]  # the original, and the result


def test_state_that_is_kept_under_autocast_only_is_no_fault_of_the_model() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)
            self.tables: dict[torch.dtype, int] = {torch.float32: 1}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.f(x)
            return y * self.tables.setdefault(y.dtype, 2)

    model = Keeps()
    result = transform(model, (FLAT,))
    same(result.model(FLAT), model(FLAT))
    assert list(model.tables) == [torch.float32]
    with _autocast(), pytest.raises(InputError, match=r"outside of torch\.autocast"):
        result.model(FLAT)


# ---- the user's objects afterwards ----


@functools.cache
def _table(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32)


TABLES: dict[int, torch.Tensor] = {}
SEEN: list[torch.Tensor] = []


def _cached(n: int) -> torch.Tensor:
    if n not in TABLES:
        TABLES[n] = torch.arange(n, dtype=torch.float32)
    return TABLES[n]


class Adds(nn.Module):
    def __init__(self, table: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(x.shape[-1])


@pytest.mark.parametrize("table", [_table, _cached])
def test_caches_outside_of_the_module_hold_real_tensors(table: Callable[[int], torch.Tensor]) -> None:
    _table.cache_clear()
    TABLES.clear()
    model = Adds(table)
    result = transform(model, (FLAT,))
    same(result.model(FLAT), model(FLAT))
    assert type(model(FLAT)) is torch.Tensor
    assert not holds_trace(TABLES) and type(_table(4)) is torch.Tensor


def test_a_list_that_forward_fills_is_refused_and_left_empty() -> None:
    class Keeps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            SEEN.append(x * 2)
            return x + 1

    with pytest.raises(CaptureError, match="SEEN"):
        transform(Keeps(), (FLAT,))
    assert not SEEN


def test_hooks_with_effects_are_refused_and_others_kept() -> None:
    seen: list[Any] = []
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    handle = model[0].register_forward_hook(lambda module, args, result: seen.append(result))
    with pytest.raises(CaptureError, match="a hook"):
        transform(model, (FLAT,))
    assert not seen
    handle.remove()  # the remedy
    model[0].register_forward_hook(lambda module, args, result: result * 2)
    result = transform(model, (FLAT,))
    same(result.model(FLAT), model(FLAT))


def test_a_hook_that_holds_its_model_is_one_of_the_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, result: result + model[1].weight.sum())
    result = hold(model, FLAT)
    result.model(FLAT).sum().backward()
    model(FLAT).sum().backward()
    (key,) = (key for key, names in result.parameter_map.items() if names == ("1.weight",))
    same(result.model.get_parameter(key).grad, model[1].weight.grad)


def test_parameters_and_buffers_of_the_user_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    before = {key: (id(t), t.clone(), t._version) for key, t in model.state_dict(keep_vars=True).items()}
    transform(model, (X,))
    for key, tensor in model.state_dict(keep_vars=True).items():
        identity, copied, version = before[key]
        assert id(tensor) == identity and tensor._version == version and torch.equal(tensor, copied)
    assert model.training


def test_eight_threads() -> None:
    models = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval() for _ in range(8)]
    expected = [model(X) for model in models]
    results: list[Any] = [None] * 8

    def work(i: int) -> None:
        results[i] = transform(models[i], (X,)).model(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, wanted in zip(results, expected, strict=True):
        same(found, wanted)


# ---- the check ----


def test_the_check_names_where_result_and_original_part() -> None:
    class Differs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x)
            y = y * (3 if torch.compiler.is_compiling() else 2)
            return y.relu()

    with pytest.raises(ValidationError, match=r"they part at aten\.mul") as raised:
        transform(Differs(), (FLAT,))
    assert raised.value.location is not None and raised.value.location.file == __file__
    assert transform(Differs(), (FLAT,), check=False).model is not None


def test_no_check_without_numbers_is_said() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(4, 4), torch.empty(2, 4)
    result = transform(model, (x,))
    assert any(remark.kind == "unchecked" for remark in result.remarks)
    assert not any(stage.name in ("observe", "check") for stage in result.stages)


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))])
def test_a_transform_takes_six_forward_passes(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    known = Twin._call

    def counted(self: Twin, *args: Any) -> Any:
        calls.append(self.module)
        return known(self, *args)

    monkeypatch.setattr(Twin, "_call", counted)
    stages = [stage.name for stage in transform(model, (FLAT,)).stages]
    assert len(calls) == 6
    assert stages[0] == "observe" and stages[-1] == "check"
    calls.clear()
    assert "check" not in [stage.name for stage in transform(model, (FLAT,), check=False).stages]
    assert len(calls) == 3


def test_a_profiler_of_the_user_goes_on() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        transform(nn.Linear(4, 4), (FLAT,))
    finally:
        profiler.disable()
    names = {str(entry.code) for entry in profiler.getstats()}
    assert any("lower" in name for name in names)
    events: list[str] = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    try:
        transform(nn.Linear(4, 4), (FLAT,))
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert events


def test_in_inference_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    with torch.inference_mode():
        x = torch.ones(2, 4)
        result = transform(model, (x,))
        same(result.model(x), model(x))
    result.model(torch.ones(2, 4)).sum().backward()


def test_surroundings_have_one_list_of_names() -> None:
    assert tuple(SETTINGS) == SURROUNDINGS
