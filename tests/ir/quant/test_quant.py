"""The dialect `quant`: what it computes, what it refuses, and its text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ir.builder import Builder, make_operation
from ir.core import Graph
from ir.errors import InferenceError
from ir.evaluate import evaluate
from ir.program import CallingConvention, Program
from ir.quant.dialect import DEQUANTIZE, QUANTIZE
from ir.quant.kernels import dequantize, quantize
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import Dim, TensorType, make_symbol
from ir.verify import verify

F32, I8, U8 = torch.float32, torch.int8, torch.uint8


def integers(x: Any, scale: float, zero_point: int, **options: Any) -> list[int]:
    dtype = options.setdefault("dtype", I8)
    made = quantize(torch.tensor(x), torch.tensor(scale), torch.tensor(zero_point, dtype=dtype), **options)
    assert made.dtype is dtype
    return made.tolist()


def test_ties_round_to_even_before_the_zero_point_is_added() -> None:
    assert integers([0.5, 1.5, 2.5, -0.5, -1.5, 0.25], 1.0, 0) == [0, 2, 2, 0, -2, 0]
    assert integers([0.5, 1.5, 2.5, -0.5, -1.5, 0.25], 1.0, 3) == [3, 5, 5, 3, 1, 3]


def test_a_quotient_is_rounded_not_a_product_with_the_inverse() -> None:
    scale = np.float32(0.3)
    x = (np.arange(-128, 127, dtype=np.float32) + np.float32(0.5)) * scale
    assert integers(x.tolist(), float(scale), 0) == np.rint(x / scale).tolist()
    assert not np.array_equal(np.rint(x * (np.float32(1) / scale)), np.rint(x / scale))


def test_integers_saturate() -> None:
    wide = [math.inf, -math.inf, 3e38, -3e38, 200.0, -200.0, math.nan]
    assert integers(wide, 0.5, 0) == [127, -128, 127, -128, 127, -128, -128]
    assert integers(wide, 0.5, 3, dtype=U8) == [255, 0, 255, 0, 255, 0, 0]
    assert integers(wide, 0.5, 0, quant_min=-127) == [127, -127, 127, -127, 127, -127, -127]
    assert integers(wide, 0.5, 0, quant_max=63, quant_min=-8) == [63, -8, 63, -8, 63, -8, -8]


def test_a_scale_for_each_index_of_an_axis() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for axis in range(4):
        scale = torch.rand(x.shape[axis]) / 32 + 1 / 64
        zero_point = torch.arange(x.shape[axis], dtype=U8) + 100
        q = quantize(x, scale, zero_point, dtype=U8, axis=axis)
        back = dequantize(q, scale, zero_point, axis=axis)
        parts = zip(*(each.unbind(axis) for each in (x, q, back)), scale, zero_point, strict=True)
        for part, its_q, its_back, its_scale, its_zero in parts:
            assert torch.equal(its_q, quantize(part, its_scale, its_zero, dtype=U8))
            assert torch.equal(its_back, dequantize(its_q, its_scale, its_zero))


def test_half_precision_is_divided_in_float32() -> None:
    x = torch.linspace(-3, 3, 97, dtype=torch.float16)
    scale, zero_point = torch.tensor(0.037, dtype=torch.float16), torch.tensor(5, dtype=I8)
    q = quantize(x, scale, zero_point)
    assert torch.equal(q, quantize(x.float(), scale.float(), zero_point))
    back = dequantize(q, scale, zero_point)
    assert back.dtype is torch.float16
    assert torch.equal(back, dequantize(q, scale.float(), zero_point).half())


def test_biases_of_32_bits() -> None:
    q = torch.tensor([2**31 - 1, -(2**31), 7], dtype=torch.int32)
    back = dequantize(q, torch.tensor(0.5), torch.tensor(-1, dtype=torch.int32))
    assert back.tolist() == [2.0**30, -(2.0**30), 4.0]


def test_the_meaning_is_onnx_s() -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` has the reference implementation")
    reference = pytest.importorskip("onnx.reference", reason="the extra `onnx` has the reference implementation")
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)) * 3
    x[0, 0, :4] = torch.tensor([0.5, 1.5, 2.5, 1e6])
    for axis, dtype in ((None, I8), (None, U8), (1, I8), (2, U8)):
        count = () if axis is None else (x.shape[axis],)
        scale = torch.full(count, 0.25) if dtype is I8 else torch.rand(count) / 32 + 1 / 64
        zero_point = torch.full(count, 7, dtype=dtype)
        options = {} if axis is None else {"axis": axis}
        tensors = {"x": x.numpy(), "scale": scale.numpy(), "zero_point": zero_point.numpy()}
        nodes = [
            onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **options),
            onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **options),
        ]
        infos = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "scale")]
        infos.append(onnx.helper.make_tensor_value_info("zero_point", 3 if dtype is I8 else 2, None))
        results = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("q", "y")]
        model = onnx.helper.make_model(
            onnx.helper.make_graph(nodes, "g", infos, results), opset_imports=[onnx.helper.make_opsetid("", 20)]
        )
        q, y = reference.ReferenceEvaluator(model).run(None, tensors)
        mine = quantize(x, scale, zero_point, dtype=dtype, axis=axis)
        assert np.array_equal(mine.numpy(), q)
        assert np.array_equal(dequantize(mine, scale, zero_point, axis=axis).numpy(), y)


def program() -> Program:
    graph = Graph([("x", TensorType((2, 3), F32)), ("scale", TensorType((3,), F32)), ("zero", TensorType((3,), U8))])
    builder = Builder(graph)
    x, scale, zero = graph.inputs
    q = builder.call(QUANTIZE, x, scale, zero, dtype=U8, axis=1, quant_max=127)
    graph.set_outputs([builder.call(DEQUANTIZE, q, scale, zero, axis=1, dtype=torch.float64)])
    return Program("quantized", graph, CallingConvention(None, None))


def test_text_and_verifier() -> None:
    made = program()
    verify(made)
    text = print_program(made)
    assert "quant.quantize(%x, %scale, %zero) {dtype=torch.uint8, axis=1, quant_max=127} : u8[2, 3]" in text
    assert "quant.dequantize(%quantize, %scale, %zero) {axis=1, dtype=torch.float64} : f64[2, 3]" in text
    parsed = parse_program(text)
    verify(parsed)
    assert print_program(parsed) == text
    args = [torch.randn(2, 3), torch.rand(3) / 8 + 0.01, torch.tensor([0, 3, 100], dtype=U8)]
    for a, b in zip(evaluate(made, args), evaluate(parsed, args), strict=True):
        assert torch.equal(a, b)


def value(shape: tuple[Dim | None, ...] | None, dtype: torch.dtype | None) -> Any:
    return Graph([("v", TensorType(shape, dtype))]).inputs[0]


def test_symbolic_and_unknown_sizes() -> None:
    n = make_symbol("n")
    scale, zero = value((3,), F32), value((3,), I8)
    op = make_operation(QUANTIZE, value((n, 3), F32), scale, zero, axis=1)
    assert op.result.type == TensorType((n, 3), I8)
    op = make_operation(DEQUANTIZE, value(None, None), value((), None), value((), None))
    assert op.result.type == TensorType(None, None)
    op = make_operation(QUANTIZE, value((None, None), F32), scale, zero, axis=1)
    assert op.result.type == TensorType((None, None), I8)
    with pytest.raises(InferenceError, match="the number of scales is 3, not n"):
        make_operation(QUANTIZE, value((n, n), F32), scale, zero, axis=1)


X, S, Z = value((2, 3), F32), value((), F32), value((), I8)
VECTOR, ZEROS = value((3,), F32), value((3,), I8)
REFUSED: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = [
    ("it takes float16, bfloat16, float32 or float64, not torch.int64", QUANTIZE, (value((2,), torch.int64), S, Z), {}),
    ("it makes int8 or uint8, not torch.int32", QUANTIZE, (X, S, Z), {"dtype": torch.int32}),
    ("the scale is of torch.int64, not of a floating dtype", QUANTIZE, (X, value((), torch.int64), Z), {}),
    ("the zero point is of torch.int8, and the integers are of torch.uint8", QUANTIZE, (X, S, Z), {"dtype": U8}),
    ("the zero point is of torch.int8, and the integers are of torch.uint8", DEQUANTIZE, (value((2,), U8), S, Z), {}),
    ("it takes int8, uint8 or int32, not torch.float32", DEQUANTIZE, (X, S, Z), {}),
    ("quant_max is 128, not one of -128 to 127", QUANTIZE, (X, S, Z), {"quant_max": 128}),
    ("there are no two integers from 5 to 5", QUANTIZE, (X, S, Z), {"quant_min": 5, "quant_max": 5}),
    ("the scale is one number, without axis; its rank is 1", QUANTIZE, (X, VECTOR, Z), {}),
    ("the zero point is a vector along the axis; its rank is 0", QUANTIZE, (X, VECTOR, Z), {"axis": 1}),
    ("axis is -1: dimensions are counted from the front", QUANTIZE, (X, VECTOR, ZEROS), {"axis": -1}),
    ("axis 2 is out of range for rank 2", QUANTIZE, (X, VECTOR, ZEROS), {"axis": 2}),
    ("there are 3 scales and 3 zero points for 2 indices of dimension 0", QUANTIZE, (X, VECTOR, ZEROS), {"axis": 0}),
    (
        "its result is of a floating dtype, not of torch.int8",
        DEQUANTIZE,
        (value((2,), I8), S, Z),
        {"dtype": I8},
    ),
]


@pytest.mark.parametrize(("message", "opdef", "operands", "attributes"), REFUSED, ids=[row[0] for row in REFUSED])
def test_operands_that_do_not_fit(
    message: str, opdef: Any, operands: tuple[Any, ...], attributes: dict[str, Any]
) -> None:
    with pytest.raises(InferenceError) as caught:
        make_operation(opdef, *operands, **attributes)
    assert message in str(caught.value)
