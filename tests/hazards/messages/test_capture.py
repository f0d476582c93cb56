"""Messages about what a capture cannot express: the place of the user, and a remedy that works."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import InputError, transform
from tests.hazards.holding import FLAT, X, hold, line_of, refused, run, same

# ---- what torch.compile returned ----


@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("args", [(), (FLAT,)])
def test_a_compiled_module_is_refused_by_its_path(args: tuple[torch.Tensor, ...]) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled: Any = torch.compile(plain)
    error = refused(compiled, *args, message="the model was returned by torch.compile")
    assert "`model._orig_mod`" in str(error)
    same(transform(compiled._orig_mod, (FLAT,)).model(FLAT), plain(FLAT))
    model = nn.Sequential(nn.Sequential(nn.ReLU(), compiled))
    error = refused(model, *args, message=r"`0\.1` was returned by torch.compile")
    assert "`model.set_submodule('0.1', model.get_submodule('0.1')._orig_mod)`" in str(error)
    model.set_submodule("0.1", model.get_submodule("0.1")._orig_mod)
    hold(model, FLAT)


# ---- transformations of functions ----


class OfFunctions(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.fc, self.name = nn.Linear(4, 4), name

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).pow(3).sum()

    def forward(self, x: torch.Tensor) -> Any:
        func = torch.func
        if self.name == "grad":
            return func.grad(lambda y: (y**3).sum())(x)
        if self.name == "grad of weights":
            weights = dict(self.fc.named_parameters())
            return func.grad(lambda w: func.functional_call(self.fc, w, (x,)).pow(2).sum())(weights)["bias"] + x
        if self.name == "vjp":
            return func.vjp(self.fc, x)[1](x)[0]
        if self.name == "jacrev":
            return func.vmap(func.jacrev(self.fc))(x)
        if self.name == "vmap":
            return func.vmap(self.fc)(x)
        return func.grad_and_value(self.energy)(x)[0]


@pytest.mark.parametrize("name", ["grad", "grad of weights", "vjp", "jacrev", "vmap", "grad_and_value"])
def test_transformations_of_functions(name: str) -> None:
    functions = OfFunctions(name)
    message = "forward calls .*or another function transform"
    refused(functions, FLAT, message=message, place=__file__)
    model = nn.Sequential(nn.Linear(4, 4), functions)
    error = refused(model, FLAT, message=message, place="at `1` (OfFunctions)")
    assert "leaf_modules=['1']" in str(error)
    kept = transform(model, (FLAT,), leaf_modules=["1"]).model  # the remedy
    for _ in range(2):
        same(kept(FLAT + 1), model(FLAT + 1))


# ---- checkpoints whose keys a hook renames ----


class Renames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_state_dict_post_hook(Renames.rename)

    def rename(self, state: dict[str, Any], prefix: str, _: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}fc.")]:
            state[f"model.{key}"] = state.pop(key)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(self.fc(x))


def test_a_checkpoint_whose_keys_a_hook_renames() -> None:
    model, other = Renames(), Renames()
    result = transform(model, (FLAT,))
    with pytest.raises(InputError, match="a state_dict hook of the model may rename keys") as caught:
        result.parameter_map.convert(other.state_dict())
    assert "it has 'model.fc.weight', 'model.fc.bias', which" in str(caught.value)
    assert "{**dict(model.named_parameters()), **dict(model.named_buffers())}" in str(caught.value)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}  # the remedy
    result.model.load_state_dict(result.parameter_map.convert(state))
    same(result.model(FLAT), other(FLAT))


# ---- embeddings that scale their rows ----


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6) * 3)

    def forward(self, i: torch.Tensor) -> Any:
        return F.embedding(i, self.weight, max_norm=1.0)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag, Functional])
def test_an_embedding_that_scales_its_rows(kind: Any, mode: bool) -> None:
    embedding = Functional() if kind is Functional else kind(5, 6, max_norm=1.0)
    index = torch.tensor([[1, 2, 1], [0, 2, 2]])
    model = nn.Sequential(embedding, nn.ReLU()).train(mode)
    with torch.no_grad():
        embedding.weight.mul_(3)
    error = refused(model, index, message=r"parameter '0\.weight' is mutated in forward: `max_norm=`", place="at `0` (")
    assert "leaf_modules=['0']" in str(error)
    refused(embedding, index, message="parameter 'weight' is mutated in forward: `max_norm=`")
    emitted = copy.deepcopy(transform(model, (index,), leaf_modules=["0"]).model)  # the remedy
    for switch in (model.training, not mode, mode):
        same(emitted.train(switch)(index), model.train(switch)(index))
        same(emitted.get_parameter("0.weight"), embedding.weight)


class WritesParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.mul_(0.5)
        return x * self.weight


def test_a_parameter_that_is_written_is_kept_with_its_module() -> None:
    model = nn.Sequential(WritesParameter())
    error = refused(model, FLAT, message="parameter '0.weight' is mutated in forward", place=__file__)
    assert "or keep `0` as is with leaf_modules=['0']" in str(error)
    emitted = copy.deepcopy(transform(model, (FLAT,), leaf_modules=["0"]).model)
    for _ in range(2):
        same(emitted(FLAT), model(FLAT))


class Merges(WritesParameter):
    def train(self, mode: bool = True) -> Merges:
        with torch.no_grad():
            self.weight.add_(1.0 if mode else -1.0)
        return super().train(mode)


def test_a_kept_module_whose_switch_writes_locks_the_mode() -> None:
    emitted = transform(nn.Sequential(Merges()), (FLAT,), leaf_modules=["0"]).model
    with pytest.raises(InputError, match="train\\(\\) or eval\\(\\) of the model mutates its parameters"):
        emitted.eval()


# ---- distributions that check their arguments ----


class Samples(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc, self.options = nn.Linear(4, 8), options

    def forward(self, x: torch.Tensor) -> Any:
        mean, scale = self.fc(x).chunk(2, -1)
        normal = torch.distributions.Normal(mean, F.softplus(scale) + 0.1, **self.options)
        return normal.rsample() + normal.entropy()


def test_a_distribution_that_checks_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    # importing torch.compile switches these checks off
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    model = nn.Sequential(Samples())
    place = f"at `0` (Samples), {line_of(Samples, 'normal = ')}"
    error = refused(model, FLAT, message=r"a distribution of torch\.distributions checks its arguments", place=place)
    assert "validate_args=False, or keep `0` as is with leaf_modules=['0']" in str(error)
    hold(nn.Sequential(Samples(validate_args=False)), FLAT)  # the remedies
    kept = transform(model, (FLAT,), leaf_modules=["0"]).model
    same(run(kept, FLAT), run(model, FLAT))


# ---- parametrizations that are cached ----


def test_a_capture_inside_of_cached_parametrizations() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    for args in ((), (FLAT,)):
        with nn.utils.parametrize.cached():
            error = refused(model, *args, message=r"inside of torch\.nn\.utils\.parametrize\.cached\(\)")
        assert "leave the `with parametrize.cached()` block" in str(error)
    hold(model, FLAT)


# ---- no example inputs ----


class DoesNotFit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.conv(x).reshape(-1, 6))


def test_layers_that_do_not_fit_each_other_without_example_inputs() -> None:
    place = f"at `fc` (Linear), {__file__}"
    error = refused(DoesNotFit(), message="the last size of the input is 6, not 7", place=place)
    assert "pass example inputs" in str(error)
    refused(DoesNotFit(), X, message="the model itself fails on the example inputs")  # the remedy
