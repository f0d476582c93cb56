"""Hazards of what calls keep in modules: tables, maps, losses, and the state of modules that are kept as they are."""

from __future__ import annotations

import collections
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphwright import CaptureError, InputError, transform
from tests.hazards.boundary.test_modes import Parent
from tests.hazards.holding import FLAT, hold, run, same


class Keeps(nn.Module):
    def __init__(self, keep: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc, self.keep = nn.Linear(4, 4), keep
        self.bias = nn.Parameter(torch.randn(9))
        self.register_buffer("index", torch.arange(16).view(4, 4) % 9)
        self.table: torch.Tensor | None = None
        self.tables: dict[str, torch.Tensor] = {}
        self.largest = 0.0

    def train(self, mode: bool = True) -> Keeps:
        if mode:
            self.tables = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.keep(self, self.fc(x))


def _positions(m: Any, x: torch.Tensor) -> torch.Tensor:
    if m.table is None or len(m.table) < x.shape[-1]:
        m.table = torch.arange(x.shape[-1]).float().cos()
    return x * m.table


def _table_of_weights(m: Any, x: torch.Tensor) -> torch.Tensor:
    key = str(x.device)
    if key not in m.tables:
        m.tables[key] = m.bias[m.index]
    return x + m.tables[key]


def _attention_map(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.attention = x.softmax(-1)
    return x * m.attention


def _pyramid(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.levels = [x]
    m.levels.append(x * 2)
    m.height, m.width = x.shape
    return m.levels[0] + m.levels[1].reshape(m.height, m.width)


@pytest.mark.parametrize("keep", [_positions, _table_of_weights, _attention_map, _pyramid])
def test_what_calls_keep_and_no_other_depends_on(keep: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    model = Keeps(keep).eval()
    attributes = dict(model.__dict__)
    result = transform(model, (FLAT,))
    assert model.__dict__ == attributes and not model.tables
    for i in range(2):
        same(result.model(FLAT * i), model(FLAT * i))
    (remark, *_) = [remark for remark in result.remarks if remark.kind == "left out"]
    assert "no call depends on it" in remark.message
    other = Keeps(keep).eval()  # what is made of weights follows those of a checkpoint
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    same(result.model(FLAT), other(FLAT))


def _of_the_first(m: Any, x: torch.Tensor) -> torch.Tensor:
    if m.table is None:
        m.table = x.mean().detach()
    return x - m.table


def _of_the_last(m: Any, x: torch.Tensor) -> torch.Tensor:
    before, m.table = m.table, x.detach()
    return x if before is None else x - before


def _of_the_largest(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.largest = max(m.largest, float(x.detach().max()))
    return x * m.largest


def _counts(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.table = torch.zeros(()) if m.table is None else m.table + 1
    return x


@pytest.mark.parametrize("keep", [_of_the_first, _of_the_last, _of_the_largest, _counts])
def test_what_calls_keep_for_later_ones(keep: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    model = Keeps(keep)
    with pytest.raises(CaptureError, match=r"changes Python state: `(table|largest)`"):
        transform(model, (FLAT,))
    assert model.table is None and model.largest == 0


# ---- state of modules that are kept as they are ----


class Reference(nn.Module):
    """The first of its inputs is what it takes off the later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = x.detach().clone()
        return x - self.first


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x * self.count


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)
        self.hidden: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = self.cell(x, self.hidden)
        return self.hidden


class DelayLine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = [torch.zeros(4, 4), torch.ones(4, 4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.line.append(x.detach().clone())
        return x + self.line.pop(0)


class Accumulates(nn.Module):
    """What it keeps is a tensor that is no buffer, written in place; and one that is, beside a count."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = torch.zeros(4)
        self.count = 0
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.sum += x.detach().mean(0)
        y = x + self.sum / self.count + self.last
        self.last: torch.Tensor = x.detach()[0]
        return y


class CountsInTraining(Counter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else x * (self.count + 1)


KEEPERS = [Reference, Counter, Recurrent, DelayLine, Accumulates, CountsInTraining]


def _around(kept: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), kept, nn.BatchNorm1d(4), nn.Linear(4, 4))


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("calls", [0, 2])
def test_a_kept_module_goes_on_from_the_state_of_the_user(keeper: Callable[[], nn.Module], calls: int) -> None:
    model = _around(keeper())
    with torch.no_grad():
        for i in range(calls):
            model(FLAT + i)
    before = copy.deepcopy(model)
    emitted = transform(model, (FLAT,), leaf_modules=["1"]).model
    same(before(FLAT), copy.deepcopy(model)(FLAT))  # transform left no call in it
    emitted, original = copy.deepcopy(emitted), copy.deepcopy(model)
    for i, switch in enumerate((None, None, "eval", None, "train", None)):
        if switch is not None:
            getattr(emitted, switch)()
            getattr(original, switch)()
        same(emitted(FLAT * (i + 3)), original(FLAT * (i + 3)))


class Shares(nn.Module):
    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counts.append(1)
        return x * len(self.counts)


def test_kept_modules_that_share_what_they_change() -> None:
    counts: list[int] = []
    model = nn.Sequential(Shares(counts), nn.Linear(4, 4), Shares(counts))
    emitted = transform(model, (FLAT,), leaf_modules=[Shares]).model
    assert not counts
    emitted = pickle.loads(pickle.dumps(emitted))
    for _ in range(2):
        same(emitted(FLAT), model(FLAT))


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ready = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.ready else x


def test_a_flag_of_a_kept_module_that_others_set() -> None:
    def call(inner: Any, x: torch.Tensor) -> torch.Tensor:
        inner.ready = True
        return torch.as_tensor(inner(x))

    model = Parent(Flagged(), call)
    with pytest.raises(CaptureError, match=r"changes Python state: `inner\.ready`") as caught:
        transform(model, (FLAT,), leaf_modules=["inner"])
    assert "call the model once before" in str(caught.value.remedy)
    model(FLAT)  # the remedy
    same(transform(model, (FLAT,), leaf_modules=["inner"]).model(FLAT), model(FLAT))


class InSeveralModes(nn.Module):
    def __init__(self, kept: nn.Module) -> None:
        super().__init__()
        self.frozen, self.kept, self.drop = nn.BatchNorm1d(4), kept, nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(self.kept(self.frozen(x)))
        return y if torch.is_grad_enabled() else y + 1


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_kept_module_in_other_modes_and_surroundings(keeper: Callable[[], nn.Module]) -> None:
    model = InSeveralModes(keeper())
    model.frozen.eval()
    emitted = transform(model, (FLAT,), leaf_modules=["kept"], validate="final").model
    emitted, original = copy.deepcopy(emitted), copy.deepcopy(model)
    for i in range(3):
        same(run(emitted, FLAT * (i + 1)), run(original, FLAT * (i + 1)))
    with torch.no_grad(), pytest.raises(InputError, match="captured with gradients enabled"):
        emitted(FLAT)


@pytest.mark.parametrize("keeper", [Counter, Recurrent])
def test_hidden_state_is_refused_with_a_remedy_that_works(keeper: Callable[[], nn.Module]) -> None:
    with pytest.raises(CaptureError, match="changes Python state: `1") as caught:
        transform(_around(keeper()), (FLAT,))
    assert "leaf_modules=['1']" in str(caught.value.remedy)


def test_tables_that_depend_on_the_sizes_before() -> None:
    sizes = {"x": {0: torch.export.Dim("batch", min=2)}}
    with pytest.raises(CaptureError, match="changes Python state: `table`"):
        transform(Keeps(_positions), (FLAT,), dynamic_shapes=sizes)


class Shaped(nn.Module):
    """Keeps something in each call, beside a batch norm that counts: looking at the one must not touch the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shape = x.shape
        y: torch.Tensor = self.bn(self.fc(x))
        return y


def test_what_is_kept_beside_statistics() -> None:
    result = hold(Shaped(), FLAT)
    assert not result.program.mode_locked


class Resized(nn.Module):
    m: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.m.numel():
            self.m.resize_(4).fill_(2.0)
        return x * self.m


def test_a_buffer_that_is_resized() -> None:
    model = Resized()
    with pytest.raises(CaptureError, match="gives the buffer 'm' another shape or dtype"):
        transform(model, (FLAT,))
    model(FLAT)  # what the remedy says
    hold(model, FLAT)


def test_a_loss_that_is_kept() -> None:
    def keep(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.loss = x.square().mean()
        return x

    with pytest.raises(CaptureError, match="keeps a number with a gradient in `loss`"):
        transform(Keeps(keep), (FLAT,))
    transform(Keeps(lambda m, x: keep(m, x.detach()) + x), (FLAT,))


class Initialized(nn.Module):
    """The first call sets a weight from the data that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.ready = nn.Linear(4, 4), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x)
        if not self.ready:
            self.ready = True
            with torch.no_grad():
                self.fc.weight.mul_(2)
        return y


def test_a_weight_that_the_first_call_writes() -> None:
    model = Initialized()
    with pytest.raises(CaptureError, match=r"first call mutates parameter .fc\.weight.") as raised:
        transform(model, (FLAT,))
    assert raised.value.remedy == "call the model once before transform"
    model(FLAT)
    hold(model, FLAT)


def _by_shape_and_device(m: Any, x: torch.Tensor) -> torch.Tensor:
    key = (x.shape[0], x.device)
    if key not in m.tables:
        m.tables[key] = torch.arange(4.0)
    return x * m.tables[key]


def _in_order(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.ordered["y"] = x * 2
    m.ordered["z"] = m.ordered["y"] + 1
    return m.ordered["z"] * 2


@pytest.mark.parametrize("keep", [_by_shape_and_device, _in_order])
def test_containers_of_all_kinds(keep: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    model = Keeps(keep).eval()
    model.ordered = collections.OrderedDict()  # type: ignore[assignment]
    model.last = collections.deque([1, 2])  # type: ignore[assignment]
    result = transform(model, (FLAT,))
    assert not model.ordered and not model.tables
    same(result.model(FLAT), model(FLAT))


def test_gradients_that_only_some_modes_have_lock_nothing() -> None:
    class Decays(nn.Module):
        v: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("v", torch.zeros(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x)
            self.v = self.v * 0.9 + y
            return self.v if y.requires_grad else self.v + 0

    result = hold(Decays(), FLAT)
    assert not result.program.mode_locked
