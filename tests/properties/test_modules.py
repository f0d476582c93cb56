"""Generated modules: how often they hold the hard cases, and that they come out of the compiler equal."""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import find, given, settings

from compiler.equality.observation import named_state
from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.case import ModuleCase, load
from fuzz.modules.check import check_module
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Properties, Unusable
from fuzz.strategies import modules
from tests.drawn import draws

_COUNT = 600


@settings(max_examples=30)
@given(modules())
def test_modules_come_out_equal(case: ModuleCase) -> None:
    try:
        check_module(pipeline_of(TENSORRT_PATTERNS), case, Properties())
    except Unusable:
        return  # its gradient does not exist


@settings(max_examples=60)
@given(modules())
def test_modules_run_and_are_built_anew(case: ModuleCase) -> None:
    args, kwargs = case.arguments()
    first, second = case.build(), case.build()
    with torch.no_grad(), quiet():
        first(*args, **kwargs)
    assert first is not second
    for name, tensor in named_state(case.build()).items():
        assert torch.equal(tensor.nan_to_num(), named_state(second)[name].nan_to_num())


def test_drawing_a_module_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()

    @settings(max_examples=5, database=None)
    @given(modules())
    def draw(case: ModuleCase) -> None:
        case.build()
        assert torch.equal(torch.random.get_rng_state(), before)

    draw()


@pytest.fixture(scope="module")
def drawn() -> list[ModuleCase]:
    return [case for case in draws(modules(), _COUNT) if not case.kind]


def _calls(case: ModuleCase) -> Counter[str]:
    return Counter(ast.unparse(n.func) for n in ast.walk(ast.parse(case.source)) if isinstance(n, ast.Call))


def _module(case: ModuleCase) -> torch.nn.Module:
    assert isinstance(case.module, str)
    return case.build()


def _reused(case: ModuleCase) -> bool:
    return any(count > 1 for name, count in _calls(case).items() if name.startswith("self."))


def _tied(case: ModuleCase) -> bool:
    state = named_state(_module(case))
    return len({id(t) for t in state.values()}) < len(state)


def _scale(case: ModuleCase, holds: Callable[[torch.Tensor], bool]) -> bool:
    norms = [m for m in _module(case).modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return any(m.weight is not None and holds(m.weight) for m in norms)


def _has(*texts: str) -> Callable[[ModuleCase], bool]:
    return lambda case: any(text in case.source for text in texts)


def _size(*sizes: int) -> Callable[[ModuleCase], bool]:
    return lambda case: any(size in spec.shape for size in sizes for spec in case.inputs)


HARD: dict[str, tuple[Callable[[ModuleCase], bool], float]] = {
    "reused submodule": (_reused, 0.03),
    "tied weights": (_tied, 0.03),
    "residual block": (_has("Residual(", "+ self.fc2"), 0.03),
    "nested container": (_has("nn.Sequential(", "nn.ModuleList(", "nn.ModuleDict("), 0.05),
    "in-place operator": (lambda case: re.search(r"[a-z]_\(| \S= |inplace=True", case.source) is not None, 0.2),
    "view": (_has(".view(", ".transpose(", ".permute(", ".narrow(", ".select("), 0.15),
    "slice assignment": (_has("] = ", "] += ", "] *= "), 0.05),
    "buffer that changes": (_has("self.buffer"), 0.05),
    "several inputs": (lambda case: len(case.inputs) > 1, 0.2),
    "repeated input object": (lambda case: any(spec.same_as for spec in case.inputs), 0.04),
    "keyword input": (lambda case: any(spec.keyword for spec in case.inputs), 0.1),
    "int input": (lambda case: any(spec.dtype == torch.int64 for spec in case.inputs), 0.03),
    "bool input": (lambda case: any(spec.dtype == torch.bool for spec in case.inputs), 0.03),
    "NaN and infinity": (lambda case: any(spec.special for spec in case.inputs), 0.04),
    "several outputs": (_has("return v1, ", ", None", "return {", "return [", ", x\n"), 0.05),
    "training mode": (lambda case: case.training, 0.12),
    "mode of a submodule": (lambda case: bool(case.modes), 0.05),
    "negative scale": (lambda case: _scale(case, lambda w: bool((w < 0).any())), 0.08),
    "zero scale": (lambda case: _scale(case, lambda w: bool((w == 0).any())), 0.03),
    "channels_last": (lambda case: any(spec.channels_last for spec in case.inputs), 0.03),
    "float16": (lambda case: case.dtype == torch.float16, 0.03),
    "bfloat16": (lambda case: case.dtype == torch.bfloat16, 0.03),
    "float64": (lambda case: case.dtype == torch.float64, 0.03),
    "size 0": (_size(0), 0.04),
    "size 1": (_size(1), 0.1),
    "rank 0": (lambda case: any(not spec.shape for spec in case.inputs), 0.02),
    "rank 5": (lambda case: any(len(spec.shape) == 5 for spec in case.inputs), 0.03),
    "equal sizes": (lambda case: len(set(case.inputs[0].shape)) < len(case.inputs[0].shape), 0.4),
    "dynamic size": (lambda case: bool(case.dynamic), 0.04),
    "attention": (_has("MultiheadAttention(", "scaled_dot_product_attention("), 0.03),
    "attention mask": (_has("attn_mask=", "masked_fill(", "is_causal=True"), 0.01),
    "einsum": (_has("einsum("), 0.02),
    "dropout": (_has("ropout("), 0.1),
    "an input that is written": (_has("x += ", "x *= ", "x.add_(", "x.mul_(", "x[", "x.relu_("), 0.01),
}
"""How often each hard case is reached at least, as a share of the modules that have no Python around their graphs."""


@pytest.mark.long
@pytest.mark.parametrize("name", HARD)
def test_hard_cases_are_reached(drawn: list[ModuleCase], name: str) -> None:
    holds, least = HARD[name]
    share = sum(map(holds, drawn)) / len(drawn)
    assert share >= least, f"{name}: {share:.3f} of all modules"


def test_sizes_of_modules(drawn: list[ModuleCase]) -> None:
    lines = sorted(len(case.source.splitlines()) for case in drawn)
    assert lines[0] < 10
    assert lines[-1] > 30


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("register_buffer", 2),
        *(
            pytest.param(text, 2, marks=pytest.mark.long)
            for text in ("nn.Conv2d(", "+= ", "nn.MultiheadAttention(", "batchnorm")
        ),
    ],
)
def test_modules_shrink_to_a_handful_of_statements(text: str, most: int) -> None:
    chosen = settings(max_examples=1000, database=None, deadline=None)

    def wanted(case: ModuleCase) -> bool:
        # what is around a graph is written as a whole, and does not shrink
        return not case.kind and (text in case.source.lower() or text in case.source)

    # now and then a seed ends in another module, below which nothing smaller is found
    cases = (find(modules(), wanted, settings=chosen, random=Random(seed)) for seed in range(3))
    assert any(len(_statements(case)) <= most and len(case.inputs) == 1 for case in cases)


def _statements(case: ModuleCase) -> list[ast.stmt]:
    """Return the statements of `forward` of the root class, but for the last one."""
    (forward,) = [
        node
        for node in ast.walk(ast.parse(case.source))
        if isinstance(node, ast.FunctionDef) and node.name == "forward" and "self" in ast.unparse(node.args)
    ][-1:]
    return [node for node in forward.body if not isinstance(node, ast.Return)]


def test_a_case_is_built_from_its_text_once() -> None:
    case = ModuleCase("from torch import nn\nclass Net(nn.Module):\n    pass\n", ())
    assert isinstance(case.module, str)
    assert load(case.module) is load(case.module)
    assert copy.deepcopy(case) == case
