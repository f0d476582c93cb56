"""Activations that are written out become the operator, in whatever order their sums and products are written."""

from __future__ import annotations

import math

import pytest
import torch

from ir.evaluate import evaluate
from passes.algebra import polynomial
from passes.apply import Convert
from passes.canonicalize import Canonicalize
from passes.convert.activations import ACTIVATIONS
from passes.manager.manager import PassContext, PassManager
from tests.passes.building import f32, names, program

X = f32(3, 4)
C = math.sqrt(2 / math.pi)
A = 0.044715


def scalar(name):
    return lambda b, x, number: b.call(f"aten.{name}.Scalar", x, number)


mul, add, div, sub = map(scalar, ("mul", "add", "div", "sub"))


def converted(body, *types, weights=None):
    p = program(types or [X], body, weights)
    xs = [torch.randn(value.tensor_type.shape).mul(3) for value in p.graph.inputs]
    before = evaluate(p, xs)
    PassManager([Canonicalize(), Convert(ACTIVATIONS), Canonicalize()])(p, PassContext())
    torch.testing.assert_close(evaluate(p, xs), before)
    return p


def cube(b, x):
    return b.call("aten.pow.Tensor_Scalar", x, 3)


GELUS = {
    "erf": lambda b, x: b.mul(mul(b, x, 0.5), add(b, b.erf(div(b, x, math.sqrt(2))), 1)),
    "erf of a product": lambda b, x: mul(b, b.mul(x, add(b, b.erf(mul(b, x, math.sqrt(0.5))), 1.0)), 0.5),
    "halves": lambda b, x: b.mul(x, add(b, mul(b, b.erf(div(b, x, math.sqrt(2))), 0.5), 0.5)),
    "GPT-2": lambda b, x: b.mul(mul(b, x, 0.5), add(b, b.tanh(mul(b, b.add(x, mul(b, cube(b, x), A)), C)), 1.0)),
    "fast": lambda b, x: b.mul(
        mul(b, x, 0.5),
        add(b, b.tanh(b.mul(mul(b, x, 0.7978845608), add(b, b.mul(mul(b, x, A), x), 1.0))), 1.0),
    ),
    "a product of three": lambda b, x: mul(
        b, b.mul(x, add(b, b.tanh(mul(b, b.add(mul(b, b.mul(b.mul(x, x), x), A), x), C)), 1)), 0.5
    ),
}


@pytest.mark.parametrize("form", GELUS)
def test_spellings_of_gelu(form):
    p = converted(GELUS[form])
    assert names(p) == ["aten.gelu"]
    assert p.graph.first.attributes["approximate"] == ("tanh" if form not in list(GELUS)[:3] else "none")


NEAR_GELUS = {
    "another slope": lambda b, x: b.mul(mul(b, x, 0.5), add(b, b.erf(div(b, x, 1.414)), 1)),
    "another half": lambda b, x: b.mul(mul(b, x, 0.25), add(b, b.erf(div(b, x, math.sqrt(2))), 1)),
    "without the one": lambda b, x: b.mul(mul(b, x, 0.5), b.erf(div(b, x, math.sqrt(2)))),
    "a square": lambda b, x: b.mul(mul(b, x, 0.5), add(b, b.tanh(mul(b, b.add(x, mul(b, b.mul(x, x), A)), C)), 1.0)),
    "sigmoid": lambda b, x: b.mul(x, b.sigmoid(mul(b, x, 1.702))),
}


@pytest.mark.parametrize("form", NEAR_GELUS)
def test_near_misses_of_gelu(form):
    assert "aten.gelu" not in names(converted(NEAR_GELUS[form]))


def test_another_value_in_the_formula():
    p = converted(lambda b, x, y: b.mul(mul(b, x, 0.5), add(b, b.erf(div(b, y, math.sqrt(2))), 1)), X, X)
    assert "aten.gelu" not in names(p)
    assert "aten.silu" not in names(converted(lambda b, x, y: b.mul(x, b.sigmoid(y)), X, X))


def test_a_function_that_is_used_elsewhere_stays():
    def body(b, x):
        s = b.sigmoid(x)
        return b.mul(x, s), s

    assert names(converted(body)) == ["aten.sigmoid", "aten.mul.Tensor"]


OTHERS = {
    "aten.silu": lambda b, x: b.mul(b.sigmoid(x), x),
    "aten.mish": lambda b, x: b.mul(x, b.tanh(b.softplus(x))),
    "aten.hardsigmoid": lambda b, x: div(b, b.relu6(add(b, x, 3)), 6),
    "aten.hardswish": lambda b, x: b.mul(x, div(b, b.hardtanh(add(b, x, 3.0), 0.0, 6.0), 6.0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations(name):
    assert names(converted(OTHERS[name])) == [name]


@pytest.mark.parametrize("shape", [(1, 4), (4,)])
def test_a_slope_for_each_channel(shape):
    def body(b, x, w):
        return b.call("aten.where.self", b.call("aten.gt.Scalar", x, 0), x, b.mul(b.reshape(w, shape), x))

    p = converted(body, weights={"w": f32(4)})
    assert names(p) == (["aten.prelu"] if shape == (1, 4) else ["aten.gt.Scalar", "aten.mul.Tensor", "aten.where.self"])


def test_one_clamp_has_another_derivative():
    body = lambda b, x: div(b, b.call("aten.clamp", add(b, x, 3), 0, 6), 6)  # noqa: E731
    assert "aten.hardsigmoid" not in names(converted(body))


def test_polynomials():
    def body(b, x, y):
        return b.call("aten.sub.Tensor", sub(b, b.call("aten.square", add(b, x, 2)), 1), b.mul(x, y))

    p = program([X, X], body)
    x, y = p.graph.inputs
    found = polynomial(p.graph.outputs[0])
    assert found.is_sum_of((1, (x, x)), (4, (x,)), (3, ()), (-1, (y, x)))
    assert not found.is_sum_of((1, (x, x)), (4, (x,)), (3, ()))
    assert not found.is_sum_of((1, (x, x)), (4, (x,)), (3.001, ()), (-1, (y, x)))
    assert found.values == [x, y] and len(found.ops) == 5
    assert polynomial(x) is None


@pytest.mark.parametrize(
    "body",
    [
        lambda b, x, y: b.mul(x, b.reshape(b.call("aten.sum.dim_IntList", y, [0]), (1, 4))),  # broadcast
        lambda b, x, y: b.call("aten.add.Tensor", x, y, alpha=2),
        lambda b, x, y: b.mul(x, b.call("aten.to.dtype", y, torch.float64)),  # promoted
    ],
)
def test_what_is_no_polynomial(body):
    assert polynomial(program([X, X], body).graph.outputs[0]) is None
