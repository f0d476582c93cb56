"""A strategy for small modules with example inputs: what capture, conversions and fusions have to cope with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import nn


@attrs.frozen
class Step:
    """One step of a generated module's `forward`: `name` is a submodule or a method of `StepModule`."""

    name: str
    inputs: tuple[int, ...]
    """Numbers of earlier results; 0 is the input."""
    argument: Any = None


class StepModule(nn.Module):
    """A module whose `forward` is a list of steps over earlier results, written so that every tracer can follow it."""

    def __init__(self, children: dict[str, nn.Module], steps: tuple[Step, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.steps = steps
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> Any:
        """Return the result of the steps in `outputs`, a tuple where there are several."""
        values = [x]
        for step in self.steps:
            operands = [values[i] for i in step.inputs]
            if step.name in _FUNCTIONS:
                values.append(_FUNCTIONS[step.name](*operands, step.argument))
            else:
                values.append(getattr(self, step.name)(*operands))
        results = tuple([values[i] for i in self.outputs])
        return results[0] if len(results) == 1 else results

    def extra_repr(self) -> str:
        """Return the steps, for the report of a failure."""
        steps = [f"{i + 1} = {s.name}{s.inputs} {s.argument}" for i, s in enumerate(self.steps)]
        return "; ".join([*steps, f"return {self.outputs}"])


def _concatenate(a: torch.Tensor, b: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat([a, b], dim)


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "f_add": lambda a, b, _: a + b,
    "f_add_in_place": lambda a, b, _: a.add_(b),
    "f_multiply": lambda a, b, _: a * b,
    "f_concatenate": _concatenate,
    "f_scale": lambda a, factor: a * factor,
    "f_shift": lambda a, amount: a + amount,
    "f_relu": lambda a, _: torch.relu(a),
    "f_relu_in_place": lambda a, _: torch.relu_(a),
    "f_flatten": torch.flatten,
    "f_view": lambda a, _: a.view(a.size(0), -1),
    "f_reshape": lambda a, _: a.reshape(a.shape[0], -1),
    "f_mean": lambda a, dims: a.mean(dims),
    "f_mean_kept": lambda a, dims: a.mean(dims, keepdim=True),
    "f_permute": lambda a, dims: a.permute(dims),
    "f_transpose": lambda a, dims: a.transpose(*dims),
    "f_unsqueeze": lambda a, dim: a.unsqueeze(dim),
    "f_squeeze": lambda a, dim: a.squeeze(dim),
    "f_first_chunk": lambda a, dim: a.chunk(2, dim)[0],
    "f_softmax": torch.softmax,
    "f_contiguous": lambda a, _: a.contiguous(),
}

_VIEWS = (
    "f_flatten",
    "f_view",
    "f_reshape",
    "f_permute",
    "f_transpose",
    "f_unsqueeze",
    "f_squeeze",
    "f_first_chunk",
    "f_contiguous",
    "f_add_in_place",
    "f_relu_in_place",
)
_MAY_RETURN_INPUT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_DROPOUTS = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}
_MAX_POOLS = {3: nn.MaxPool1d, 4: nn.MaxPool2d, 5: nn.MaxPool3d}
_AVG_POOLS = {3: nn.AvgPool1d, 4: nn.AvgPool2d, 5: nn.AvgPool3d}
_ADAPTIVE_POOLS = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}
_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.ReLU6,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.SiLU,
    lambda: nn.SiLU(inplace=True),
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.Mish,
    lambda: nn.LeakyReLU(0.1, inplace=True),
    nn.ELU,
    nn.PReLU,
    nn.Softplus,
    lambda: nn.Hardtanh(0.0, 6.0),
    nn.Identity,
)


class _Growing:
    """A module under construction: children, steps, and the results of the steps so far on the example."""

    def __init__(self, draw: st.DrawFn, example: torch.Tensor) -> None:
        self.draw = draw
        self.children: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.values = [example]
        self.shares_input = [True]
        """For each result, whether it may share storage with the input, which no step may write."""

    def one_of(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def integer(self, lower: int, upper: int) -> int:
        return self.draw(st.integers(lower, upper))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def call(self, name: str, *inputs: int, argument: Any = None) -> None:
        step = Step(name, inputs, argument)
        operands = [self.values[i].clone() for i in inputs]
        function = _FUNCTIONS.get(name)
        with torch.no_grad():
            result = self.children[name](*operands) if function is None else function(*operands, argument)
        self.steps.append(step)
        self.values.append(result)
        may_alias = name in _VIEWS or isinstance(self.children.get(name), _MAY_RETURN_INPUT)
        self.shares_input.append(may_alias and any(self.shares_input[i] for i in inputs))

    def add(self, module: nn.Module, source: int) -> None:
        name = f"{type(module).__name__.lower()}{len(self.children)}"
        self.children[name] = module.eval()
        self.call(name, source)


def _convolution(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    channels, rank = x.shape[1], x.dim()
    groups = grow.one_of([1, 1, channels])
    stride, padding = grow.integer(1, 2), grow.integer(0, 1)
    room = min(x.shape[2:]) + 2 * padding
    same = grow.integer(0, 7) == 7
    grow.add(
        _CONVS[rank](
            channels,
            groups * grow.one_of((2, 1, 3)) if groups > 1 else grow.one_of((channels, 2, 4)),
            # an even kernel with "same" padding makes PyTorch warn
            grow.one_of((3, 1)) if same else min(grow.one_of((3, 1, 2)), room),
            stride=1 if same else stride,
            padding="same" if same else padding,
            groups=groups,
            bias=grow.flag(),
            padding_mode=grow.one_of(("zeros", "zeros", "zeros", "replicate")),
        ),
        source,
    )


def _normalization(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    channels = x.shape[1] if x.dim() > 1 else 1
    kind = grow.integer(0, 3)
    per_channel = x.numel() // max(1, channels)
    if kind == 0 and x.dim() in _NORMS:
        module = _NORMS[x.dim()](
            channels,
            eps=grow.one_of((1e-5, 1e-3)),
            momentum=grow.one_of((0.1, None)),
            affine=grow.integer(0, 3) < 3,
            track_running_stats=per_channel < 2 or grow.integer(0, 7) < 7,
        )
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        grow.add(module, source)
    elif kind == 1 and x.dim() > 2 and per_channel > 1:
        grow.add(nn.GroupNorm(grow.one_of((1, channels)), channels), source)
    elif x.dim() > 1:
        grow.add(nn.LayerNorm(x.shape[-1], elementwise_affine=grow.flag()), source)


def _activation(grow: _Growing, source: int) -> None:
    if grow.flag():
        writable = not grow.shares_input[source]
        grow.call("f_relu_in_place" if writable and grow.flag() else "f_relu", source)
        return
    module = grow.one_of(_ACTIVATIONS)()
    if grow.shares_input[source] and getattr(module, "inplace", False):
        module.inplace = False
    grow.add(module, source)


def _pool(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    if grow.flag():
        grow.add(_ADAPTIVE_POOLS[x.dim()](grow.one_of((1, 2, x.shape[-1]))), source)
    elif min(x.shape[2:]) >= 2:
        grow.add(grow.one_of((_MAX_POOLS, _AVG_POOLS))[x.dim()](2, ceil_mode=grow.flag()), source)


def _combination(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    same = [i for i in range(len(grow.values) - 1, -1, -1) if grow.values[i].shape == x.shape]
    other = grow.one_of(same)
    name = grow.one_of(("f_add", "f_add", "f_add_in_place", "f_multiply", "f_concatenate"))
    if name == "f_add_in_place" and grow.shares_input[source]:
        name = "f_add"
    grow.call(name, source, other, argument=grow.integer(0, x.dim() - 1) if name == "f_concatenate" else None)


def _linear(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    grow.add(nn.Linear(x.shape[-1], grow.one_of((x.shape[-1], 2, 3)), bias=grow.flag()), source)


def _layout(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    rank = x.dim()
    kind = grow.integer(0, 6)
    if kind == 0 and rank > 2:
        name = grow.one_of(("f_flatten", "f_reshape", "f_view"))
        if name == "f_view" and not x.is_contiguous():
            name = "f_reshape"
        grow.call(name, source, argument=1 if name == "f_flatten" else None)
    elif kind == 1:
        dims = tuple(grow.draw(st.permutations(range(rank))))
        grow.call("f_permute", source, argument=dims)
    elif kind == 2:
        grow.call("f_transpose", source, argument=(grow.integer(0, rank - 1), grow.integer(-rank, -1)))
    elif kind == 3 and rank < 5:
        grow.call("f_unsqueeze", source, argument=grow.integer(-rank - 1, rank))
    elif kind == 4 and rank > 2:
        grow.call("f_squeeze", source, argument=grow.integer(0, rank - 1))
    elif kind == 5 and rank > 2:
        grow.call(grow.one_of(("f_mean", "f_mean_kept")), source, argument=tuple(range(2, rank)))
    else:
        grow.call("f_contiguous", source)


def _other(grow: _Growing, source: int) -> None:
    x = grow.values[source]
    kind = grow.integer(0, 4)
    if kind == 0:
        plain = nn.Dropout(grow.one_of((0.5, 0.0)))
        grow.add(_DROPOUTS[x.dim()](0.5) if x.dim() in _DROPOUTS and grow.flag() else plain, source)
    elif kind == 1:
        grow.call("f_scale", source, argument=grow.one_of((1, 2.0, 0.5, -1.0)))
    elif kind == 2:
        grow.call("f_shift", source, argument=grow.one_of((0, 0.5)))
    elif kind == 3:
        grow.call("f_softmax", source, argument=grow.integer(0, x.dim() - 1))
    else:
        dim = grow.integer(0, x.dim() - 1)
        if x.shape[dim] > 1:
            grow.call("f_first_chunk", source, argument=dim)


def _reuse(grow: _Growing, source: int) -> None:
    """Call a child once more, on another value of a shape that it has seen."""
    called = [s for s in grow.steps if s.name in grow.children]
    if grow.shares_input[source]:
        called = [s for s in called if not getattr(grow.children[s.name], "inplace", False)]
    fitting = [s.name for s in called if grow.values[s.inputs[0]].shape == grow.values[source].shape]
    if fitting:
        grow.call(grow.one_of(fitting), source)


_SPATIAL = (_convolution, _convolution, _pool)
_ANY = (_activation, _normalization, _combination, _linear, _layout, _reuse, _other)


@st.composite
def modules(draw: st.DrawFn, max_steps: int = 8) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return a strategy for (module in evaluation mode, example inputs).

    The modules have convolutions, normalization, activations (in place too), residuals, pooling, linear layers, views,
    children that are called several times, and sometimes two outputs. In-place steps never write to the input.
    """
    rank = draw(st.sampled_from((4, 2, 3, 5)))
    size = draw(st.sampled_from((4, 3, 6)))
    shape = (draw(st.sampled_from((2, 1, 3))), draw(st.sampled_from((3, size, 4))), *(size,) * (rank - 2))
    # random numbers of the layers' own, so that drawing a module leaves PyTorch's generator as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 2**16)))
        grow = _Growing(draw, torch.randn(shape))
        for _ in range(max_steps):
            if draw(st.integers(0, 15)) == 0:
                break
            last = len(grow.values) - 1
            source = last if draw(st.integers(0, 3)) < 3 else draw(st.integers(0, last))
            spatial = grow.values[source].dim() in _CONVS and 0 not in grow.values[source].shape
            step = draw(st.sampled_from(_SPATIAL + _ANY if spatial else _ANY))
            if grow.values[source].dim() > 0 and grow.values[source].numel() < 5000:
                step(grow, source)
    last = len(grow.values) - 1
    outputs = (last,) if draw(st.integers(0, 3)) < 3 else (last, draw(st.integers(0, last)))
    return StepModule(grow.children, tuple(grow.steps), outputs).eval(), (grow.values[0],)
