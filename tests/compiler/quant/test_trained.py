"""Accuracy on trained nets, from the packages of the extra `nets`; the large ones are marked `zoo`."""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.nets import NETS, Net
from graphwright import MissingPackageError, TransformResult, transform
from graphwright.quant import Int8, quantize


@functools.cache
def net_of(name: str) -> Net:
    try:
        return NETS[name]()
    except MissingPackageError as error:
        pytest.skip(f"needs the extra nets: {error.message}")


@functools.cache
def result_of(name: str, target: str) -> TransformResult:
    net = net_of(name)
    sizes = ({0: torch.export.Dim("n", min=1, max=2000)},)
    x = torch.cat(net.calibration)[:2]
    return transform(net.model, (x,), target=target, dynamic_shapes=sizes, check=False)


@torch.no_grad()
def output_of(name: str, target: str, **options):
    """Return what a quantized net gives for the test inputs."""
    net = net_of(name)
    q = quantize(result_of(name, target), net.calibration, progress=False, **options)
    return q.model(net.test)


@pytest.mark.parametrize(("bits", "points"), [pytest.param(8, 0.2, marks=pytest.mark.long), (4, 0.7)])
@pytest.mark.parametrize("name", ["mnist_resnet", "mnist_attention"])
def test_digits_are_read_as_well_as_in_float(name, bits, points):
    net = net_of(name)
    output = output_of(name, "onnxruntime", default=Int8(weight_bits=bits))
    right = net.right_of(net.expected)
    assert right > 960
    assert right - net.right_of(output) <= points / 100 * len(net.labels)
    assert net.sqnr_of(output) > (30 if bits == 8 else 20)


@pytest.mark.zoo
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("name", "decibels"), [("lite0", 22.0), ("mobilenet_v2", 16.5)])
def test_sqnr_on_photographs(name, decibels, target):
    net = net_of(name)
    output = output_of(name, target)
    assert net.sqnr_of(output) >= decibels
    if net.labels is not None:
        assert net.right_of(output) >= net.right_of(net.expected) == 17


@pytest.mark.zoo
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["rnet", "onet", "crepe"])
def test_decisions_are_those_of_the_float_net(name, target):
    net = net_of(name)
    assert net.right_of(net.expected) == net.right_of(output_of(name, target)) == len(net.labels)
