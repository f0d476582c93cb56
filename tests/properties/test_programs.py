"""Generated programs are what they should be: valid, and of the types that running them shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from fuzz.programs.strategy import COMMON, substitute
from fuzz.strategies import input_tensors, programs
from ir.evaluate import bind_symbols, evaluate
from ir.opdef import Trait
from ir.program import Program
from ir.text.parser import parse_program
from ir.types import type_of_tensor
from ir.verify import verify
from tests.drawn import draws

ANY_PROGRAM = st.one_of(programs(), programs(symbolic=True))


@given(ANY_PROGRAM)
def test_programs_are_valid(program: Program) -> None:
    verify(program)


@given(st.data())
def test_evaluation_agrees_with_inferred_types(data: st.DataObject) -> None:
    program = data.draw(ANY_PROGRAM)
    inputs = data.draw(input_tensors(program))
    numbers = bind_symbols(program, inputs)
    results = evaluate(program, inputs)
    for value, result in zip(program.graph.outputs, results, strict=True):
        assert value is not None
        assert type_of_tensor(result) == substitute(value.type, numbers), f"{value}\n{program}"


@given(st.data())
def test_evaluation_is_a_function_of_its_inputs(data: st.DataObject) -> None:
    program = data.draw(programs())
    inputs = data.draw(input_tensors(program))
    kept = [x.clone() for x in inputs]
    first, second = evaluate(program, inputs), evaluate(program, inputs)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(kept, inputs, strict=True))


def _chain(first: str, second: str) -> Callable[[Program], bool]:
    def condition(program: Program) -> bool:
        return any(
            op.name == second and any(v.defining_op and v.defining_op.name == first for v in op.operand_values)
            for op in program.graph.operations()
        )

    return condition


def _shared_convolution_weight(program: Program) -> bool:
    users = [w.value.users for w in program.weights.values()]
    return any(len(ops) > 1 and all(op.opdef.has(Trait.CONV) for op in ops) for ops in users)


def _common_subexpression(program: Program) -> bool:
    seen = {(op.name, op.operands, str(op.attributes)) for op in program.graph.operations()}
    return len(seen) < program.graph.num_operations


REACHED = {
    "conv2d -> batch_norm": _chain("aten.conv2d", "aten.batch_norm"),
    "linear -> relu": _chain("aten.linear", "aten.relu"),
    "permute -> permute": _chain("aten.permute", "aten.permute"),
    "shared convolution weight": _shared_convolution_weight,
    "common subexpression": _common_subexpression,
    "used output": lambda p: any(v is not None and len(v.users) > 1 for v in p.graph.outputs),
}


@pytest.mark.parametrize("what", REACHED)
def test_programs_reach_what_rules_look_for(what: str) -> None:
    search = settings(max_examples=3000, derandomize=True, database=None, phases=[Phase.generate])
    assert REACHED[what](find(programs(), REACHED[what], settings=search))


def test_programs_shrink() -> None:
    search = settings(max_examples=1000, derandomize=True, database=None)
    smallest = find(programs(), _chain("aten.relu", "aten.relu"), settings=search)
    assert smallest.graph.num_operations == 2
    assert len(smallest.graph.inputs) == 1
    assert not smallest.weights


@pytest.mark.long
def test_common_operators_are_common() -> None:
    seen: dict[str, int] = {}

    # hypothesis varies what it has drawn, so that few programs are alike, and what it draws hangs on what is imported
    @settings(max_examples=1000, derandomize=True, database=None)
    @given(programs(max_ops=20))
    def count(program: Program) -> None:
        for op in program.graph.operations():
            seen[op.name] = seen.get(op.name, 0) + 1

    count()
    assert [name for name in COMMON if name not in seen] == []
    assert len(seen) > 100


def test_inputs_hold_numbers_that_rules_forget() -> None:
    program = parse_program(
        'program "p" { argument "x" = input 0 result = output 0 graph(%x : f64[3]) { %y = aten.relu(%x) return %y } }'
    )
    seen: Counter[str] = Counter()
    for (x,) in draws(input_tensors(program), 400):
        finite = x[x.isfinite()].abs()
        there = {"nan": x.isnan(), "inf": x == math.inf, "-inf": x == -math.inf, "large": finite > 1e155}
        seen.update(name for name, mask in there.items() if mask.any())
    assert min(seen[name] for name in ("nan", "inf", "-inf", "large")) >= 5, seen
