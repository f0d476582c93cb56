"""What was compiled on the CPU runs on a GPU, and what is compiled there is equal there; skipped without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch

from compiler.equality.accuracy import measure_accuracy
from graphwright import PassManager, transform
from graphwright.passes import Canonicalize, FoldBatchNorm
from tests.helpers import REAL_MODELS, quick_model
from tests.zoo.equality import assert_equal_outputs, assert_equal_training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _full_precision():
    """TF32 has ten bits of precision: it would hide what is compared, and be counted as the original's own error."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.parametrize("name", REAL_MODELS)
def test_compiled_on_the_cpu_and_moved(name):
    model, x = quick_model(name)
    result = transform(model, (x,))
    assert_equal_outputs(copy.deepcopy(model).cuda(), copy.deepcopy(result.model).cuda(), x.cuda())


@pytest.mark.parametrize("name", REAL_MODELS)
def test_compiled_on_the_gpu(name):
    model, x = quick_model(name)
    model, x = model.cuda(), x.cuda()
    result = transform(model, (x,), validate="final")
    assert "cuda" in str(result.program)
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    assert_equal_outputs(model, result.model, x)


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16"])
def test_trains_on_the_gpu(name):
    model, x = quick_model(name)
    model, x = model.cuda(), x.cuda()
    assert_equal_training(transform(model, (x,)), model, x)


def test_folding_on_the_gpu():
    model, x = quick_model("resnet18")
    model, x = model.cuda(), x.cuda()
    result = transform(model, (x,), pipeline=PassManager([Canonicalize(inference=True), FoldBatchNorm()]))
    # weights that were computed in float32 differ in float64 too
    (output,) = measure_accuracy(model, result.model, (x,)).outputs
    assert output.same_nonfinite
    assert output.is_within_bound, output
