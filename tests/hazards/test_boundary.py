"""Hazards of the module around the graph: arguments, modes, state, surroundings, randomness, checkpoint."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import itertools
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.boundary.surroundings import holds_trace
from graphwright import CaptureError, InputError, TransformResult, ValidationError, transform

X = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
FLAT = X[:, :, 0, 0].contiguous()


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def run(module: nn.Module, *args: Any, seed: int = 3, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def hold(model: nn.Module, *args: Any, calls: int = 2, kwargs: dict[str, Any] | None = None) -> TransformResult:
    """Transform a model; hold calls, modes (where they may be switched) and buffers of the result to the original."""
    named = kwargs or {}
    result = transform(model, args, named or None)
    original, emitted = copy.deepcopy(model), copy.deepcopy(result.model)
    for switch in (None, "train", "eval", "train"):
        if switch is not None:
            try:
                getattr(emitted, switch)()
            except InputError:
                continue
            getattr(original, switch)()
        for _ in range(calls):
            same(run(emitted, *args, **named), run(original, *args, **named))
        ours = dict(emitted.named_buffers(remove_duplicate=False))
        for key, names in result.parameter_map.items():
            if key in ours and len(names) == 1:
                same(ours[key], original.get_buffer(names[0]))
    return result


def follows(result: TransformResult) -> bool:
    return not result.program.mode_locked


# ---- layers that are not what their class says ----


class MCDropout(nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p, training=True)


class FrozenNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class BatchStatistics(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class OtherMomentum(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.7, self.eps
        )


class Doubled(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Parent(nn.Module):
    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.inner, x + 1)


def _called(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m(x)


LAYERS = {
    "always dropout": lambda: MCDropout(0.5),
    "frozen": lambda: FrozenNorm(4),
    "batch statistics": lambda: BatchStatistics(4),
    "other momentum": lambda: OtherMomentum(4),
    "super": lambda: Doubled(4),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_code_and_not_its_class(name: str, mode: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), LAYERS[name](), nn.ReLU()).train(mode)
    assert follows(hold(model, X))


def test_a_forward_of_the_instance() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
    model[1].forward = lambda x: F.dropout(x, 0.5, True)  # type: ignore[method-assign]
    assert follows(hold(model.eval(), X))


def _without_gradients(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return m(x)


DIRECT = {
    "forward": lambda m, x: m.forward(x),
    "of the class": lambda m, x: type(m).forward(m, x),
    "functional_call": lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)),
    "no_grad": _without_gradients,
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("inner", [lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4, momentum=None), nn.Dropout])
@pytest.mark.parametrize("way", DIRECT)
def test_layers_called_otherwise(way: str, inner: Callable[[], nn.Module], mode: bool) -> None:
    assert follows(hold(Parent(inner(), DIRECT[way]).train(mode), X))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_as_the_root(momentum: float | None, mode: bool) -> None:
    assert follows(hold(nn.BatchNorm2d(4, momentum=momentum).train(mode), X))


# ---- modes ----


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.bn(self.conv(x)).relu())


class NormsStay(Backbone):
    def train(self, mode: bool = True) -> NormsStay:
        super().train(mode)
        self.bn.eval()
        return self


class DropoutStays(Backbone):
    def train(self, mode: bool = True) -> DropoutStays:
        super().train(mode)
        self.drop.train()
        return self


class EvalInForward(Backbone):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.bn.eval()
        return super().forward(x)


@pytest.mark.parametrize("switched", [None, "train", "eval"])
@pytest.mark.parametrize("cls", [Backbone, NormsStay, DropoutStays])
@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential])
def test_train_and_eval_of_the_user(cls: type[nn.Module], switched: str | None, wrap: Any) -> None:
    model = wrap(cls())
    if switched is not None:
        getattr(model, switched)()
    assert follows(hold(model, X))


def test_a_norm_that_forward_puts_into_eval() -> None:
    hold(EvalInForward(), X)
    hold(EvalInForward().eval(), X)


def test_train_that_does_more_is_no_switch() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.low = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
            self.merged = False

        def train(self, mode: bool = True) -> Merging:
            super().train(mode)
            if self.merged == mode:
                self.fc.weight.data += self.low.data if not mode else -self.low.data
                self.merged = not mode
            return self

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if self.merged else self.fc(x) + x @ self.low.t()

    model = Merging()
    before = model.fc.weight.detach().clone()
    result = transform(model, (FLAT,))
    assert torch.equal(model.fc.weight, before)
    same(result.model(FLAT), model(FLAT))
    with pytest.raises(InputError, match="train\\(\\) or eval\\(\\) of the model"):
        result.model.eval()


# ---- state ----


class Counting(nn.Module):
    def __init__(self, step: Callable[[Any], None]) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros(()))
        self.update = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.update(self)
        return x * self.step


def _assign(m: Any) -> None:
    m.step = m.step + 1


def _setattr(m: Any) -> None:
    setattr(m, "step", m.step * 2 + 1)  # noqa: B010


def _entry(m: Any) -> None:
    m._buffers["step"] = m.step + 1


@pytest.mark.parametrize("step", [_assign, _setattr, _entry])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_buffers_that_are_assigned(step: Callable[[Any], None], depth: int) -> None:
    model: nn.Module = Counting(step)
    for _ in range(depth):
        model = nn.Sequential(nn.Linear(4, 4), model)
    hold(model, FLAT)


def test_a_buffer_that_the_parent_assigns() -> None:
    def call(inner: Any, x: torch.Tensor) -> torch.Tensor:
        inner.step = inner.step + x.mean().detach()
        return inner(x)

    hold(Parent(Counting(_assign), call), FLAT)


def test_a_buffer_of_another_shape_is_refused() -> None:
    def grow(m: Any) -> None:
        m.step = torch.cat([m.step.reshape(-1), m.step.reshape(-1)])

    with pytest.raises(CaptureError):
        transform(nn.Sequential(Counting(grow)), (FLAT[:1, :1],))


COUNT = {"n": 0}
ARRAY = np.zeros(3)
NUMBER = 0


class Slots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Hidden(nn.Module):
    total = 0

    def __init__(self, state: Any, act: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.state, self.act = state, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self, x)


def _array(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.state += 1
    return x * float(m.state[0])


def _slots(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.state.n += 1
    return x * m.state.n


def _global_dict(m: Any, x: torch.Tensor) -> torch.Tensor:
    COUNT["n"] += 1
    return x * COUNT["n"]


def _global_array(m: Any, x: torch.Tensor) -> torch.Tensor:
    ARRAY[0] += 1
    return x * float(ARRAY[0])


def _global_number(m: Any, x: torch.Tensor) -> torch.Tensor:
    global NUMBER  # noqa: PLW0603 - that is the hazard
    NUMBER += 1
    return x * NUMBER


def _class_attribute(m: Any, x: torch.Tensor) -> torch.Tensor:
    type(m).total += 1
    return x * type(m).total


def _closure() -> Callable[[Any, torch.Tensor], torch.Tensor]:
    n = 0

    def act(m: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal n
        n += 1
        return x * n

    return act


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "itertools.count": lambda: Hidden(itertools.count(1), lambda m, x: x * next(m.state)),
    "array": lambda: Hidden(np.zeros(2), _array),
    "RandomState": lambda: Hidden(np.random.RandomState(0), lambda m, x: x * m.state.rand()),
    "Generator": lambda: Hidden(np.random.default_rng(0), lambda m, x: x * m.state.random()),
    "random.Random": lambda: Hidden(random.Random(0), lambda m, x: x * m.state.random()),
    "slots": lambda: Hidden(Slots(), _slots),
    "global dict": lambda: Hidden(None, _global_dict),
    "global array": lambda: Hidden(None, _global_array),
    "global number": lambda: Hidden(None, _global_number),
    "class attribute": lambda: Hidden(None, _class_attribute),
    "closure": lambda: Hidden(None, _closure()),
    "deque": lambda: Hidden(collections.deque([1.0, 2.0]), lambda m, x: x * (m.state.rotate() or m.state[0])),
    "iterator": lambda: Hidden(iter([1, 2, 3, 4, 5, 6, 7, 8, 9]), lambda m, x: x * next(m.state)),
    "random": lambda: Hidden(None, lambda m, x: x * random.random()),
    "numpy.random": lambda: Hidden(None, lambda m, x: x * float(np.random.rand())),
    "manual_seed": lambda: Hidden(None, lambda m, x: (torch.manual_seed(0), x * torch.rand(()))[1]),
    "generator": lambda: Hidden(None, lambda m, x: x * torch.rand((), generator=torch.Generator().manual_seed(3))),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("depth", [0, 1])
def test_hidden_state_and_foreign_randomness(name: str, depth: int) -> None:
    COUNT["n"], ARRAY[:] = 5, 5
    model = HIDDEN[name]()
    if depth:
        model = nn.Sequential(nn.Linear(4, 4), model)
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state()
    with pytest.raises(CaptureError) as raised:
        transform(model, (FLAT,))
    assert raised.value.location is not None and raised.value.remedy, raised.value
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    assert COUNT["n"] == 5 and ARRAY[0] == 5


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
            assert "test_boundary.py" in str(raised.value)
    # the remedy: an ordinary call, on inputs as in the example
    same(copy.deepcopy(result.model)(X), model(X))


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


# ---- exported programs ----


class Reads(nn.Module):
    def __init__(self, act: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self, self.fc(x))


def _scaled_in_training(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if m.training else x


class OnlyInTraining(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand_like(x) if self.training else x


EXPORTED: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "self.training": (lambda: Reads(lambda m, x: x * 2 if m.training else x), FLAT),
    "a function": (lambda: Reads(_scaled_in_training), FLAT),
    "a module without a trace": (lambda: nn.Sequential(nn.Linear(4, 4), OnlyInTraining(), nn.ReLU()), FLAT),
    "F.dropout": (lambda: Reads(lambda m, x: F.dropout(x, 0.5, m.training)), FLAT),
    "always": (lambda: MCDropout(0.5), FLAT),
    "LSTM": (lambda: nn.LSTM(6, 3, 2, dropout=0.5), X[0]),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5), X[0]),
    "RReLU": (nn.RReLU, FLAT),
    "frozen norm": (lambda: nn.Sequential(FrozenNorm(4)), X),
    "other momentum": (lambda: nn.Sequential(OtherMomentum(4)), X),
    "train() of its own": (NormsStay, X),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_programs_switch_only_where_it_is_known_what_follows(name: str, mode: bool) -> None:
    make, x = EXPORTED[name]
    model = make().train(mode)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assigned during export")  # an LSTM's own list of its weights
        exported = torch.export.export(model, (x,))
    result = transform(exported)
    assert result.model.training in (mode, False)
    same(run(result.model, x), run(exported.module(), x))
    with pytest.raises(InputError, match="cannot be put into"):
        result.model.train(not result.model.training)


class UnderNoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.bn(x)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        lambda: nn.BatchNorm2d(4),
        UnderNoGrad,
    ],
)
def test_layers_of_exported_programs_follow(make: Callable[[], nn.Module], mode: bool) -> None:
    model = make().train(mode)
    result = transform(torch.export.export(model, (X,)))
    assert result.model.training is mode
    for switch in (mode, not mode, mode):
        model.train(switch)
        result.model.train(switch)
        same(run(result.model, X), run(model, X))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_decomposed_program_follows_no_mode() -> None:
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), (FLAT,))
    result = transform(exported.run_decompositions())
    same(result.model(FLAT), exported.module()(FLAT))
    with pytest.raises(InputError, match="decomposed"):
        result.model.train()
