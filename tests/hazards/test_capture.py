"""Hazards of capture: what a traced graph would lose is kept, or refused by name; the model stays as it was."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from graphwright import GraphwrightError, transform
from tests.hazards.compare import assert_same


class Lambda(nn.Module):
    """A linear layer, and whatever is done with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 4)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def refused(model: nn.Module, *args: Any, message: str, **options: Any) -> str:
    with pytest.raises(GraphwrightError, match=message) as caught:
        transform(model, args, **options)
    return str(caught.value)


# ---- example inputs that share memory


def same() -> tuple[torch.Tensor, ...]:
    x = torch.randn(3, 3)
    return x, x


def neighbours() -> tuple[torch.Tensor, ...]:
    x = torch.randn(6, 3)
    return x[:3], x[3:]


def overlapping() -> tuple[torch.Tensor, ...]:
    x = torch.randn(4, 3)
    return x[:3], x[1:]


def transposed() -> tuple[torch.Tensor, ...]:
    x = torch.randn(3, 3)
    return x, x.t()


class Difference(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return a * 2 - b, b * 3


class WritesFirst(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return b * 2


@pytest.mark.parametrize("make", [same, neighbours, overlapping, transposed])
def test_inputs_of_one_memory_are_two_inputs(make: Callable[[], Any]) -> None:
    model = Difference()
    result = transform(model, make())
    for args in (make(), (torch.randn(3, 3), torch.randn(3, 3))):
        for mine, theirs in zip(result.model(*args), model(*args), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("make", [same, overlapping, transposed])
def test_a_write_to_one_of_two_inputs_of_one_memory_is_refused(make: Callable[[], Any]) -> None:
    refused(WritesFirst(), *make(), message="input `a` is mutated in forward, and shares its memory with `b`")


def test_a_write_to_an_input_beside_another_is_not_refused() -> None:
    model, (a, b) = WritesFirst(), neighbours()
    result = transform(model, (a, b))
    expected = b * 2
    assert torch.equal(result.model(a, b), expected)


# ---- Python state, hooks, parametrizations


class PlainTensor(nn.Module):
    """Writes to tensors that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = torch.zeros(4)
        self.more = [torch.ones(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x * self.count * self.more[0]


def test_a_tensor_that_is_no_buffer_is_written_by_calls_and_not_by_the_capture() -> None:
    model = PlainTensor()
    result = transform(model, (torch.ones(4),))
    assert torch.equal(model.count, torch.zeros(4))
    assert [float(result.model(torch.ones(4))[0]) for _ in range(3)] == [1, 2, 3]


class WritesParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data.clamp_(max=0.5)
        return x * self.weight


class ReplacesData(WritesParameter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data = self.weight.data * 2
        return x * self.weight


class FailsAfterAWrite(WritesParameter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data.clamp_(max=0.5)
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WritesParameter(), "parameter 'weight' is mutated"),
        (ReplacesData(), r"assigns to `\.data`"),
        (FailsAfterAWrite(), "data-dependent"),
    ],
)
def test_writes_to_parameters_are_refused_and_undone(model: Any, message: str) -> None:
    text = refused(model, torch.ones(4), message=message)
    assert "test_capture.py:" in text
    assert torch.equal(model.weight, torch.ones(4))
    assert model.weight._version <= 1


def test_data_is_read_as_a_constant_of_the_gradient() -> None:
    assert_same(Lambda(lambda m, x: m.layer(x.data) + x.data * x), torch.randn(3, 4))


def backward_hook(module: nn.Module, *gradients: Any) -> None:
    raise AssertionError("never called")


def test_backward_hooks_are_refused_by_name() -> None:
    model = Lambda(lambda m, x: m.layer(x))
    for register in (model.layer.register_full_backward_hook, model.layer.register_full_backward_pre_hook):
        handle = register(backward_hook)
        refused(model, torch.randn(3, 4), message=r"`layer` \(Linear\) has a backward hook \(backward_hook\)")
        transform(model, (torch.randn(3, 4),), leaf_modules=("layer",))
        handle.remove()
    transform(model, (torch.randn(3, 4),))


def hook_of_a_tensor(model: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = model.layer(x)
    y.register_hook(lambda g: g * 2)
    return y


def test_hooks_of_tensors_are_refused() -> None:
    refused(Lambda(hook_of_a_tensor), torch.randn(3, 4), message="registers a backward hook on a tensor")


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.layer.register_forward_hook(lambda module, args, out: out * 2),
        lambda m: m.layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
        lambda m: m.register_forward_hook(lambda module, args, out: (out, args[0])),
        lambda m: m.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 3,), kwargs), with_kwargs=True),
    ],
)
def test_forward_hooks_are_part_of_the_graph(register: Callable[[Any], Any]) -> None:
    model = Lambda(lambda m, x: F.relu(m.layer(x)))
    register(model)
    assert_same(model, torch.randn(3, 4))


@pytest.mark.parametrize("make", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrizations(make: Callable[[nn.Module], Any]) -> None:
    model = Lambda(lambda m, x: F.relu(m.layer(x)))
    make(model.layer)
    assert_same(model, torch.randn(3, 4))


@pytest.mark.parametrize("training", [False, True])
def test_the_spectral_norm_iterates_in_training_only(training: bool) -> None:
    model = Lambda(lambda m, x: F.relu(m.layer(x)))
    parametrizations.spectral_norm(model.layer)
    result = assert_same(model.train(training), torch.randn(3, 4))["export"]
    with pytest.raises(GraphwrightError, match=r"layer\.parametrizations\.weight\.0"):
        result.model.train(not training)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("hook", [lambda m: prune.l1_unstructured(m, "weight", 0.5), nn.utils.weight_norm])
def test_the_older_weight_hooks(hook: Callable[[nn.Module], object]) -> None:
    model = Lambda(lambda m, x: m.layer(x))
    hook(model.layer)
    other = Lambda(lambda m, x: m.layer(x))
    hook(other.layer)
    result = transform(model, (torch.randn(3, 4),))
    for module in (model, result.model):
        module(torch.ones(3, 4)).sum().backward()
    slopes = [[p.grad for p in module.parameters()] for module in (model, result.model)]
    torch.testing.assert_close(slopes[1], slopes[0])
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    x = torch.randn(3, 4)
    torch.testing.assert_close(result.model(x), other(x))


class CallsTwice(nn.Linear):
    def __call__(self, x: torch.Tensor) -> Any:
        return super().__call__(x) * 2


class Negative(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def test_overridden_calls_and_forward_methods() -> None:
    assert_same(nn.Sequential(CallsTwice(4, 4), Negative(), nn.Linear(4, 4)), torch.randn(3, 4))


# ---- modes of autograd


@torch.no_grad()
def without_gradient(x: torch.Tensor) -> torch.Tensor:
    return x * 3


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            y = F.relu(self.layer(x))
        with torch.set_grad_enabled(False):
            z = self.layer(y + x)
        return y, z, self.layer(x), without_gradient(x) + x, x * z.detach()


class Inference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @torch.inference_mode()
    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.inference_mode():
            y = F.relu(self.layer(x))
        return self.inner(x), y, self.layer(x)


@pytest.mark.parametrize("model", [Modes(), Inference()])
def test_regions_without_gradient(model: nn.Module) -> None:
    assert_same(model, torch.randn(3, 4))


# ---- dropouts that return their input in eval


class Channels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Dropout2d(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)
        self.d = nn.Dropout3d(0.5, inplace=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.a(x) + x, self.b(x), self.c(x) + self.b(x), self.d(x * 2)


@pytest.mark.parametrize("training", [False, True])
def test_a_tensor_is_not_its_dropout(training: bool) -> None:
    assert_same(Channels().train(training), torch.randn(4, 8, 2, 2), ways=("export", "fx"))


class DropPath(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0], 1)).bernoulli_(0.5)
        return x * mask.div_(0.5) + torch.empty(4).bernoulli_() + x.detach().normal_()


@pytest.mark.parametrize("training", [False, True])
def test_stochastic_depth(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), DropPath()).train(training)
    assert_same(model, torch.randn(8, 4))


# ---- arguments and results

Named = collections.namedtuple("Named", "a b")


class Cache(NamedTuple):
    key: torch.Tensor
    value: torch.Tensor | None = None


class Structures(nn.Module):
    def forward(self, tree: Any, named: Any, n: int = 2, *rest: Any, flag: bool = False, none: Any = None) -> Any:
        total = tree["a"] + tree["b"][0] * n + (rest[0] if flag else 0)
        ordered = collections.OrderedDict(z=total, y=named.a)
        return Named(total, [named.b, None, 3, "s", (1.5, True)]), Cache(total * 2), ordered, tree["a"], n, total


def test_nested_arguments_and_results() -> None:
    tree = {"a": torch.randn(3), "b": [torch.randn(3), (torch.randn(2),)]}
    named = Named(torch.randn(3), torch.randn(3))
    assert_same(Structures(), tree, named, 3, torch.randn(3), kwargs={"flag": True, "none": None})


@dataclass
class Record:
    x: torch.Tensor


class TakesRecord(nn.Module):
    def forward(self, record: Any) -> Any:
        return record.x * 2


class ReturnsRecord(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return Record(x * 2)


def test_unknown_classes_are_refused_by_name_with_the_remedy() -> None:
    text = refused(TakesRecord(), Record(torch.randn(2)), message=r"an argument of forward is of a class .*Record")
    assert "register_dataclass" in text
    text = refused(ReturnsRecord(), torch.randn(2), message=r"a result of forward is of a class .*Record")
    assert "register_dataclass" in text


def test_unused_absent_and_constant_arguments_and_results() -> None:
    def forward(m: Any, x: torch.Tensor, y: torch.Tensor, z: None = None) -> Any:
        return m.layer(x), z, x, 3, 2.5, True, None, "text", [], (), {}, x, x.shape[0]

    assert_same(Lambda(forward), torch.randn(3, 4), torch.randn(2), None)


def test_no_arguments_at_all() -> None:
    class Source(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.layer = nn.Parameter(torch.randn(4)), nn.Linear(4, 2)

        def forward(self) -> Any:
            return self.layer(self.start), torch.arange(3), self.start

    assert_same(Source())


class WritesItsArgument(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + 1


class AroundAWriter(nn.Module):
    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.leaf = WritesItsArgument()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.leaf, x)


def _twice(leaf: Any, x: torch.Tensor) -> torch.Tensor:
    y = x.relu()
    return leaf(y.relu()) + y


def _same_sums(leaf: Any, x: torch.Tensor) -> torch.Tensor:
    return leaf(x + 1) + (x + 1)


def _constant(leaf: Any, x: torch.Tensor) -> torch.Tensor:
    return leaf(torch.ones(3)) + x


@pytest.mark.parametrize("function", [lambda leaf, x: leaf(x.clone()) + x, _twice, _same_sums, _constant])
def test_what_an_opaque_module_writes_stays_its_own(function: Any) -> None:
    model, x = AroundAWriter(function), torch.randn(3)
    kept, expected = x.clone(), model(x.clone())
    emitted = transform(model, (x.clone(),), leaf_modules=["leaf"]).model
    for _ in range(2):
        assert torch.equal(emitted(x), expected)
        assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda leaf, x: leaf(x), "an input or a weight"),
        (lambda leaf, x: leaf(x.view(3)), "an input or a weight"),
        (lambda leaf, x: _shared(leaf, x * 2), "aten.add.Tensor reads one of them"),
        (lambda leaf, x: _shared(leaf, (x * 2).view(1, 3)), "aten.add.Tensor reads one of them"),
    ],
)
def test_an_opaque_module_that_writes_to_what_others_read_is_refused(function: Any, reason: str) -> None:
    text = refused(AroundAWriter(function), torch.randn(3), message=r"`leaf` writes to its arg", leaf_modules=["leaf"])
    assert reason in text
    assert "clone the argument" in text
    assert "WritesItsArgument" in text


def _shared(leaf: Any, y: torch.Tensor) -> torch.Tensor:
    return leaf(y) + y
