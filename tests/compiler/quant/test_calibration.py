from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from compiler.quant.calibration import Batch, CalibrationError, CallReader, calibrate
from graphwright import transform
from ir.evaluate import evaluate
from ir.text.parser import parse_program


class Scaled(nn.Module):
    """Two tensors and a number; a dict as the result."""

    def forward(self, x, mask, *, factor=2.0):
        return {"y": x * mask * factor, "n": 3}


class One(nn.Module):
    def forward(self, x):
        return torch.relu(x)


X, MASK = torch.randn(2, 3), torch.ones(2, 3)


@pytest.fixture(scope="module")
def scaled():
    return CallReader(transform(Scaled(), (X, MASK), {"factor": 0.5}).program)


@pytest.fixture(scope="module")
def one():
    return CallReader(transform(One(), (X,)).program)


def collected(reader: CallReader, data) -> list[Batch]:
    found: list[Batch] = []

    def run(batch):
        found.append(batch)
        return evaluate(reader.program, batch)

    assert calibrate(reader, data, run) == len(found)
    return found


@pytest.mark.parametrize(
    "element",
    [
        (
            X,
            MASK,
        ),
        [X, MASK],
        {"x": X, "mask": MASK},
        {"mask": MASK, "x": X},
    ],
)
def test_forms_of_an_element(element):
    reader = CallReader(transform(Scaled(), (X, MASK)).program)
    ((x, mask),) = collected(reader, [element])
    assert x is X and mask is MASK


def test_arguments_by_position_and_by_name_are_those_of_the_capture(scaled):
    ((x, mask),) = collected(scaled, [{"x": X, "mask": MASK, "factor": 0.5}])
    assert x is X and mask is MASK


def test_a_tensor_is_the_only_argument(one):
    assert [batch[0] is X for batch in collected(one, (X for _ in range(2)))] == [True, True]


def test_a_loader_may_give_labels_beside_the_inputs(one):
    loader = DataLoader(TensorDataset(torch.randn(6, 3), torch.arange(6)), batch_size=2)
    assert [tuple(batch[0].shape) for batch in collected(one, loader)] == [(2, 3)] * 3
    with pytest.raises(CalibrationError, match=r"too many positional arguments(.|\n)*\(x for x, label in data\)"):
        collected(one, list(loader))


def test_a_function_calls_the_model(scaled):
    results: list[Any] = []

    def calibration(model):
        results.extend(model(X, mask=MASK, factor=0.5) for _ in range(3))

    assert len(collected(scaled, calibration)) == 3
    assert results[0].keys() == {"y", "n"} and results[0]["n"] == 3
    assert torch.equal(results[2]["y"], X * MASK * 0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "calibration data is empty"),
        (iter(()), "calibration data is empty"),
        (X, "calibration data is a Tensor"),
        ("images", "calibration data is a str"),
        ({"x": X}, "calibration data is a dict"),
        (One(), "calibration data is a One"),
        (7, "calibration data is a int"),
        ([7], "element 1 of the calibration data is a int"),
        ([X, X[:1]], r"element 2 of the calibration data: .*dimension 0 of argument 0 \(x\) must be 2"),
        ([X.double()], "`x` has dtype torch.float64; the model was captured with torch.float32"),
        ([(X.numpy(),)], "`x` is a ndarray, not a tensor"),
        ([X, torch.full((2, 3), math.nan)], "element 2 of the calibration data: `x` holds NaN"),
        ([(X, X)], "does not fit the captured call, which takes x: too many positional arguments"),
        ([{"y": X}], "does not fit the captured call, which takes x: missing a required argument"),
        ([((X,),)], "is a tuple, not a tensor|structure is another one"),
        (lambda model: None, "did not call the model"),
        (lambda model: (model(X) for _ in range(2)), "returned an iterator"),
    ],
)
def test_what_does_not_fit_is_refused(one, data, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(one, data, lambda batch: evaluate(one.program, batch))


def test_other_constants_than_those_of_the_capture_are_refused(scaled):
    with pytest.raises(CalibrationError, match=r"argument `factor` is 2\.0; the model was captured with 0\.5"):
        collected(scaled, [(X, MASK)])
    with pytest.raises(CalibrationError, match="it passes `factor`"):
        collected(CallReader(transform(Scaled(), (X, MASK)).program), [{"x": X, "mask": MASK, "factor": 2.0}])


def test_an_error_of_the_data_itself_comes_through(one):
    def broken():
        yield X
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        collected(one, broken())


def test_a_program_without_a_signature_takes_its_inputs_in_order():
    text = """program "p" {
  graph(%x : f32[2, 3]) {
    %y = aten.relu(%x) : f32[2, 3]
    return %y
  }
}
"""
    reader = CallReader(parse_program(text))
    assert collected(reader, [X, (X,)])[1][0] is X
    with pytest.raises(CalibrationError, match="it has 2 arguments"):
        collected(reader, [(X, X)])
