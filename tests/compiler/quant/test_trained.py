"""Accuracy on trained nets, from the packages of the extra `nets`; the large ones are marked `zoo`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.nets import NETS, Net
from graphwright import MissingPackageError, transform
from graphwright.quant import Int8, Quantized, quantize


def net_of(name: str) -> Net:
    try:
        return NETS[name]()
    except MissingPackageError as error:
        pytest.skip(f"needs the extra nets: {error.message}")


def quantized(net: Net, target: str, **options) -> Quantized:
    x = torch.cat(net.calibration)[:2]
    sizes = ({0: torch.export.Dim("n", min=1, max=2000)},)
    result = transform(net.model, (x,), target=target, dynamic_shapes=sizes, check=False)
    return quantize(result, net.calibration, progress=False, **options)


@pytest.mark.parametrize(("bits", "points"), [(8, 0.2), (4, 0.7)])
@pytest.mark.parametrize("name", ["mnist_resnet", "mnist_attention"])
def test_digits_are_read_as_well_as_in_float(name, bits, points):
    net = net_of(name)
    q = quantized(net, "onnxruntime", default=Int8(weight_bits=bits))
    assert net.right(net.model) > 960
    assert net.right(net.model) - net.right(q.model) <= points / 100 * len(net.labels)
    assert net.sqnr(q.model) > (30 if bits == 8 else 20)


@pytest.mark.zoo
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("name", "decibels"), [("lite0", 22.0), ("mobilenet_v2", 16.5)])
def test_sqnr_on_photographs(name, decibels, target):
    net = net_of(name)
    q = quantized(net, target)
    assert net.sqnr(q.model) >= decibels
    if net.labels is not None:
        assert net.right(q.model) >= net.right(net.model) == 17


@pytest.mark.zoo
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["rnet", "onet", "crepe"])
def test_decisions_are_those_of_the_float_net(name, target):
    net = net_of(name)
    q = quantized(net, target)
    assert net.right(net.model) == net.right(q.model) == len(net.labels)
