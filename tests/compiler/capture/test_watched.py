"""What runs and traces are watched for: objects outside of the graph, in whichever order they are met."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compiler.capture.boundary.surroundings import holds_trace
from compiler.capture.capture import capture
from compiler.capture.patches import ParametersKept
from compiler.lower import export_modes
from compiler.lower.lower import lower
from compiler.usercode.containers import Container, collect, is_library_object
from compiler.usercode.state import ModuleState
from fuzz.modules.outside import plain_state


class Slots:
    """Has an attribute that is private to it, and one that may be absent."""

    __slots__ = ("__count", "late")

    def __init__(self) -> None:
        self.__count = 0

    def counted(self) -> int:
        """Count, and return the count."""
        self.__count += 1
        return self.__count


class Plain:
    """An object of a class that is the user's."""


def test_a_trace_is_found_on_the_shorter_of_two_paths() -> None:
    with FakeTensorMode() as mode:
        traced = mode.from_tensor(torch.randn(2))
    shared = [[traced]]
    deep = [[[shared]]]
    assert holds_trace([shared, deep]) and holds_trace([deep, shared])


def test_what_was_too_far_away_is_not_known_to_hold_no_trace() -> None:
    with FakeTensorMode() as mode:
        traced = mode.from_tensor(torch.randn(2))
    shared, clean = [[traced]], dict[int, tuple[Any, int]]()
    assert not holds_trace([[[shared]]], clean)
    assert holds_trace(shared, clean)


@pytest.mark.parametrize("first", ["deep", "near"])
def test_a_container_is_watched_on_the_shorter_of_two_paths(first: str) -> None:
    inner = [1]
    shared = [[inner]]
    paths: dict[str, Any] = {"deep": [[shared]], "near": shared}
    value = {key: paths[key] for key in sorted(paths, key=lambda key: key != first)}
    found: list[Container] = []
    for _ in collect("value", value, found, {}):
        pass
    inner.append(2)
    assert len([each for each in found if each.differences()]) >= 1
    assert len({id(each.target) for each in found}) == len(found)
    inner_snapshots = [each for each in found if each.target is inner]
    assert len(inner_snapshots) == 1
    inner_snapshots[0].restore()
    assert inner == [1]


def test_private_slots_are_watched_and_restored() -> None:
    module, slots = nn.Module(), Slots()
    module.slots = slots  # type: ignore[assignment]
    state, before = ModuleState(module), plain_state(module)
    assert slots.counted() == 1
    slots.late = 5  # type: ignore[attr-defined]
    assert sorted(name for _, _, name in state.changes()) == ["slots._Slots__count", "slots.late"]
    assert plain_state(module) != before
    state.restore()
    assert slots.counted() == 1 and not hasattr(slots, "late")


def test_objects_of_a_notebook_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # it has no file
    assert not is_library_object(Plain())


def test_all_results_that_an_operator_writes_are_restored() -> None:
    module = nn.Module()
    module.values = nn.Parameter(torch.zeros(2), requires_grad=False)
    module.indices = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    kept = ParametersKept(module)
    with kept:
        torch.max(torch.randn(2, 3) + 9, 1, out=(module.values, module.indices))
    assert module.values.min() > 1 and len(kept.written()) == 2
    assert kept.restore() and not module.values.any() and not module.indices.any()


def test_a_graph_with_extra_state_first_is_lowered() -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None: ...

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    graph = fx.symbolic_trace(nn.Sequential(Extra(), nn.Linear(2, 2)), {})
    graph.add_module("0", Extra())
    model = fx.GraphModule(nn.Sequential(Extra(), nn.Linear(2, 2)), graph.graph)
    model._modules = {"0": Extra(), **model._modules}
    assert not isinstance(next(iter(model.state_dict().values())), torch.Tensor)
    assert lower(capture(model)).weights


def first_helper() -> None: ...


def second_helper() -> None: ...


def test_functions_are_looked_into_in_one_order() -> None:
    class Calls(nn.Module):
        def forward(self, x: Any) -> Any:
            second_helper()
            first_helper()
            return x

    reached = [function.__name__ for function in export_modes._reached(Calls)]
    assert [name for name in reached if name.endswith("helper")] == ["first_helper", "second_helper"]
