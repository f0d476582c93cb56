"""Placing quantizers, uniting and removing them: on generated programs, for every target."""

from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from compiler.targets import TARGETS
from fuzz.programs.properties import Unusable
from fuzz.search.quantized import SIGNED, QuantizedCase, check_quantized, check_removed, quantized_cases


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_placed_program_is_as_its_table_says(target: str, data: st.DataObject) -> None:
    """Its conditions hold, each value has one quantizer of a type, pairs agree, the text is all of it."""
    try:
        check_quantized(data.draw(quantized_cases(target)))
    except Unusable:
        reject()


@settings(max_examples=25)
@given(case=quantized_cases("openvino", SIGNED))
def test_what_is_said_never_to_be_negative_is_not(case: QuantizedCase) -> None:
    try:
        check_quantized(case)
    except Unusable:
        reject()


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=12)
@given(data=st.data())
def test_without_its_quantizers_a_program_computes_what_it_did(target: str, data: st.DataObject) -> None:
    """Every property of the fuzzer's, bit for bit: results, strides, gradients, text."""
    try:
        check_removed(data.draw(quantized_cases(target)))
    except Unusable:
        reject()
