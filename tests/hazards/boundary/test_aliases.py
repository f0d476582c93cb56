"""One tensor, one module: what is shared in the original is shared in the result, and what is not, is not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from graphwright import CaptureError, InputError, transform
from ir.text.parser import parse_program
from ir.text.printer import print_program

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Buffers(nn.Module):
    """Has three buffers, and a forward that is given."""

    v: torch.Tensor
    w: torch.Tensor
    row: torch.Tensor

    def __init__(self, body: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("v", torch.zeros(3, 4))
        self.register_buffer("w", torch.ones(3, 4))
        self.register_buffer("row", torch.ones(4))

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the given function makes of the module and the input."""
        return self.body(self, x)


def _assign(m: Buffers, **tensors: torch.Tensor) -> Buffers:
    for name, tensor in tensors.items():
        setattr(m, name, tensor)
    return m


def _old_and_new(m: Buffers, x: torch.Tensor) -> Any:
    before = m.v
    m.v = m.v + x
    return before, m.v


def _written_then_assigned(m: Buffers, x: torch.Tensor) -> Any:
    m.v.add_(x)
    m.v = m.v * 2
    return m.v[0]


BODIES: dict[str, Callable[[Buffers, torch.Tensor], Any]] = {
    "old and new": _old_and_new,
    "written, then assigned": _written_then_assigned,
    "swapped": lambda m, x: (_assign(m, v=m.w, w=m.v * 2), m.v + m.w)[1],
    "exchanged": lambda m, x: (_assign(m, v=m.w, w=m.v), m.v + m.w * 2)[1],
    "one in the place of another": lambda m, x: (_assign(m, w=m.v), _assign(m, v=m.v + x), m.w - m.v)[2],
    "written, and put elsewhere": lambda m, x: (m.v.add_(x), _assign(m, w=m.v), m.w.sum())[2],
    "written, and a view put elsewhere": lambda m, x: (m.v.add_(x), _assign(m, row=m.v[0]), m.row.sum())[2],
    "the input": lambda m, x: (_assign(m, v=x), x * 2)[1],
    "a view of the input": lambda m, x: (_assign(m, row=x[0]), x * 2)[1],
    "views of the new one": lambda m, x: (_assign(m, v=m.v + x), m.v[0], m.v.view(-1))[1:],
    "views of what is written": lambda m, x: (m.v.add_(x), m.v[0], m.v.t(), m.v.reshape(2, 6))[1:],
    "a view from before the write": lambda m, x: (m.v[0], m.v.add_(x))[0],
    "pieces of what is written": lambda m, x: (m.v.add_(x), *m.v.split(1))[1:],
    "a view of a written input": lambda m, x: (x.mul_(2), x[1:])[1],
    "a part is written": lambda m, x: (m.v[0].copy_(x[0]), m.v[1:])[1],
    "a view that is written": lambda m, x: (y := m.v.view(12), y.add_(x.view(12)))[0],
    "an activation in place, of a view": lambda m, x: (m.v.copy_(x), F.relu(m.v.view(12), inplace=True).view(3, 4))[1],
    "an activation in place, of a view of the input": lambda m, x: F.relu(x.view(12), inplace=True).view(3, 4),
    "a view of the same shape": lambda m, x: (m.v.add_(x), m.v.view_as(m.v))[1],
    "assigned a view of itself, and written": lambda m, x: (_assign(m, v=m.v.view(12).view(3, 4)), m.v.add_(x), x)[2],
    "assigned without its history, and written": lambda m, x: (_assign(m, v=m.v.detach()), m.v.add_(1), x)[2],
    "copied, and the source returned": lambda m, x: (m.v.copy_(x), x[0])[1],
}


def _sharing(module: nn.Module, x: torch.Tensor, held: list[torch.Tensor]) -> tuple[list[int], list[torch.Tensor]]:
    """Call a module; return which of input, results, buffers and what is held lie in one storage, and their values."""
    held.extend(buffer for _, buffer in sorted(module.named_buffers()))
    out = module(x)
    results = list(out) if isinstance(out, tuple) else [out]
    tensors = [x, *results, *(buffer for _, buffer in sorted(module.named_buffers())), *held]
    held.extend(results)
    first: dict[int, int] = {}
    return (
        [first.setdefault(t.untyped_storage()._cdata, len(first)) for t in tensors],
        [t.detach().clone() for t in tensors],
    )


@pytest.mark.parametrize("name", BODIES)
def test_what_shares_memory_does_so_after_each_call(name: str) -> None:
    model = Buffers(BODIES[name]).eval()
    result = transform(copy.deepcopy(model), (ROWS.clone(),))
    parsed = parse_program(print_program(result.program))
    assert parsed.convention.views == result.program.convention.views
    held: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for call in range(3):
        x = ROWS + call
        (shared, values), (other, found) = (
            _sharing(module, x.clone(), kept) for module, kept in zip((model, result.model), held, strict=True)
        )
        assert shared == other, call
        for a, b in zip(values, found, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", BODIES)
def test_what_traces_the_result_computes_the_same(name: str) -> None:
    model = Buffers(BODIES[name]).eval()
    emitted = transform(copy.deepcopy(model), (ROWS.clone(),)).model
    exported = torch.export.export(copy.deepcopy(emitted), (ROWS.clone(),)).module()
    compiled = torch.compile(copy.deepcopy(emitted), backend="eager")
    with torch.no_grad():
        for call in range(3):
            expected = model(ROWS + call)
            for module in (exported, compiled):
                torch.testing.assert_close(module(ROWS + call), expected)


class Spiking(nn.Module):
    """Assigns a buffer from values that carry a gradient, and one of numbers alone."""

    state: torch.Tensor
    step: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4))
        self.register_buffer("step", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a number for each channel, and a view of the state."""
        self.step = self.step + 1
        self.state = self.state * 0.9 + self.fc(x).mean(0)
        return self.state * self.step, self.state[:2]


def _saved(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


TOOLS: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": _saved,
    "torch.export": lambda m: torch.export.export(m, (ROWS,)).module(),
    "decomposed": lambda m: torch.export.export(m, (ROWS,)).run_decompositions().module(),
    "torch.compile": lambda m: torch.compile(m, backend="aot_eager"),
    "transform": lambda m: transform(m, (ROWS,)).model,
    "transform of an exported program": lambda m: transform(torch.export.export(m, (ROWS,))).model,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PyTorch's own decompositions
@pytest.mark.parametrize("tool", TOOLS)
def test_assigned_buffers_are_kept_by_tools(tool: str) -> None:
    model = Spiking().eval()
    module = TOOLS[tool](transform(copy.deepcopy(model), (ROWS,)).model)
    with torch.no_grad():
        for _ in range(3):
            for a, b in zip(model(ROWS), module(ROWS), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and warns of what it cannot follow
def test_tracing_leaves_no_proxy_in_a_buffer() -> None:
    module = transform(Spiking().eval(), (ROWS,)).model
    make_fx(module)(ROWS)
    torch.jit.trace(module, (ROWS,), check_trace=False)
    assert all(type(buffer) is torch.Tensor for buffer in module.buffers())


def test_a_state_dict_from_before_a_call_stays_what_it_was() -> None:
    model = Spiking().eval()
    result = transform(copy.deepcopy(model), (ROWS,))
    for module in (model, result.model):
        before = module.state_dict()
        values = {key: value.clone() for key, value in before.items()}
        with torch.no_grad():
            first = module(ROWS)[0]
        for key, value in values.items():
            torch.testing.assert_close(before[key], value)
        module.load_state_dict(before)
        with torch.no_grad():
            torch.testing.assert_close(module(ROWS)[0], first)


def test_a_caller_may_put_a_tensor_in_the_place_of_a_buffer() -> None:
    result = transform(Spiking().eval(), (ROWS,))
    with torch.no_grad():
        result.model(ROWS)
        mine = result.model.state = torch.zeros(4)
        result.model(ROWS)
    assert not mine.any() and result.model.state is not mine


class Reader(nn.Module):
    """Reads a buffer."""

    v: torch.Tensor

    def __init__(self, v: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("v", v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add it."""
        return x + self.v


class Writer(Reader):
    """Assigns it before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the new one."""
        self.v = self.v * 0.5 + 1
        return x + self.v


@pytest.mark.parametrize("classes", [(Writer, Reader), (Reader, Writer), (Writer, Writer)])
def test_an_assignment_ends_a_tie(classes: tuple[type[Reader], type[Reader]]) -> None:
    v = torch.ones(4)
    model = nn.Sequential(classes[0](v), classes[1](v)).eval()
    result = transform(copy.deepcopy(model), (ROWS,))
    assert set(result.model.state_dict()) == set(model.state_dict())
    for _ in range(3):
        torch.testing.assert_close(model(ROWS), result.model(ROWS))
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, result.model.state_dict()[key])


def _reset(m: Buffers, x: torch.Tensor) -> Any:
    before = m.v
    m.v = m.w
    m.v.add_(x)
    return before + x


TIES: dict[str, Callable[[Buffers, torch.Tensor], Any]] = {
    "a forgotten clone": _reset,
    "both written": lambda m, x: (m.w.mul_(2), m.v.add_(m.w), _assign(m, w=m.v), m.v + x)[3],
    "read before and after": lambda m, x: (y := m.w + 0, m.v.add_(x), y + m.w, _assign(m, w=m.v))[2],
}


@pytest.mark.parametrize("name", TIES)
def test_buffers_that_forward_ties_and_writes(name: str) -> None:
    with pytest.raises(CaptureError, match="makes one tensor of the buffers `v` and `w`") as raised:
        transform(Buffers(TIES[name]).eval(), (ROWS,))
    assert raised.value.location is not None and "clone()" in str(raised.value.remedy)


def test_a_clone_in_the_place_of_a_buffer() -> None:
    model = Buffers(lambda m, x: (m.v + x, _assign(m, v=m.w.clone()), m.v.add_(x))[0]).eval()
    emitted = transform(copy.deepcopy(model), (ROWS,)).model
    for _ in range(3):
        torch.testing.assert_close(model(ROWS), emitted(ROWS))


class WritesFirst(nn.Module):
    """Writes to its first argument."""

    def forward(self, a: torch.Tensor, b: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum."""
        a.add_(1)
        return a + b["x"]


def test_an_input_that_is_written_is_alone_in_its_memory() -> None:
    emitted = transform(WritesFirst(), (ROWS.clone(), {"x": ROWS.clone()})).model
    shared, rows = ROWS.clone(), torch.zeros(6, 4)
    for a, b in ((shared, shared), (shared, shared.t().t()), (rows[:3], rows[2:5])):
        with pytest.raises(InputError, match=r"input `a` is mutated in forward, and shares its memory with `b\['x'\]`"):
            emitted(a, {"x": b})
    apart = rows[:3], {"x": rows[3:]}
    torch.testing.assert_close(emitted(*apart), torch.ones(3, 4))
    pickle.loads(pickle.dumps(emitted))(*apart)
    torch.compile(emitted, backend="eager")(*apart)
    torch.export.export(emitted, apart)
