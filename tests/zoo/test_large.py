"""A model that no memory holds: compiled on the meta device, and loaded afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from benchmarks.compile_time import MIB, Meter
from benchmarks.models import randomize_batch_norm
from graphwright import TransformResult, transform
from tests.zoo.equality import assert_equal_outputs
from tests.zoo.models.llama import Llama, LlamaSizes, make_llama

_SMALL = LlamaSizes(width=32, hidden=64, layers=2, heads=4, kv_heads=2, vocabulary=99)
_70B = LlamaSizes()


def _on_meta(sizes: LlamaSizes, progress: Callable[[str], None] | None = None) -> TransformResult:
    with torch.device("meta"):
        model = make_llama(sizes)
    return transform(model, (torch.zeros(2, 6, dtype=torch.int64, device="meta"),), progress=progress)


def _real() -> tuple[Llama, torch.Tensor]:
    torch.manual_seed(0)
    model = make_llama(_SMALL)
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    return model, torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def small() -> TransformResult:
    return _on_meta(_SMALL)


def test_what_was_compiled_on_meta_takes_a_checkpoint(small):
    model, ids = _real()
    emitted = copy.deepcopy(small.model)
    emitted.load_state_dict(small.parameter_map.convert(model.state_dict()), assign=True)
    # a table that is in no checkpoint comes with the code, as it does in the original
    emitted.inv_freq = model.inv_freq
    assert not any(tensor.is_meta for tensor in [*emitted.parameters(), *emitted.buffers()])
    assert_equal_outputs(model, emitted, ids)


def test_what_was_compiled_on_meta_is_emptied_and_filled(small):
    model, ids = _real()
    emitted = copy.deepcopy(small.model).to_empty(device="cpu")
    emitted.load_state_dict(small.parameter_map.convert(model.state_dict()))
    emitted.inv_freq.copy_(model.inv_freq)
    assert_equal_outputs(model, emitted, ids)


def test_compiling_on_meta_does_as_much_as_on_the_cpu(small):
    model, ids = _real()
    assert transform(model, (ids,), check=False).counts() == small.counts()
    assert [remark.message for remark in small.remarks if remark.kind == "unchecked"]


@pytest.mark.parametrize("layers", [1, pytest.param(80, marks=pytest.mark.zoo)])
def test_weights_of_a_70b_llama_take_no_memory(layers):
    sizes = LlamaSizes(layers=layers)
    meter = Meter(memory=True)
    result = _on_meta(sizes, meter.begin)
    meter.begin("")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in result.model.parameters())
    assert weights > (9 + 3 * (layers - 1)) * 2**30
    assert all(tensor.is_meta for tensor in [*result.model.parameters(), *result.model.buffers()])
    assert 0 < meter.peak < (300 + 10 * layers) * MIB
    assert result.counts()["ScaledDotProductAttentionPattern"] == layers
