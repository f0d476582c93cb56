"""Canonicalization, and each pass that it is made of, keeps every bit of the result; a second run changes nothing."""

from __future__ import annotations

import warnings

import attrs
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fuzz.programs.case import Case
from fuzz.programs.check import check_case
from fuzz.programs.erasure import with_erased_types
from fuzz.programs.properties import Unusable
from fuzz.search.sound import Target
from fuzz.strategies import input_tensors, programs
from passes.canonicalize import Canonicalize
from passes.cleanup.cse import EliminateCommonSubexpressions
from passes.cleanup.dce import EliminateDeadCode
from passes.fold.constants import FoldConstants


def operators(names: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}" for name in names.split())


# What the layout rules look for, and a few operators that make, read or keep strides in between.
LAYOUT = operators(
    "view reshape flatten.using_ints unflatten.int squeeze squeeze.dim unsqueeze permute transpose.int t movedim.int "
    "cat expand select.int slice.Tensor split.Tensor split_with_sizes chunk unbind.int alias clone contiguous to.dtype "
    "_to_copy stack pad lift_fresh_copy relu linear layer_norm sigmoid mul.Scalar add.Tensor"
)
# What the rules about arithmetic, copies and constants look for.
SCALARS = operators(
    "add.Scalar mul.Scalar sub.Scalar div.Scalar pow.Tensor_Scalar neg abs bitwise_not relu relu6 hardtanh clamp full "
    "clamp_min clip round floor clone to.dtype _to_copy type_as contiguous zeros ones arange new_zeros new_ones "
    "new_full zeros_like ones_like full_like add.Tensor mul.Tensor rsub.Tensor where.self masked_fill.Scalar cat "
    "dropout mean.dim sum.dim_IntList softmax.int reshape slice.Tensor"
)


@pytest.fixture(autouse=True)
def _quiet_kernels():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels, about operands that the strategies chose
        yield


def check(data, program, pass_):
    """Hold the pass to every property of the fuzzer's, bit for bit; the program is changed."""
    inputs = data.draw(input_tensors(program))
    data.draw(with_erased_types(program))
    case = Case.of(program, inputs)
    demanded = attrs.evolve(Target.of(pass_).properties, exact=True, idempotent=True)
    try:
        check_case(pass_, case, demanded, program)
    except Unusable:
        reject()  # a kernel refuses what the operator's meta function takes


@given(st.data(), programs())
def test_canonicalization_keeps_every_bit(data, program):
    check(data, program, Canonicalize())


@given(st.data(), programs(operators=LAYOUT))
def test_layout_rules_keep_every_bit_stride_and_sharing(data, program):
    check(data, program, Canonicalize())


@given(st.data(), programs(operators=SCALARS))
def test_rules_about_arithmetic_and_constants_keep_every_bit(data, program):
    check(data, program, Canonicalize())


@given(st.data(), programs(symbolic=True))
def test_symbolic_programs_keep_every_bit(data, program):
    check(data, program, Canonicalize())


@settings(max_examples=max(10, settings().max_examples // 4))
@given(st.data(), programs())
@pytest.mark.parametrize(
    "pass_",
    [
        FoldConstants(),
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
        Canonicalize(inference=True),
        Canonicalize(fold_parameter_views=True),
    ],
    ids=str,
)
def test_each_pass_keeps_every_bit(pass_, data, program):
    check(data, program, pass_)


@given(st.data(), programs(operators=LAYOUT))
def test_weights_that_become_views_keep_storage_and_checkpoints(data, program):
    originals = {name: weight.data for name, weight in program.weights.items()}
    check(data, program, Canonicalize(fold_parameter_views=True))
    for name, weight in program.weights.items():
        if weight.derivation is None:
            assert name not in originals or weight.data is originals[name]
            continue
        (source,) = weight.derivation.sources
        original = originals[source]
        assert original is not None and weight.data is not None
        assert weight.data.untyped_storage().data_ptr() == original.untyped_storage().data_ptr()
        assert isinstance(weight.data, torch.Tensor) and weight.data.requires_grad == original.requires_grad
