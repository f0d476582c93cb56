"""Keys of the emitted module's `state_dict`: one that the original has too means the same tensor."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphwright import InputError, PassManager, pipeline_of, transform
from graphwright.passes import Canonicalize, FoldBatchNorm
from graphwright.tensorrt import TENSORRT_PATTERNS

PIPELINES = {
    "tensorrt": lambda: pipeline_of(TENSORRT_PATTERNS),
    "canonical": lambda: PassManager([Canonicalize()]),
    "inference": lambda: PassManager([Canonicalize(inference=True)]),
    "folded": lambda: PassManager([Canonicalize(inference=True), FoldBatchNorm()]),
    "folded-tensorrt": lambda: pipeline_of(TENSORRT_PATTERNS).insert_before("fuse", FoldBatchNorm()),
}


class Module(nn.Module):
    """Children and parameters, and a `forward` that is given."""

    def __init__(self, forward: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, item in held.items():
            if isinstance(item, torch.Tensor) and not isinstance(item, nn.Parameter):
                self.register_buffer(name, item)
            else:
                setattr(self, name, item)

    def forward(self, *args: Any) -> Any:
        return self._forward(self, *args)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def tied_bias() -> Module:
    def forward(m: Any, x: Any) -> Any:
        return m.bn(m.b(m.a(x)))

    module = Module(forward, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3))
    module.b.bias = module.a.bias
    return module


def under_both_names() -> Module:
    """What would be folded has a name already that a derived weight would take."""

    def forward(m: Any, x: Any) -> Any:
        return x @ m.W.permute(2, 0, 1) + x * m.W_folded + m.W_folded_1

    return Module(forward, W=weight(3, 3, 3), W_folded=weight(3), W_folded_1=weight(3))


def reserved_names() -> Module:
    """An fx.GraphModule has attributes of these names; `code_1` and `graph_1` are taken as well."""

    def forward(m: Any, x: Any) -> Any:
        return m.code_1(m.code(x)) @ m.graph.t() + m.graph_1

    layers = {name: nn.Linear(3, 3) for name in ("code", "code_1")}
    return Module(forward, **layers, graph=weight(3, 3), graph_1=weight(3))


def norm_after(layer: nn.Module, norm: nn.Module) -> Module:
    return Module(lambda m, x: m.norm(m.layer(x)).relu(), layer=layer, norm=norm)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "square transposed": (lambda: Module(lambda m, x: x @ m.W.t(), W=weight(3, 3)), (2, 3)),
    "transposed": (lambda: Module(lambda m, x: x @ m.W.t(), W=weight(4, 3)), (2, 3)),
    "square buffer transposed": (lambda: Module(lambda m, x: x @ m.W.t(), W=torch.randn(3, 3)), (2, 3)),
    "frozen": (lambda: Module(lambda m, x: x @ m.W.t(), W=weight(3, 3)).requires_grad_(False), (2, 3)),
    "linear of a square transposed": (
        lambda: Module(lambda m, x: nn.functional.linear(x, m.fc.weight.t(), m.fc.bias), fc=nn.Linear(3, 3)),
        (2, 3),
    ),
    "box": (lambda: Module(lambda m, x: x @ m.W.permute(2, 0, 1), W=weight(3, 4, 2)), (2, 2, 3)),
    "cube": (lambda: Module(lambda m, x: x @ m.W.permute(2, 0, 1), W=weight(3, 3, 3)), (3, 3, 3)),
    "flattened and transposed": (lambda: Module(lambda m, x: x @ m.W.flatten(1).t(), W=weight(4, 2, 2)), (2, 4)),
    "scalar of a vector": (lambda: Module(lambda m, x: x * m.s.reshape(()), s=weight(1)), (2, 3)),
    "twice": (lambda: Module(lambda m, x: (x @ m.W.t()) @ m.W, W=weight(3, 3)), (2, 3)),
    "two views": (lambda: Module(lambda m, x: x @ m.W.t() + m.W.reshape(9)[:3], W=weight(3, 3)), (2, 3)),
    "taken names": (under_both_names, (2, 3)),
    "tied": (tied_bias, (2, 3, 5, 5)),
    "conv and norm": (lambda: norm_after(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), (2, 3, 6, 6)),
    "conv without bias and norm": (lambda: norm_after(nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)), (2, 3, 6, 6)),
    "square transposed conv and norm": (
        lambda: norm_after(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)),
        (2, 3, 6, 6),
    ),
    "linear and norm": (lambda: norm_after(nn.Linear(3, 3), nn.BatchNorm1d(3)), (4, 3)),
    "linear on images": (
        lambda: Module(lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), fc=nn.Linear(3, 3)),
        (2, 3, 4, 4),
    ),
    "patches": (
        lambda: Module(
            lambda m, x: m.fc(m.conv(x).flatten(2).transpose(1, 2)), conv=nn.Conv2d(3, 8, 2, 2), fc=nn.Linear(8, 8)
        ),
        (2, 3, 4, 4),
    ),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), (2, 4, 8)),
    "lstm": (lambda: Module(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 4, batch_first=True)), (2, 3, 4)),
    "reserved names": (reserved_names, (2, 3)),
}


def make(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = MODULES[name][0]().eval()
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            for tensor in (each.weight, each.bias, each.running_mean, each.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 2)
    return module


def inputs_of(name: str) -> torch.Tensor:
    torch.manual_seed(7)
    return torch.randn(MODULES[name][1])


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", MODULES)
def test_a_key_that_both_have_means_one_thing(name: str, pipeline: str) -> None:
    model, other, x = make(name, 0), make(name, 1), inputs_of(name)
    result = transform(model, (x,), pipeline=PIPELINES[pipeline]())
    emitted = result.model
    torch.testing.assert_close(emitted(x), model(x))
    mine, theirs = emitted.state_dict(), model.state_dict()
    for key in mine.keys() & theirs.keys():
        if mine[key].shape == theirs[key].shape:
            assert torch.equal(mine[key], theirs[key]), key
            assert result.parameter_map[key] == (key,)
            assert key not in result.parameter_map.renamed()

    checkpoint = other.state_dict()
    for parameter_map in (result.parameter_map, pickle.loads(pickle.dumps(result.parameter_map))):
        loaded = copy.deepcopy(emitted)
        loaded.load_state_dict(parameter_map.convert(checkpoint))
        torch.testing.assert_close(loaded(x), other(x))

    loaded = copy.deepcopy(emitted)
    try:
        loaded.load_state_dict(checkpoint)
    except RuntimeError:
        assert result.parameter_map.renamed()
    else:
        torch.testing.assert_close(loaded(x), other(x))

    # without strict, what is loaded is what convert would load, and the rest is as it was and reported
    loaded = copy.deepcopy(emitted)
    try:
        report = loaded.load_state_dict(checkpoint, strict=False)
    except RuntimeError:
        return
    converted = result.parameter_map.convert(checkpoint)
    for key, tensor in loaded.state_dict().items():
        as_it_was = key in report.missing_keys and torch.equal(tensor, mine[key])
        assert as_it_was or torch.equal(tensor, converted[key]), key


STEPS = ("matrix", "transposed", "reshaped", "linear", "linear of a transpose", "conv and norm", "linear and norm")


class Steps(nn.Module):
    """Steps on f32[2, 3, 3], each with parameters of its own or those of an earlier step."""

    def __init__(self, steps: Sequence[tuple[str, int, bool]]) -> None:
        super().__init__()
        self.steps: list[tuple[str, str]] = []
        for number, (kind, owner, folded) in enumerate(steps):
            name = f"m{owner}_folded" if folded else f"m{number}"
            layers = {"conv and norm": nn.Conv1d(3, 3, 1), "linear and norm": nn.Linear(3, 3, bias=False)}
            if not hasattr(self, name):
                module = nn.Module()
                module.layer = layers.get(kind) or nn.Linear(3, 3)
                module.norm, module.W = nn.BatchNorm1d(3), weight(3, 3)
                nn.init.uniform_(module.norm.weight, 0.5, 2)
                self.add_module(name, module)
            self.steps.append((kind, name))

    def forward(self, x: Any) -> Any:
        for kind, name in self.steps:
            module: Any = getattr(self, name)
            if kind == "matrix":
                x = x @ module.W
            elif kind == "transposed":
                x = x @ module.W.t()
            elif kind == "reshaped":
                x = x + module.W.reshape(9)[None].reshape(1, 3, 3)
            elif kind == "linear of a transpose":
                x = nn.functional.linear(x, module.layer.weight.squeeze(-1).t(), module.layer.bias)
            elif kind == "linear" or isinstance(module.layer, nn.Conv1d):
                x = module.layer(x)
            else:
                x = module.norm(module.layer(x))
        return x.relu()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.booleans()), min_size=1, max_size=5),
    st.sampled_from(sorted(PIPELINES)),
    st.booleans(),
)
def test_keys_of_generated_modules(steps: list[tuple[str, int, bool]], pipeline: str, frozen: bool) -> None:
    model, other = (Steps(steps).eval().requires_grad_(not frozen) for _ in range(2))
    x = torch.randn(2, 3, 3)
    result = transform(model, (x,), pipeline=PIPELINES[pipeline](), check=False)
    theirs, checkpoint = model.state_dict(), other.state_dict()
    converted = result.parameter_map.convert(checkpoint)
    for key, tensor in result.model.state_dict().items():
        if key in theirs and tensor.shape == theirs[key].shape:
            assert torch.equal(tensor, theirs[key]), key
            assert converted[key] is checkpoint[key], key
    loaded = copy.deepcopy(result.model)
    loaded.load_state_dict(converted)
    torch.testing.assert_close(loaded(x), other(x), rtol=1e-4, atol=1e-4)
    again = pickle.loads(pickle.dumps(result.parameter_map)).convert(checkpoint)
    assert all(torch.equal(again[key], tensor) for key, tensor in converted.items())


def test_what_is_folded_has_a_name_that_says_so() -> None:
    # a matrix product that no layer can stand for: its weight is turned in another way than a layer's
    result = transform(make("cube", 0), (inputs_of("cube"),))
    assert list(result.model.state_dict()) == ["W_folded"]
    assert result.parameter_map["W_folded"] == ("W",)
    assert list(result.model.get_parameter("W_folded").shape) == [3, 3, 3]
    names = [n for n, _ in transform(make("taken names", 0), (inputs_of("taken names"),)).model.named_parameters()]
    assert names == ["W_folded_2", "W_folded", "W_folded_1"]


def test_a_folded_convolution_stands_beside_its_place() -> None:
    result = transform(make("conv and norm", 0), (inputs_of("conv and norm"),), pipeline=PIPELINES["folded"]())
    assert isinstance(result.model.get_submodule("layer_folded"), nn.Conv2d)
    assert set(result.parameter_map["layer_folded.weight"]) == {"layer.weight", "norm.weight", "norm.running_var"}


def test_a_layer_of_another_shape_stays_at_its_path() -> None:
    model, x = make("box", 0), inputs_of("box")
    result = transform(model, (x,))
    assert list(result.model.state_dict()) == ["W"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        result.model.load_state_dict(model.state_dict(), strict=False)


def test_a_checkpoint_may_leave_out_names_of_tied_weights() -> None:
    model, other, x = make("tied", 0), make("tied", 1), inputs_of("tied")
    for left_out in ("a.bias", "b.bias"):
        checkpoint = {key: tensor for key, tensor in other.state_dict().items() if key != left_out}
        result = transform(model, (x,), pipeline=PIPELINES["folded"]())
        result.model.load_state_dict(result.parameter_map.convert(checkpoint))
        torch.testing.assert_close(result.model(x), other(x))


# ---- counts of batches ----


def normalized(**held: Any) -> nn.Sequential:
    torch.manual_seed(len(held))
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, momentum=None))


def uncounted(model: nn.Sequential) -> nn.Sequential:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pipeline", [None, *PIPELINES])
def test_an_old_checkpoint_has_no_counts_of_batches(training: bool, pipeline: str | None) -> None:
    torch.manual_seed(0)
    model, other, x = normalized(), normalized(seed=1), torch.randn(4, 4, 3, 3)
    model(x)
    result = transform(model.train(training), (x,), pipeline=PIPELINES[pipeline]() if pipeline else None)
    other(x)
    checkpoint = {key: t for key, t in other.state_dict().items() if not key.endswith("num_batches_tracked")}
    for parameter_map in (result.parameter_map, pickle.loads(pickle.dumps(result.parameter_map))):
        emitted, original = copy.deepcopy(result.model), copy.deepcopy(model)
        emitted.load_state_dict(parameter_map.convert(checkpoint))
        original.load_state_dict(checkpoint)
        for _ in range(2):
            torch.testing.assert_close(emitted(x), original(x))


def test_a_checkpoint_of_now_has_the_counts_of_batches() -> None:
    model, x = normalized(), torch.randn(4, 4, 3, 3)
    result = transform(model, (x,))
    checkpoint = uncounted(normalized()).state_dict()
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        model.load_state_dict(checkpoint)
    with pytest.raises(InputError, match=r"the checkpoint has no '1\.num_batches_tracked'"):
        result.parameter_map.convert(checkpoint)


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_counts_no_batches_loads_its_own_checkpoint(training: bool) -> None:
    torch.manual_seed(0)
    model, other, x = uncounted(normalized()), uncounted(normalized(seed=1)), torch.randn(4, 4, 3, 3)
    for each in (model, other):
        last = each[3]
        assert isinstance(last, nn.BatchNorm2d)
        last.momentum = 0.1
        each(x)
    result = transform(model.train(training), (x,))
    checkpoint = result.parameter_map.convert(other.state_dict())
    stored = io.BytesIO()
    torch.save(checkpoint, stored)
    stored.seek(0)
    result.model.load_state_dict(torch.load(stored))
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(result.model(x), model(x))


# ---- extra state ----


class Scaled(nn.Module):
    """Its scale is no tensor, and belongs to the checkpoint all the same."""

    def __init__(self, scale: Any = 2.0) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(3, 3), scale

    def forward(self, x: Any) -> Any:
        return self.fc(x) * self.scale

    def get_extra_state(self) -> Any:
        return {"scale": self.scale}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


@pytest.mark.parametrize("scales", [(2.0, 3.0), (torch.tensor(2.0), torch.tensor(3.0))], ids=["number", "tensor"])
def test_extra_state_is_left_out_where_it_says_what_was_captured(scales: Sequence[Any]) -> None:
    model, other = nn.Sequential(Scaled(scales[0])), nn.Sequential(Scaled(copy.deepcopy(scales[0])))
    x = torch.randn(2, 3)
    result = transform(model, (x,))
    for parameter_map in (result.parameter_map, pickle.loads(pickle.dumps(result.parameter_map))):
        result.model.load_state_dict(parameter_map.convert(other.state_dict()))
        torch.testing.assert_close(result.model(x), other(x))
        with pytest.raises(InputError, match=r"0\._extra_state.*is not what the module had"):
            parameter_map.convert(nn.Sequential(Scaled(scales[1])).state_dict())


def test_extra_state_goes_to_a_module_that_is_kept() -> None:
    model, other, x = nn.Sequential(Scaled(2.0)), nn.Sequential(Scaled(3.0)), torch.randn(2, 3)
    result = transform(model, (x,), leaf_modules=[Scaled])
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(result.model(x), other(x))
    assert result.model.state_dict()["0._extra_state"] == {"scale": 3.0}


def test_the_extra_state_of_the_root() -> None:
    model, x = Scaled(2.0), torch.randn(2, 3)
    result = transform(model, (x,))
    result.model.load_state_dict(result.parameter_map.convert(model.state_dict()))
    with pytest.raises(InputError, match="_extra_state"):
        result.parameter_map.convert(Scaled(1.0).state_dict())


def test_what_the_original_does_not_know_passes_through() -> None:
    model, x = make("conv without bias and norm", 0), inputs_of("conv without bias and norm")
    result = transform(model, (x,), pipeline=PIPELINES["folded"]())
    converted = result.parameter_map.convert({**model.state_dict(), "layer.bias": torch.zeros(3)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layer\.bias"):
        result.model.load_state_dict(converted)


# ---- names that Python code cannot write ----


class Named(nn.Module):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(3, 3))
            self.register_parameter(f"p{name}", weight(3))

    def forward(self, x: Any) -> Any:
        for name in self.names:
            x = getattr(self, name)(x).relu() * getattr(self, f"p{name}")
        return x


@pytest.mark.parametrize("patterns", [(), TENSORRT_PATTERNS], ids=["plain", "fused"])
def test_a_name_that_is_another_when_it_is_normalized(patterns: Any) -> None:
    """Python's parser normalizes the names in code by NFKC."""
    model, x = Named("\u00b5\ufb01"), torch.randn(2, 3)
    for inputs in ((x,), None):
        result = transform(model, inputs, patterns=patterns)
        if not patterns:
            assert result.model.state_dict().keys() == model.state_dict().keys()
        for module in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
            assert torch.equal(module(x), model(x))
        assert torch.equal(transform(result.model, (x,)).model(x), model(x))


@pytest.mark.parametrize("names", ["\u03bc\u00b5", "\u212b\u00c5", ["\ufb01", "fi"]], ids=ascii)
def test_names_that_are_equal_when_they_are_normalized_are_refused(names: Sequence[str]) -> None:
    model, x = nn.Sequential(Named(names)), torch.randn(2, 3)
    for captured in (model, torch.fx.symbolic_trace(model), torch.export.export(model, (x,))):
        with pytest.raises(InputError, match=r"are one name in Python code") as info:
            transform(captured, (x,))
        assert all(ascii(name)[1:-1] in str(info.value) for name in names)
    held = nn.ParameterDict({names[0]: weight(3)})
    held.register_buffer(names[1], torch.ones(3))
    with pytest.raises(InputError, match="are one name in Python code"):
        transform(nn.Sequential(held), (x,))


def test_keywords_that_are_equal_when_they_are_normalized() -> None:
    class Difference(nn.Module):
        def forward(self, x: Any, **kwargs: Any) -> Any:
            return x + kwargs["\u00b5"] - 2 * kwargs["\u03bc"]

    x, y, z = torch.randn(3, 2)
    kwargs = {"\u00b5": y, "\u03bc": z}
    assert torch.equal(transform(Difference(), (x,), kwargs).model(x, **kwargs), Difference()(x, **kwargs))
