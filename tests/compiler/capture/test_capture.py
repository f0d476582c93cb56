"""Capture: what it accepts, what it refuses and how it says so, and that it leaves the model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from compiler.capture.capture import capture
from compiler.lower.lower import lower
from ir.errors import CaptureError, GraphwrightError, InputError
from ir.evaluate import evaluate
from ir.ops.nn_ops import decode_call
from ir.verify import verify
from tests.compiler.lower.lowering import Function, assert_same, lowered, names
from tests.helpers import quick_model


def line_of(error: GraphwrightError) -> str:
    """The user's source line that an error names."""
    assert error.location is not None and error.location.file == __file__, error
    with open(__file__, encoding="utf-8") as file:
        return file.read().splitlines()[error.location.line - 1].strip()


# ---- inputs ----


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([torch.ones(2)], "must be a tuple of the positional arguments, not a list"),
        ({"x": torch.ones(2)}, "not a dict"),
        (3, "not a int"),
        ((), "missing a required argument: 'input'"),
        ((torch.ones(2), torch.ones(2)), "too many positional arguments"),
    ],
)
def test_wrong_example_inputs(inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        capture(nn.ReLU(), inputs)


def test_wrong_keyword_arguments() -> None:
    with pytest.raises(InputError, match="unexpected keyword argument 'y'"):
        capture(nn.ReLU(), (torch.ones(2),), {"y": 1})
    with pytest.raises(InputError, match="example_kwargs must map argument names"):
        capture(nn.ReLU(), (torch.ones(2),), [1])


@pytest.mark.parametrize("model", [F.relu, "model", None, torch.jit.ScriptModule()])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(InputError):
        capture(model, (torch.ones(2),))


def test_a_bare_tensor_is_one_argument() -> None:
    assert names(lower(capture(nn.ReLU(), torch.ones(2)))) == ["relu"]


@pytest.mark.parametrize("dynamic_shapes", [{"y": {0: torch.export.Dim("n")}}, ({0: "x"}, None, None), 3])
def test_wrong_dynamic_shapes(dynamic_shapes: Any) -> None:
    with pytest.raises(GraphwrightError, match="dynamic_shapes"):
        capture(nn.ReLU(), torch.ones(3), dynamic_shapes=dynamic_shapes)


def test_inputs_that_are_one_tensor_stay_two() -> None:
    model = Function(lambda self, a, b: a * 2 - b)
    x = torch.randn(4)
    for args in ((x, x), (x, x.view(4)), (x[:2], x[2:])):
        program = lowered(model, *args)
        one, two = torch.randn(args[0].shape), torch.randn(args[1].shape)
        assert torch.equal(evaluate(program, (one, two))[0], one * 2 - two)


# ---- failures name the place, the construct and the remedy ----


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


def test_data_dependent_control_flow() -> None:
    model = nn.Sequential(nn.ReLU(), Inner())
    with pytest.raises(CaptureError, match="data-dependent control flow") as caught:
        capture(model, torch.randn(3))
    assert line_of(caught.value) == "if x.sum() > 0:"
    assert caught.value.location is not None and caught.value.location.module_path == "1"
    assert "leaf_modules=" in str(caught.value.remedy) and "torch.cond" in str(caught.value.remedy)


def test_a_model_that_fails_on_its_example() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + 1

    with pytest.raises(CaptureError, match="the model itself fails on the example inputs: RuntimeError") as caught:
        capture(Model(), torch.randn(2, 4))
    assert line_of(caught.value) == "return self.fc(x) + 1"
    assert caught.value.location is not None and caught.value.location.module_path == "fc"


def test_a_dimension_that_the_model_fixes() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        y = x + 1
        return y + torch.ones(4, 3)

    with pytest.raises(CaptureError, match=r"dynamic is fixed by `return y \+ torch.ones\(4, 3\)`") as caught:
        capture(Function(forward), torch.randn(4, 3), dynamic_shapes={"args": ({0: torch.export.Dim("batch")},)})
    assert line_of(caught.value) == "return y + torch.ones(4, 3)"


def test_numpy_inside_of_forward() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + float(x.detach().numpy().mean())

    with pytest.raises(CaptureError) as caught:
        capture(Model(), torch.randn(2))
    assert "numpy" in line_of(caught.value)


# ---- Python state ----


class Stateful(nn.Module):
    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change
        self.n = 0
        self.items = [1, 2]
        self.table: dict[str, Any] = {"a": [1]}
        self.seen: set[int] = set()
        self.tensor: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change(self)
        return x + 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: setattr(m, "n", m.n + 1), "n"),
        (lambda m: m.items.append(3), "items"),
        (lambda m: m.table["a"].append(2), r"table\['a'\]"),
        (lambda m: setattr(m, "tensor", torch.ones(2) if m.tensor is None else m.tensor + 1), "tensor"),
        (lambda m: m.register_buffer("late", torch.ones(2)), "late"),
    ],
)
def test_changed_python_state_is_refused_by_name_and_put_back(change: Callable[[Any], Any], name: str) -> None:
    model = nn.Sequential(Stateful(change))
    before = _attributes(model)
    with pytest.raises(CaptureError, match=name) as caught:
        capture(model, torch.randn(2))
    assert caught.value.location is not None and caught.value.location.module_path == "0"
    assert _attributes(model) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.table.update(b=1),
        lambda m: m.seen.add(1),
        lambda m: setattr(m, "new", 1),
        lambda m: setattr(m, "tensor", torch.ones(2)),
        lambda m: setattr(m, "items", [torch.ones(2)]),
    ],
)
def test_what_no_other_call_depends_on_is_left_out_and_put_back(change: Callable[[Any], Any]) -> None:
    model = nn.Sequential(Stateful(change))
    before = _attributes(model)
    captured = capture(model, torch.randn(2))
    assert captured.observed is not None and len(captured.observed.memos) == 1
    assert _attributes(model) == before
    assert captured.module is not None and _attributes(captured.module) == before


def _attributes(model: nn.Module) -> list[Any]:
    return [
        (path, {k: copy.copy(v) for k, v in module.__dict__.items() if not k.startswith("_")}, list(module._buffers))
        for path, module in model.named_modules()
    ]


def test_state_that_ends_as_it_was_is_no_change() -> None:
    def change(model: Any) -> None:
        model.n += 1
        model.n -= 1
        model.items = list(model.items)

    model = Stateful(change)
    items = model.items
    capture(model, torch.randn(2))
    assert model.items is items


# ---- the model is untouched ----


def _fingerprint(model: nn.Module) -> list[Any]:
    tensors = [
        (name, id(t), t.requires_grad, t.detach().clone(), t._version, type(t))
        for name, t in model.state_dict(keep_vars=True).items()
    ]
    modules = [
        (path, module.training, sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
        for path, module in model.named_modules()
    ]
    return [tensors, modules]


def _same(a: list[Any], b: list[Any]) -> bool:
    return a[1] == b[1] and all(
        x[:3] == y[:3] and torch.equal(x[3], y[3]) and x[4:] == y[4:] for x, y in zip(a[0], b[0], strict=True)
    )


class Mixed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5).eval()
        self.inner = inner
        self.conv.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.drop(self.bn(self.conv(x))))


@pytest.mark.parametrize("leaf", [False, True], ids=["traced", "opaque"])
@pytest.mark.parametrize("inner", [nn.ReLU(), Inner()], ids=["captured", "refused"])
def test_the_model_is_untouched(inner: nn.Module, leaf: bool) -> None:
    model = Mixed(inner).train()
    model.drop.eval()
    model.conv.register_forward_hook(lambda module, args, result: result * 2)
    before = _fingerprint(model)
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    x = torch.randn(2, 3, 4, 4)
    torch.set_rng_state(state)
    if isinstance(inner, Inner) and not leaf:
        with pytest.raises(CaptureError):
            capture(model, x)
    else:
        capture(model, x, leaf_modules=("inner",) if leaf else ())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert torch.is_grad_enabled()
    assert _same(_fingerprint(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_capture_inside_of_no_grad_keeps_gradients() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        program = lowered(model, torch.randn(1, 2))
    evaluate(program, (torch.randn(1, 2),))[0].sum().backward()
    assert model.weight.grad is not None


def test_capture_inside_of_autocast_is_refused() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(CaptureError, match="autocast"):
        capture(nn.ReLU(), torch.ones(2))


# ---- hooks and parametrizations ----


def test_hooks_are_part_of_the_graph() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[1].register_forward_hook(lambda module, args, result: result + 1)
    model.register_forward_hook(lambda module, args, result: result * 3)
    x = torch.randn(3, 2)
    program = lowered(model, x)
    assert names(program) == ["mul.Scalar", "linear", "relu", "add.Scalar", "mul.Scalar"]
    assert_same(program, model, x)


def test_parametrizations_are_part_of_the_graph() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    x = torch.randn(4, 3)
    program = lowered(model, x)
    assert [n for n in program.weights if "original" in n]
    with torch.no_grad():
        assert torch.equal(evaluate(program, (x,))[0], model(x))


# ---- opaque modules ----


class Scaled(nn.Module):
    """Data-dependent, with a weight and a structure as its result."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor, *, options: dict[str, Any]) -> dict[str, Any]:
        if x.sum() > 1e9:
            return {"y": x, "none": None, "mean": x.mean()}
        return {"y": x * self.weight * options["by"][0], "none": None, "mean": x.mean()}


class UsesScaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.scaled(self.fc(x), options={"by": (2, "text")})
        second = self.scaled(first["y"], options={"by": (3, None)})
        return second["y"] + first["mean"]


@pytest.mark.parametrize(
    "choose", [lambda m: m.scaled, lambda m: Scaled, lambda m: "scaled"], ids=["module", "class", "path"]
)
def test_a_chosen_module_stays_an_opaque_call(choose: Callable[[UsesScaled], Any]) -> None:
    model, x = UsesScaled(), torch.randn(4, 3)
    program = lowered(model, x, leaf_modules=(choose(model),))
    assert names(program) == ["linear", "opaque", "opaque", "add.Tensor"]
    opaque = next(op for op in program.graph.operations() if op.name == "nn.opaque")
    assert [str(r.type) for r in opaque.results] == ["f32[4, 3]", "opaque", "f32[]"]
    args, kwargs = decode_call(opaque.attributes, ["tensor"], lambda leaf: leaf)
    assert (args, kwargs) == (("tensor",), {"options": {"by": (2, "text")}})
    assert list(program.weights) == ["fc.weight", "fc.bias"]
    kept = program.opaques["scaled"]
    assert kept is not model.scaled and kept.weight is model.scaled.weight
    assert_same(program, model, x)


def test_an_opaque_module_that_keeps_the_shape_takes_symbolic_sizes() -> None:
    model = nn.Sequential(Inner(), nn.Linear(3, 2))
    x = torch.randn(4, 3)
    shapes = ({0: torch.export.Dim("batch")},)
    program = lowered(model, x, leaf_modules=(Inner,), dynamic_shapes=shapes)
    assert str(program.graph.outputs[0].type) == "f32[batch, 2]"
    data = torch.randn(7, 3)
    assert torch.equal(evaluate(program, (data,))[0], model(data))


def test_an_opaque_module_that_changes_the_shape_does_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.raises(CaptureError, match="how it depends on the dynamic sizes"):
        capture(model, torch.randn(4, 3), leaf_modules=("0",), dynamic_shapes=({0: torch.export.Dim("batch")},))


def test_hooks_of_an_opaque_module_run_once() -> None:
    model = nn.Sequential(Inner())
    model[0].register_forward_hook(lambda module, args, result: result * 2)
    x = torch.ones(2)
    program = lowered(model, x, leaf_modules=("0",))
    assert torch.equal(evaluate(program, (x,))[0], model(x))


@pytest.mark.parametrize("entry", ["nowhere", nn.Conv2d, nn.ReLU(), 3])
def test_wrong_leaf_modules(entry: Any) -> None:
    with pytest.raises(InputError, match="leaf_modules"):
        capture(nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2), leaf_modules=(entry,))


class DropPath(nn.Module):
    """As in timm: does nothing in eval, random in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1)).bernoulli_(0.5)


class FlagOnly(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, self.training)


def test_modules_without_weights_that_change_with_the_mode_are_opaque() -> None:
    model = nn.Sequential(nn.Linear(3, 3), DropPath(), FlagOnly()).eval()
    x = torch.randn(4, 3)
    program = lowered(model, x)
    assert names(program) == ["linear", "opaque", "dropout"]
    assert list(program.opaques) == ["1"]
    assert program.mode_locked == ""
    assert_same(program, model, x)


def test_stochastic_depth_of_torchvision_is_opaque() -> None:
    model, x = quick_model("efficientnet_b0")
    program = lower(capture(model, x))
    verify(program)
    assert program.opaques and all(name.endswith("stochastic_depth") for name in program.opaques)


# ---- FX graphs ----


def test_an_fx_graph_with_inputs_goes_through_export() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    program = lower(capture(fx.symbolic_trace(model), torch.randn(2, 3)))
    verify(program)
    assert list(program.weights) == ["0.weight", "0.bias"]
    assert [str(op.result.type) for op in program.graph.operations()] == ["f32[2, 3]"] * 2


def test_an_exported_program_takes_no_options() -> None:
    exported = torch.export.export(nn.ReLU(), (torch.ones(2),))
    with pytest.raises(InputError, match="captured already"):
        capture(exported, leaf_modules=("x",))
