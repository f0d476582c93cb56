"""PyTorch's own samples of its operators and modules: equal, or refused by one of our errors."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.capture.errors import partial_graphs_unprinted
from compiler.equality.observation import seeded
from fuzz.modules.hold import Comparison
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties, Unusable
from graphwright import GraphwrightError, ValidationError, transform
from tests.zoo.samples import Sample, module_samples, number_of, operator_samples

_PARTS = 40
_TENTH = 10
_REPORT = os.environ.get("GRAPHWRIGHT_SAMPLES_REPORT")
"""A file to which each part appends its counts, as a line of JSON; the figures of docs/fuzzing.md come from there."""

UNINITIALIZED = ("empty", "new_empty")
"""What these return is whatever was in memory."""


def outcome(sample: Sample) -> str:
    """Transform a sample and return what came of it: `equal`, or why there is nothing to compare.

    Raises:
        Finding: when the result differs.
        Exception: what else `transform` raises.
    """
    module, args, kwargs = sample.make()
    try:
        with torch.no_grad(), seeded(0), quiet():
            copy.deepcopy(module)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception:  # noqa: BLE001 - some samples are for other devices, and say so in many ways
        return "does not run"
    try:
        with seeded(0), quiet():
            result = transform(module, args, kwargs or None)
    except ValidationError:
        raise
    except GraphwrightError as error:
        return f"refused: {error.message}" if _is_exported(module, args, kwargs) else "torch.export does not take it"
    guarded = bool(result.program.surroundings)
    comparison = Comparison(module, result, (args, kwargs), Properties(gradients=False), double=False, guarded=guarded)
    with quiet():
        comparison.hold_calls()
        if sample.is_module:
            comparison.hold_in_the_other_mode()
    return "equal"


def _is_exported(module: Any, args: Any, kwargs: Any) -> bool:
    try:
        with seeded(0), quiet(), partial_graphs_unprinted():
            torch.export.export(copy.deepcopy(module), copy.deepcopy(args), copy.deepcopy(kwargs))
    except Exception:  # noqa: BLE001 - whatever it raises
        return False
    return True


def check(samples: Iterator[Sample]) -> Counter[str]:
    counts: Counter[str] = Counter()
    failures = []
    for sample in samples:
        if sample.name.startswith(UNINITIALIZED):
            continue
        try:
            counts[outcome(sample)] += 1
        except (Finding, Unusable) as finding:
            failures.append(f"{sample.name}: {finding!r} {finding.__cause__ or ''}")
        except Exception as error:  # noqa: BLE001 - the errors that are not ours are what is looked for
            failures.append(f"{sample.name}: {type(error).__name__}: {error}")
    if _REPORT:
        with Path(_REPORT).open("a", encoding="utf-8") as file:
            file.write(json.dumps(counts) + "\n")
    assert not failures, "\n".join(failures)
    return counts


@pytest.mark.zoo
@pytest.mark.parametrize("part", range(_PARTS))
def test_operators(part: int) -> None:
    assert check(operator_samples(lambda name: number_of(name, _PARTS) == part))["equal"] > 50


@pytest.mark.zoo
@pytest.mark.parametrize("part", range(_TENTH))
def test_modules(part: int) -> None:
    assert check(module_samples(lambda name: number_of(name, _TENTH) == part))["equal"] > 20


@pytest.mark.slow
def test_a_share_of_the_operators() -> None:
    assert check(operator_samples(lambda name: number_of(name, 2 * _PARTS) == 0))["equal"] > 25


@pytest.mark.slow
def test_a_share_of_the_modules() -> None:
    assert check(module_samples(lambda name: number_of(name, 2 * _TENTH) == 0))["equal"] > 10
