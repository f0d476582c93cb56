"""Modules with Python around their graphs: each kind is written, and the oracle tells what goes wrong with it."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections import deque
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fuzz.modules.check
from compiler.driver import transform
from compiler.pipeline import pipeline_of
from fuzz.__main__ import main
from fuzz.campaign.survey import kinds_named, survey
from fuzz.modules.case import InputSpec, ModuleCase, load
from fuzz.modules.check import check_module
from fuzz.modules.hold import Comparison
from fuzz.modules.kinds import FAMILIES, family_of
from fuzz.modules.observation import observe_module
from fuzz.modules.outside import globals_of, left_by_tracing, plain_state
from fuzz.modules.strategy import RECIPES
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties
from fuzz.search.sound import Target
from fuzz.strategies import modules
from ir.errors import InputError
from tests.drawn import draws

STANDARD = pipeline_of(())
X = InputSpec("x", (4, 3))


def test_each_kind_belongs_to_a_family_and_each_family_has_kinds() -> None:
    assert {recipe.family for recipe in RECIPES.values()} == set(FAMILIES)
    assert family_of("") == family_of("keywords: of any kind")


@pytest.mark.parametrize("kind", RECIPES)
def test_each_kind_is_written_and_runs(kind: str) -> None:
    cases = draws(modules(kinds=(kind,)), 3)
    assert any(case.kind == kind for case in cases)
    for case in cases:
        args, kwargs = case.arguments()
        with torch.no_grad(), quiet():
            case.build()(*args, **kwargs)


def test_half_of_the_families_are_among_what_is_drawn_without_a_wish() -> None:
    kinds = {case.kind for case in draws(modules(), 400)}
    assert "" in kinds
    assert len({kind.partition(":")[0] for kind in kinds if kind}) >= len(FAMILIES) // 2


def test_a_module_stands_in_a_file_and_begins_anew() -> None:
    text = (
        "from torch import nn\ncalls = []\nclass Net(nn.Module):\n    def forward(self, x):\n        calls.append(1)\n"
    )
    case = ModuleCase(text, (X,))
    first = load(text)
    assert first.__file__ is not None
    assert Path(first.__file__).read_text(encoding="utf-8") == text
    case.build()(0)
    assert first.calls == [1]
    case.renew()
    assert load(text).calls == []


class Slotted:
    __slots__ = ("__private", "value")

    def __init__(self) -> None:
        self.__private = 0

    def count(self) -> None:
        self.__private += 1


class Holder:
    pass


TABLE: dict[str, Any] = {}


@functools.lru_cache
def cached(size: int) -> Any:
    return TABLE["made"](size)


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def _closure(value: Any) -> Any:
    return lambda: value


@pytest.mark.parametrize(
    "where", ["attribute", "list", "dict", "slots", "object", "closure", "partial", "global", "lru_cache"]
)
def test_a_fake_tensor_is_found_wherever_it_was_left(where: str) -> None:
    with FakeTensorMode():
        fake = torch.zeros(2)
    model, slotted, holder = Plain(), Slotted(), Holder()
    slotted.value = holder.value = fake  # type: ignore[attr-defined]
    TABLE.clear()
    if where == "global":
        TABLE["left"] = fake
    elif where == "lru_cache":
        TABLE["made"] = lambda size: fake
        cached(3)
        TABLE.clear()
    else:
        model.kept = {
            "attribute": fake,
            "list": [[fake]],
            "dict": {"a": {1: fake}},
            "slots": slotted,
            "object": holder,
            "closure": _closure(fake),
            "partial": functools.partial(print, fake),
        }[where]
    try:
        assert left_by_tracing(model, globals_of(model)) == ["FakeTensor"]
    finally:
        TABLE.clear()
        cached.cache_clear()
    if where in ("global", "lru_cache"):
        assert left_by_tracing(model, globals_of(model)) == []


@pytest.mark.parametrize(
    ("held", "change"),
    [
        ([1], lambda held: held.append(2)),
        ({"n": 0}, lambda held: held.update(n=1)),
        (deque([1, 2]), lambda held: held.rotate()),
        (itertools.count(), next),
        (np.zeros(2), lambda held: held.__setitem__(0, 1)),
        (np.random.RandomState(0), lambda held: held.rand()),
        (np.random.default_rng(0), lambda held: held.random()),
        (random.Random(0), lambda held: held.random()),
        (Slotted(), lambda held: setattr(held, "value", 1)),
        (Slotted(), lambda held: held.count()),
        (Holder(), lambda held: setattr(held, "value", 1)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_effects_are_seen_wherever_state_is_held(held: Any, change: Any) -> None:
    model = Plain()
    model.held = held
    before = plain_state(model, globals_of(model))
    assert plain_state(model, globals_of(model)) == before
    change(held)
    assert plain_state(model, globals_of(model)) != before


class Draws(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()
        return x * 2


def test_a_run_leaves_the_generators_of_python_and_numpy_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    seen = observe_module(Draws(), (torch.ones(2),), {})
    assert (random.random(), np.random.rand()) == expected
    assert seen.drawn_elsewhere != observe_module(Plain(), (torch.ones(2),), {}).drawn_elsewhere


# ---- the oracle, on a compiler that goes wrong on purpose ----


class Net(nn.Module):
    """Two keywords, a square weight, a list, a batch norm: everything that the faults below get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.drop = nn.Dropout(0.5)
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x @ self.weight)


def _leaves_a_fake_tensor(model: Any, *args: Any, **options: Any) -> Any:
    result = transform(model, *args, **options)
    with FakeTensorMode():
        model.seen.append(torch.zeros(2))
    return result


def _draws(generator: Any) -> Any:
    def wrong(*args: Any, **options: Any) -> Any:
        generator()
        return transform(*args, **options)

    return wrong


def _changes(change: Any) -> Any:
    def wrong(*args: Any, **options: Any) -> Any:
        result = transform(*args, **options)
        change(result.model)
        return result

    return wrong


def _transposes(model: nn.Module) -> None:
    model.weight = nn.Parameter(model.weight.t().clone())


def _ignores_the_mode(model: Any) -> None:
    model.train = lambda mode=True: model


@pytest.mark.parametrize(
    ("wrong", "property_"),
    [
        (transform, None),
        (_leaves_a_fake_tensor, "the user's objects"),
        (_draws(random.random), "random numbers"),
        (_draws(np.random.rand), "random numbers"),
    ],
    ids=["right", "fake tensor", "random", "numpy"],
)
def test_what_the_compiler_does_to_its_surroundings_is_found(
    wrong: Any, property_: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz.modules.check, "transform", wrong)
    case = ModuleCase(Net, (X,), seed=1, ways=("export",))
    if property_ is None:
        assert check_module(STANDARD, case, Properties()).fates == {("", "equal"): 1}
        return
    with pytest.raises(Finding, match=property_):
        check_module(STANDARD, case, Properties())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_transposes, "values|checkpoint"),
        (_ignores_the_mode, "in training mode"),
    ],
)
def test_a_module_that_is_another_one_is_found(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.modules.check, "transform", _changes(change))
    with pytest.raises(Finding, match=message):
        check_module(STANDARD, ModuleCase(Net, (X,), seed=1, ways=("export",)), Properties())


def test_a_guard_is_right_where_the_kind_has_one_and_wrong_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses_without_gradients(model: Any) -> None:
        def check(module: nn.Module, args: Any) -> None:
            if not torch.is_grad_enabled():
                raise InputError("this module holds where gradients are on")

        model._guard.register_forward_pre_hook(check)

    monkeypatch.setattr(fuzz.modules.check, "transform", _changes(refuses_without_gradients))
    case = ModuleCase(Plain, (X,), seed=1, ways=("export",), kind="question that matters: is_grad_enabled")
    kind = case.kind
    assert check_module(STANDARD, case, Properties()).fates == {(kind, "equal, some calls refused"): 1}
    with pytest.raises(Finding, match="it still runs"):
        check_module(STANDARD, attrs.evolve(case, kind="idle question: is_grad_enabled"), Properties())


def test_an_exported_program_that_is_another_module_is_no_fault_of_the_compiler() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = nn.Module()
            self.inner.register_buffer("step", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.inner.step = self.inner.step + 1  # torch.export loses it
            return x * self.inner.step

    outcome = check_module(STANDARD, ModuleCase(Counts, (X,), ways=("exported",)), Properties())
    assert outcome.fates == {("", "not traced by PyTorch"): 1}


# ---- the survey ----


def test_kinds_are_named_alone_or_by_family() -> None:
    assert kinds_named(["names: modules"]) == ("names: modules",)
    assert set(kinds_named(["names", "names: modules"])) == {
        f"names: {each}" for each in ("modules", "buffers", "methods")
    }
    with pytest.raises(InputError, match="there is no kind of modules 'nemes'"):
        kinds_named(["nemes"])


def test_a_survey_counts_what_becomes_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.modules.check, "transform", _draws(random.random))
    (row,) = survey(Target.of(STANDARD), ["pure hook: output"], examples=5)
    assert row.kind == "pure hook: output"
    assert row.wrong == row.modules > 0
    assert row.first == row.first_of_kind == 1
    assert row.found.startswith("random numbers")
    assert row.case is not None


def test_the_command_shows_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    options = ["kinds", "--kind", "pure hook", "--examples", "4", "--state", str(tmp_path)]
    assert main(options) in (0, 1)
    assert "pure hook" in capsys.readouterr().out
    assert main(["kinds", "--kind", "nothing"]) == 2


def test_kinds_shrink_to_themselves() -> None:
    found: list[ModuleCase] = []

    @settings(
        max_examples=20, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(modules(max_ops=0, kinds=("hidden state: slots",)))
    def draw(case: ModuleCase) -> None:
        found.append(case)

    draw()
    assert all(len(case.source.splitlines()) < 20 for case in found)
    assert all(copy.deepcopy(case) == case for case in found)


def test_a_result_that_an_export_loses_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + 1, x * 2

    x = torch.zeros(2)
    comparison = Comparison(Pair(), transform(Pair(), (x,)), ((x,), {}))
    comparison.hold_exported()
    lost = torch.export.export(Plain(), (x,))
    monkeypatch.setattr(torch.export, "export", lambda *_: lost)
    with pytest.raises(Finding, match="has 1 results, where it has 2"):
        comparison.hold_exported()
