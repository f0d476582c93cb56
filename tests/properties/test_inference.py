"""Each inference rule agrees with the operator on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.calls.generators import GENERATORS
from fuzz.calls.inference import Answer, TypedCall, answer_of_rule, inference_fault, typed_call
from fuzz.calls.types import SYMBOLS
from ir.errors import InferenceError
from ir.opdef import InferRule, get_opdef
from ir.types import TensorType, Type, type_of_tensor
from tests.ir.ops.test_table import NAMES_WITH_RULE

# Fake tensors refuse sizes that depend on data: tests/ir/test_data_sizes.py holds those rules.
NAMES = [name for name in NAMES_WITH_RULE if get_opdef(name).facts.most is None]
# Each of several hundred operators gets a small part of what the profile grants one test.
SHARE = settings(max_examples=max(12, settings().max_examples // 7))


@pytest.mark.parametrize("name", NAMES)
@SHARE
@given(data=st.data())
def test_rule_equals_fallback(name: str, data: st.DataObject) -> None:
    """For calls that fit, that may not fit, and that are partly unknown."""
    call = typed_call(data.draw, name, symbolic=False)
    assert inference_fault(call) is None


# fake tensors compute these tap by tap
_LONG = ("aten.upsample_bicubic2d.vec", "aten.upsample_trilinear3d.vec")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in _LONG else name for name in NAMES]
)
@SHARE
@given(data=st.data())
def test_rule_of_symbolic_sizes_holds_for_all_sizes(name: str, data: st.DataObject) -> None:
    """A symbolic result is that of the operator for all numbers in place of the symbols."""
    call = typed_call(data.draw, name, symbolic=True)
    assert inference_fault(call) is None


def test_every_rule_has_a_generator() -> None:
    assert set(NAMES) <= set(GENERATORS)


def test_indices_without_dimensions() -> None:
    """The rule agrees with the kernel, where fake tensors treat such an index as a number."""
    opdef = get_opdef("aten.index.Tensor")
    assert opdef.infer is not None
    x, one, none = torch.zeros(2, 3, 4), torch.tensor([1]), torch.tensor(0)
    for indices in ([one, None, none], [none], [None, none], [none, None, none], [none, one]):
        types = (type_of_tensor(x), tuple(None if i is None else type_of_tensor(i) for i in indices))
        assert opdef.infer(types, {}) == (type_of_tensor(torch.ops.aten.index.Tensor(x, indices)),)


F32 = torch.float32


X = TensorType((2, 3), F32)
N = SYMBOLS[0]
PADDED = {"pad": (1, 0), "value": 0}
WRONG = lambda types, attributes: (types[0],)  # noqa: E731


def refusing(types: tuple[Any, ...], attributes: Mapping[str, Any]) -> tuple[Type, ...]:
    raise InferenceError("no")


@pytest.mark.parametrize(
    ("call", "rule", "is_fault"),
    [
        (TypedCall("aten.constant_pad_nd", (X,), PADDED), WRONG, True),
        (TypedCall("aten.constant_pad_nd", (X,), PADDED), refusing, True),
        (TypedCall("aten.constant_pad_nd", (X,), PADDED | {"pad": (1,)}), WRONG, True),
        (TypedCall("aten.constant_pad_nd", (X,), PADDED | {"pad": (1,)}), refusing, False),
        (TypedCall("aten.constant_pad_nd", (TensorType((None, 3), F32),), PADDED, (X,)), WRONG, True),
        (TypedCall("aten.constant_pad_nd", (TensorType((None, 3), F32),), PADDED, (X,)), refusing, True),
        (TypedCall("aten.constant_pad_nd", (TensorType((2, None), F32),), PADDED, (X,)), WRONG, False),
        (TypedCall("aten.constant_pad_nd", (TensorType((2, N), F32),), PADDED), WRONG, True),
        (TypedCall("aten.constant_pad_nd", (TensorType((2, N), F32),), PADDED), refusing, False),
    ],
)
def test_faults_of_answers_are_seen(
    call: TypedCall, rule: InferRule, is_fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inference_fault(call) is None
    monkeypatch.setattr(get_opdef(call.name), "infer", rule)
    assert (inference_fault(call) is not None) == is_fault


def test_answers_of_rules_are_without_their_fallback() -> None:
    padded = Answer("types", (TensorType((2, 4), F32),))
    assert answer_of_rule(TypedCall("aten.constant_pad_nd", (X,), PADDED)) == padded
    falls_back = answer_of_rule(TypedCall("aten.constant_pad_nd", (X,), PADDED | {"pad": (-1, 0)}))
    assert falls_back == Answer("falls back")
    refused = answer_of_rule(TypedCall("aten.unsqueeze", (TensorType((None,), F32),), {"dim": 5}))
    assert refused == Answer("refused")
    assert answer_of_rule(TypedCall("aten.unsqueeze", (X,), {})) == Answer("KeyError")
    part = Answer("types", (TensorType((None, 4), None),))
    assert falls_back.is_less(part) and part.is_less(padded) and padded.is_less(refused)
    assert not padded.is_less(part) and not refused.is_less(padded) and not part.is_less(falls_back)
