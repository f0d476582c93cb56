"""PyTorch's own samples of its operators in the engines: equal, or refused by one of our errors."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from compiler.equality.observation import seeded
from fuzz.programs.observation import quiet
from graphwright import EngineError, GraphwrightError, transform
from tests.zoo.samples import Sample, number_of, operator_samples
from tests.zoo.test_samples import UNINITIALIZED

_PARTS = 20
_SAMPLES = ("[0]", "[2]", "[4]")
_DOCUMENTED = {
    "nn.functional.softplus": (0.0, 2e-6),
    "nn.functional.mish": (0.0, 2e-6),
    "bfloat16": (2**-7, 0.0),
}
"""What OpenVINO rounds (docs/runtimes.md): samples -> relative and absolute difference."""
_PLACES = ("argmax", "argmin", "masked.argmax", "masked.argmin")
"""What gives the places of NaN in PyTorch, and not in the engines (docs/runtimes.md)."""
_REPORT = os.environ.get("GRAPHWRIGHT_SAMPLES_REPORT")


def outcome(sample: Sample, engine: str) -> str:
    """Return what came of a sample: `equal`, `differs: …`, or why there is nothing to compare."""
    module, args, kwargs = sample.make()
    try:
        with torch.no_grad(), seeded(0), quiet():
            expected = copy.deepcopy(module)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception:  # noqa: BLE001 - some samples are for other devices, and say so in many ways
        return "does not run"
    module.eval()
    try:
        with seeded(0), quiet():
            result = transform(module, args, kwargs or None, target=engine, check=False)
            fast = result.to_runtime(engine, threads=1)
            with torch.no_grad():
                found = fast(*args, **kwargs)
    except EngineError as error:
        return f"the engine: {error}"[:300]
    except GraphwrightError as error:
        return f"refused: {error.message}"
    given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if sample.name.startswith(_PLACES) and any(bool(x.isnan().any()) for x in given):
        return "documented: places of NaN"
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    if engine == "openvino":
        known = _DOCUMENTED.get(sample.name.partition("[")[0], (0.0, 0.0))
        differences = [text for got, want in pairs if (text := difference(got, want, nan=False, known=known))]
    else:
        differences = [text for got, want in pairs if (text := difference(got, want, nan=True))]
    return f"differs: {differences[0]}" if differences else "equal"


def difference(got: Any, want: Any, *, nan: bool, known: tuple[float, float] = (0.0, 0.0)) -> str:
    """Return how a result differs by more than is known; without `nan`, numbers that are not finite are left out."""
    if not isinstance(want, torch.Tensor):
        return "" if got == want else f"{got!r} for {want!r}"
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype} {tuple(got.shape)} for {want.dtype} {tuple(want.shape)}"
    if not want.is_floating_point():
        return (
            ""
            if torch.equal(got, want)
            else f"{int((got != want).sum())} of {want.numel()} differ: {got.flatten()[:4]} for {want.flatten()[:4]}"
        )
    got, want = got.double(), want.double()
    if not nan:
        got, want = got[want.isfinite()], want[want.isfinite()]
    scale = float(want[want.isfinite()].abs().max()) if bool(want.isfinite().any()) else 0.0
    bounds = {"rtol": max(1e-3, known[0]), "atol": max(1e-5 * max(scale, 1e-30), known[1])}
    if torch.allclose(got, want, **bounds, equal_nan=True):
        return ""
    worst = int((got - want).abs().nan_to_num(1e30).argmax())
    return f"{float(got.flatten()[worst])!r} for {float(want.flatten()[worst])!r}"


@pytest.mark.zoo
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("part", range(_PARTS))
def test_operators(part: int, engine: str) -> None:
    pytest.importorskip(engine, reason=f"needs the extra {engine}")
    counts: Counter[str] = Counter()
    failures = []
    chosen = operator_samples(lambda name: name.endswith(_SAMPLES) and number_of(name, _PARTS) == part)
    for sample in chosen:
        if sample.name.startswith(UNINITIALIZED):
            continue
        try:
            found = outcome(sample, engine)
        except Exception as error:  # noqa: BLE001 - the errors that are not ours are what is looked for
            found = f"differs: {type(error).__name__}: {error}"
        counts[found.partition(":")[0]] += 1
        if _REPORT:
            with Path(_REPORT).open("a", encoding="utf-8") as file:
                file.write(json.dumps([engine, sample.name, found]) + "\n")
        if found.startswith("differs"):
            failures.append(f"{sample.name}: {found}")
    assert not failures, "\n".join(failures)
    assert counts["equal"] > 20
