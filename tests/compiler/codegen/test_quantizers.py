"""Quantized values in emitted modules: quantizers as children, the bits of the program, and a life as any module."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from compiler.codegen import Emitted, emit
from compiler.emitted.quantization import Quantizer, fake_quantize
from fuzz.calls.kernels import ends_the_process
from fuzz.programs.observation import quiet
from fuzz.programs.strategy import input_tensors
from fuzz.strategies import programs
from ir.errors import EvaluationError, GraphwrightError
from ir.evaluate import evaluate
from ir.program import Program
from ir.quant.kernels import dequantize, quantize
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.verify import verify

I8, U8 = torch.int8, torch.uint8

NET = """
program "Net" {
  parameter %conv1.weight : f32[4, 3, 3, 3] requires_grad
  parameter %conv1.bias : f32[4] requires_grad
  parameter %conv2.weight : f32[2, 4, 1, 1] requires_grad
  buffer %conv1.input_quantizer.scale : f32[]
  buffer %conv1.input_quantizer.zero_point : u8[]
  buffer %conv1.weight_quantizer.scale : f32[4]
  buffer %conv1.weight_quantizer.zero_point : i8[4]
  buffer %conv1.output_quantizer.scale : f32[]
  buffer %conv1.output_quantizer.zero_point : u8[]
  modules train "", "conv1", "conv2"
  graph(%x : f32[2, 3, 6, 6]) {
    %q = quant.quantize(%x, %conv1.input_quantizer.scale, %conv1.input_quantizer.zero_point) {dtype=torch.uint8}
      : u8[2, 3, 6, 6]
    %y = fused.conv_bn_act(%q, %conv1.input_quantizer.scale, %conv1.input_quantizer.zero_point, %conv1.weight,
      %conv1.weight_quantizer.scale, %conv1.weight_quantizer.zero_point, %conv1.bias)
      {kind="conv_bn_act", parts=["", "", "", "conv", "act"]} : f32[2, 4, 4, 4]
      body(%input : u8[2, 3, 6, 6], %scale : f32[], %zero : u8[], %weight : f32[4, 3, 3, 3], %scales : f32[4],
        %zeros : i8[4], %bias : f32[4]) {
        %a = quant.dequantize(%input, %scale, %zero) : f32[2, 3, 6, 6]
        %w = quant.quantize(%weight, %scales, %zeros) {axis=0, quant_min=-127} : i8[4, 3, 3, 3]
        %b = quant.dequantize(%w, %scales, %zeros) {axis=0} : f32[4, 3, 3, 3]
        %c = aten.conv2d(%a, %b, %bias) : f32[2, 4, 4, 4]
        %d = aten.relu(%c) : f32[2, 4, 4, 4]
        return %d
      }
    %p = quant.quantize(%y, %conv1.output_quantizer.scale, %conv1.output_quantizer.zero_point) {dtype=torch.uint8}
      : u8[2, 4, 4, 4]
    %m = aten.max_pool2d(%p) {kernel_size=[2, 2], stride=[2, 2]} : u8[2, 4, 2, 2]
    %z = fused.conv(%m, %conv1.output_quantizer.scale, %conv1.output_quantizer.zero_point, %conv2.weight)
      {kind="conv", parts=["", "conv"]} : f32[2, 2, 2, 2]
      body(%input : u8[2, 4, 2, 2], %scale : f32[], %zero : u8[], %weight : f32[2, 4, 1, 1]) {
        %a = quant.dequantize(%input, %scale, %zero) : f32[2, 4, 2, 2]
        %b = aten.conv2d(%a, %weight, None) : f32[2, 2, 2, 2]
        return %b
      }
    %s = quant.dequantize(%p, %conv1.output_quantizer.scale, %conv1.output_quantizer.zero_point) : f32[2, 4, 4, 4]
    return %z, %s
  }
}
"""


def with_data(text: str) -> Program:
    program = parse_program(" ".join(text.split()))
    generator = torch.Generator().manual_seed(0)
    for name, weight in program.weights.items():
        shape = [d for d in weight.type.shape or () if isinstance(d, int)]
        if name.endswith("scale"):
            weight.data = torch.rand(shape, generator=generator) / 32 + 1 / 64
        elif name.endswith("zero_point"):
            dtype = weight.type.dtype
            assert dtype is not None
            weight.data = torch.full(shape, 100 if dtype is U8 and "input" in name else 0, dtype=dtype)
        else:
            weight.data = torch.randn(shape, generator=generator) / 4
    verify(program)
    return program


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def emitted() -> Emitted:
    return emit(with_data(NET))


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_bits_are_those_of_the_program(emitted: Emitted) -> None:
    assert same(emitted.module(X), evaluate(with_data(NET), [X]))


def test_quantizers_are_children_of_what_owns_the_value(emitted: Emitted) -> None:
    shown = [line.strip() for line in str(emitted.module).splitlines()]
    at = shown.index("(conv1): FusedConvBNAct(")
    assert shown[at + 1 : at + 6] == [
        "(input_quantizer): Quantizer(uint8, scale=0.02348, zero_point=100)",
        "(weight_quantizer): Quantizer(int8 in [-127, 127], 4 scales along axis 0)",
        "(conv): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))",
        "(act): ReLU()",
        "(output_quantizer): Quantizer(uint8, scale=0.03982, zero_point=0)",
    ]
    code = str(emitted.module.get_submodule("conv1").code)
    assert "input_quantizer = self.input_quantizer(" in code
    assert "weight_quantizer = self.weight_quantizer(conv_weight)" in code
    assert "conv2d = torch.conv2d(input_quantizer, weight_quantizer, conv_bias)" in code
    # the producer has the quantizer of a value that is read twice, behind a move too, and there are no integers
    assert "output_quantizer = self.output_quantizer(act)" in code
    forward = emitted.module.code
    assert "quantizer" not in forward
    assert "ir_quant" not in forward and "dtype" not in forward


def test_keys_and_checkpoints(emitted: Emitted) -> None:
    module = emitted.module
    names = {name for name in module.state_dict() if "quantizer" in name}
    assert names == {name for name in with_data(NET).weights if "quantizer" in name}
    checkpoint = {
        f"{name}.weight": torch.ones(shape) for name, shape in (("conv1", (4, 3, 3, 3)), ("conv2", (2, 4, 1, 1)))
    }
    converted = emitted.parameter_map.convert({**checkpoint, "conv1.bias": torch.ones(4)})
    module.load_state_dict(converted)  # of a model that has no scales: those that are there stay
    assert torch.equal(module.conv1.conv.weight, torch.ones(4, 3, 3, 3))
    changed = {**module.state_dict(), "conv1.input_quantizer.scale": torch.tensor(0.5)}
    module.load_state_dict(changed)
    assert module.conv1.input_quantizer.scale.item() == 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(emitted: Emitted, copied: Any) -> None:
    other = copied(emitted.module)
    assert same(other(X), emitted.module(X))
    other.conv1.input_quantizer.scale.fill_(3.0)
    assert not same(other(X), emitted.module(X))


def test_conversion(emitted: Emitted) -> None:
    module = emitted.module.double()
    assert module.conv1.weight_quantizer.scale.dtype is torch.float64
    assert module.conv1.weight_quantizer.zero_point.dtype is I8
    assert all(result.dtype is torch.float64 for result in module(X.double()))
    half = emit(with_data(NET)).module.to(torch.bfloat16)
    assert all(result.dtype is torch.bfloat16 for result in half(X.bfloat16()))


def test_export_and_compile(emitted: Emitted) -> None:
    expected = emitted.module(X)
    assert same(torch.export.export(emitted.module, (X,)).module()(X), expected)
    assert same(torch.compile(emitted.module, fullgraph=True, backend="aot_eager")(X), expected)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_onnx_has_the_pairs_of_the_program(emitted: Emitted) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` has PyTorch's exporter")
    program = torch.onnx.export(emitted.module.eval(), (X,), dynamo=True, verbose=False)
    assert program is not None
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 3


def test_training_passes_gradients_through_the_rounding(emitted: Emitted) -> None:
    module = emitted.module.train()
    x = X.clone().requires_grad_()
    module(x)[0].sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


def test_gradients_of_a_quantizer() -> None:
    quantizer = Quantizer(U8)
    quantizer.scale.fill_(0.5)
    quantizer.zero_point.fill_(10)
    x = torch.tensor([-6.0, -5.0, -4.9, 0.0, 0.3, 100.0, 122.5, 123.0], requires_grad=True)
    quantizer.scale.requires_grad_()
    quantizer(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    # the error of rounding in units of the scale, and the bounds -10 and 245
    expected = sum([-10, 0, -10 + 9.8, 0, 1 - 0.6, 0, 0, 245])
    assert quantizer.scale.grad is not None
    torch.testing.assert_close(quantizer.scale.grad, torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_fake_quantization_has_the_bits_of_the_reference(dtype: torch.dtype, axis: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    for integer in (I8, U8):
        limits = torch.iinfo(integer)
        x = torch.randn(5, 6, 200, generator=generator, dtype=torch.float64).to(dtype) * 4
        shape = () if axis is None else (x.shape[axis],)
        scale = (torch.rand(shape, generator=generator) / 8 + 1 / 64).to(dtype)
        zero = torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(integer)
        ties = torch.randint(-300, 300, (5, 200), generator=generator).to(dtype) + 0.5
        x[:, 1] = ties * (scale if axis is None else scale[0])
        x[:, 2, :7] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 0.0, -0.0], dtype=dtype)
        for low, high in ((None, None), (limits.min + 3, limits.min + 90)):
            q = quantize(x, scale, zero, dtype=integer, axis=axis, quant_min=low, quant_max=high)
            expected = dequantize(q, scale, zero, axis=axis, dtype=dtype)
            found = fake_quantize(x, scale, zero, integer, axis, low, high)
            assert torch.equal(found, expected)
            assert torch.equal(found.signbit(), expected.signbit())


FORMS = {
    "integers are returned": ("%q", True),
    "integers are added": ("%q, %t", True),
    "another scale": ("%d", True),
    "one scale": ("%e", False),
    "behind moves and a concatenation": ("%g", False),
}


@pytest.mark.parametrize(("returned", "in_integers"), FORMS.values(), ids=FORMS)
def test_integers_that_go_elsewhere_stay_integers(returned: str, in_integers: bool) -> None:
    program = with_data(
        f"""program "p" {{
        buffer %a.scale : f32[] buffer %a.zero_point : i8[] buffer %b.scale : f32[]
        graph(%x : f32[2, 3]) {{
          %q = quant.quantize(%x, %a.scale, %a.zero_point) : i8[2, 3]
          %t = aten.add.Tensor(%q, %q) : i8[2, 3]
          %d = quant.dequantize(%q, %b.scale, %a.zero_point) : f32[2, 3]
          %e = quant.dequantize(%q, %a.scale, %a.zero_point) : f32[2, 3]
          %r = aten.permute(%q) {{dims=[1, 0]}} : i8[3, 2]
          %c = aten.cat([%r, %r]) : i8[6, 2]
          %g = quant.dequantize(%c, %a.scale, %a.zero_point) : f32[6, 2]
          return {returned}
        }} }}"""
    )
    for op in reversed(list(program.graph.operations())):  # what is not asked for is not there
        if all(result.is_unused for result in op.results):
            program.graph.erase(op)
    module = emit(program).module
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    results = module(x)
    assert same(results if isinstance(results, tuple) else (results,), evaluate(program, [x]))
    assert ("ir_quant_kernels" in module.code) == in_integers
    assert isinstance(getattr(module, "a", None), Quantizer) != in_integers


MOVES = ("aten.reshape", "aten.permute", "aten.cat", "aten.max_pool2d", "aten.relu", "aten.linear")
ASKED = ("quant.quantize", "quant.dequantize", "quant.dequantize", *MOVES)


@settings(max_examples=max(30, settings().max_examples // 2))
@given(data=st.data())
def test_generated_programs(data: st.DataObject) -> None:
    program = data.draw(programs(8, operators=ASKED))
    if not any(op.name.startswith("quant.") for op in program.graph.operations()) or ends_the_process(program):
        reject()
    inputs = data.draw(input_tensors(program))
    try:
        module = emit(program).module
        expected = evaluate(program, inputs)
    except EvaluationError:
        reject()
    except GraphwrightError as error:
        raise AssertionError(print_program(program)) from error
    with quiet(), torch.no_grad():
        found = module(*inputs)
    for a, b in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_a_quantizer_of_a_value_that_is_read_as_it_is_too_is_called_in_forward() -> None:
    module = emit(with_data(NET.replace("return %z, %s", "return %z, %s, %y"))).module
    assert module.code.count("self.conv1.output_quantizer(") == 1
    assert "output_quantizer" not in str(module.get_submodule("conv1").code)


ADD = """
program "Add" {
  buffer %add.input_quantizer.scale : f32[]
  buffer %add.input_quantizer.zero_point : i8[]
  graph(%x : f32[2, 3], %y : f32[2, 3]) {
    %q = quant.quantize(%x, %add.input_quantizer.scale, %add.input_quantizer.zero_point) : i8[2, 3]
    %z = fused.add(%q, %add.input_quantizer.scale, %add.input_quantizer.zero_point, %y)
      {kind="add", parts=["", ""]} : f32[2, 3]
      body(%input : i8[2, 3], %scale : f32[], %zero : i8[], %other : f32[2, 3]) {
        %a = quant.dequantize(%input, %scale, %zero) : f32[2, 3]
        %b = aten.add.Tensor(%a, %other) : f32[2, 3]
        return %b
      }
    return %z
  }
}
"""


def test_a_region_without_layers_stands_where_its_quantizers_say() -> None:
    module = emit(with_data(ADD)).module
    assert [name for name, _ in module.named_children()] == ["add", "_guard"]
    assert list(module.state_dict()) == ["add.input_quantizer.scale", "add.input_quantizer.zero_point"]
    x, y = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    assert same([module(x, y)], evaluate(with_data(ADD), [x, y]))
