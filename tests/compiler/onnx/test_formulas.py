"""What is written in another way than by PyTorch's exporter: numbers over their whole range, and their dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compiler.onnx.formulas import FORMULAS
from graphwright import CodegenError, transform

pytest.importorskip("onnx_ir", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

POSITIVE = [0.0, 1e-30, 1e-9, 1e-4, 0.3, 0.7, 1.0, 2.5, 7.0, 20.0, 50.0, 90.0, 1e3, 1e6, 1e20]
ENDS = [math.inf, -math.inf, math.nan]

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FUNCTIONS: dict[str, Function] = {
    "aten.expm1": lambda x, y: torch.expm1(x),
    "aten.log1p": lambda x, y: torch.special.log1p(x),
    "aten.log_sigmoid": lambda x, y: F.logsigmoid(x),
    "aten.binary_cross_entropy_with_logits": lambda x, y: F.binary_cross_entropy_with_logits(
        x, y.clamp(0, 1), weight=y.clamp(1, 2), pos_weight=y.clamp(3, 4), reduction="none"
    ),
    "aten.soft_margin_loss": lambda x, y: F.soft_margin_loss(x, torch.where(y > 0, 1.0, -1.0), reduction="none"),
    "aten.logaddexp": torch.logaddexp,
    "aten.logaddexp2": torch.logaddexp2,
    "aten.logcumsumexp": lambda x, y: torch.logcumsumexp(torch.stack([x, y]), 1),
    "aten.special_xlog1py": torch.special.xlog1py,
    "aten.atan2": torch.arctan2,
    "aten.clamp": lambda x, y: torch.stack([x.clamp(min=0.5), x.clamp(max=0.5), x.clamp(-1, 1), x.clamp(-1, 0.5)]),
    "aten.add.Scalar": lambda x, y: torch.add(x, 1, alpha=2),
    "aten.sub.Scalar": lambda x, y: torch.sub(x, 1, alpha=2),
    "aten.remainder.Scalar": lambda x, y: x % 0.75,
    "aten.remainder.Tensor": torch.remainder,
    "aten.floor_divide": torch.floor_divide,
    "aten.floor_divide.Scalar": lambda x, y: x // 0.75,
    "aten.div.Tensor_mode": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "aten.div.Scalar_mode": lambda x, y: torch.div(x, 0.75, rounding_mode="floor"),
}
REFUSED = {"aten.special_log_ndtr"}
EXACT_IN_ONE_ENGINE = {name for name in FUNCTIONS if name.startswith(("aten.remainder", "aten.floor", "aten.div"))}


class Each(nn.Module):
    """The functions, one output each."""

    def __init__(self, functions: list[Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return [function(x, y) for function in self.functions]


def wide(ends: bool) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.tensor([*POSITIVE, *[-each for each in POSITIVE], *(ENDS if ends else [])])
    return numbers, numbers.roll(7)


def test_every_formula_is_tried() -> None:
    assert FUNCTIONS.keys() | REFUSED == FORMULAS.keys()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_numbers_are_those_of_pytorch(engine: str) -> None:
    pytest.importorskip(engine, reason=f"needs the extra {engine}")
    names = [name for name in FUNCTIONS if engine == "onnxruntime" or name not in EXACT_IN_ONE_ENGINE]
    model = Each([FUNCTIONS[name] for name in names]).eval()
    x, y = wide(ends=engine == "onnxruntime")  # OpenVINO does not keep NaN
    result = transform(model, (x, y), target=engine)
    found = result.to_runtime(engine, threads=1)(x, y)
    exact = Each(model.functions)(x.double(), y.double())
    for name, got, expected, true in zip(names, found, model(x, y), exact, strict=True):
        if engine == "openvino" and name == "aten.expm1":
            continue  # its exponential is infinite from 88 on
        # as near to the true number as PyTorch is, but for some units in the last place
        error = (expected.double() - true).abs().nan_to_num(0, 0)
        near = (got.double() - true).abs() <= 8 * error + 1e-6 * true.abs() + 1e-37
        same = (got == expected) | (got.isnan() & expected.isnan())
        assert (near | same).all(), (name, x[~(near | same).reshape(-1, len(x)).all(0)].tolist())


def test_what_has_no_formula_is_refused(tmp_path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.log_ndtr(x)

    with pytest.raises(CodegenError, match="no scaled error function") as raised:
        transform(Net().eval(), (torch.randn(3),)).save_onnx(tmp_path / "net.onnx")
    assert raised.value.location is not None and not list(tmp_path.iterdir())


def test_a_sum_over_a_dynamic_size_is_refused(tmp_path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.logcumsumexp(x, 0)

    result = transform(Net().eval(), (torch.randn(3),), dynamic_shapes=({0: torch.export.Dim("n")},))
    with pytest.raises(CodegenError, match="a dynamic size cannot be written"):
        result.save_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_that_an_operator_does_not_take_is_refused(dtype: torch.dtype, tmp_path) -> None:
    result = transform(nn.Conv2d(3, 4, 1).to(dtype).eval(), (torch.randn(2, 3, 4, 4, dtype=dtype),))
    if dtype == torch.float16:
        result.save_onnx(tmp_path / "net.onnx")
        return
    with pytest.raises(CodegenError, match="Conv takes no bfloat16 as `X`"):
        result.save_onnx(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def in_half(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    sums = x.sum(0), x.sum(), x.prod(1), x.amax(0), x.cumsum(1), torch.trace(x[:2, :2])
    return (*sums, F.mse_loss(x, x * 2), F.cosine_similarity(x, x + 1), x.sum(0) * x, x.mean(0))


class InHalf(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return in_half(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_stay_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = transform(InHalf().eval(), (x,), target="onnxruntime", check=False)
    result.save_onnx(tmp_path / "net.onnx")
    expected = in_half(x)
    kind = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}[dtype]
    assert {each.type.tensor_type.elem_type for each in onnx.load(tmp_path / "net.onnx").graph.output} == {kind}
    if dtype == torch.float16:
        pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
        found = result.to_runtime("onnxruntime", threads=1)(x)
        torch.testing.assert_close(found, expected, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("which", ["result", "input `x`"])
def test_complex_numbers_are_refused_at_the_ends_alone(which: str) -> None:
    class Complex(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_complex(x) if which == "result" else x.abs()

    class Inside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(x))

    x = torch.randn(2, 2)
    given = x if which == "result" else torch.view_as_complex(x)
    result = transform(Complex().eval(), (given,), target="onnxruntime", check=False)
    with pytest.raises(CodegenError, match=f"the {which} is torch.complex64, which ONNX does not have"):
        result.to_runtime("onnxruntime", threads=1)
    pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
    inside = transform(Inside().eval(), (x,), target="onnxruntime", check=False)
    torch.testing.assert_close(inside.to_runtime("onnxruntime", threads=1)(x), Inside()(x))
