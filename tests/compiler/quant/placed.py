"""Small placed programs, as text."""

from __future__ import annotations

import torch

from ir.program import Program
from ir.text.parser import parse_program

TWO_CONVOLUTIONS = """program "Net" {
  parameter %a.weight : f32[6, 3, 3, 3] requires_grad
  parameter %a.bias : f32[6] requires_grad
  parameter %b.weight : f32[4, 6, 1, 1] requires_grad
  parameter %b.bias : f32[4] requires_grad
  buffer %a.input_quantizer.scale : f32[]
  buffer %a.input_quantizer.zero_point : INT[]
  buffer %a.weight_quantizer.scale : f32[6]
  buffer %a.weight_quantizer.zero_point : i8[6]
  buffer %b.input_quantizer.scale : f32[]
  buffer %b.input_quantizer.zero_point : INT[]
  buffer %b.weight_quantizer.scale : f32[4]
  buffer %b.weight_quantizer.zero_point : i8[4]
  graph(%x : f32[N, 3, 6, 6]) {
    %q = quant.quantize(%x, %a.input_quantizer.scale, %a.input_quantizer.zero_point) {dtype=torch.DTYPE} : INT[N, 3, 6, 6]
    %y = fused.conv_act(%q, %a.input_quantizer.scale, %a.input_quantizer.zero_point, %a.weight, %a.weight_quantizer.scale, %a.weight_quantizer.zero_point, %a.bias) {kind="conv_act"} : f32[N, 6, 4, 4]
      body(%i : INT[N, 3, 6, 6], %is : f32[], %iz : INT[], %w : f32[6, 3, 3, 3], %ws : f32[6], %wz : i8[6], %bias : f32[6]) {
        %di = quant.dequantize(%i, %is, %iz) : f32[N, 3, 6, 6]
        %qw = quant.quantize(%w, %ws, %wz) {dtype=torch.int8, axis=0} : i8[6, 3, 3, 3]
        %dw = quant.dequantize(%qw, %ws, %wz) {axis=0} : f32[6, 3, 3, 3]
        %c = aten.conv2d(%di, %dw, %bias) : f32[N, 6, 4, 4]
        %r = aten.relu(%c) : f32[N, 6, 4, 4]
        return %r
      }
    %q2 = quant.quantize(%y, %b.input_quantizer.scale, %b.input_quantizer.zero_point) {dtype=torch.DTYPE} : INT[N, 6, 4, 4]
    %z = fused.conv(%q2, %b.input_quantizer.scale, %b.input_quantizer.zero_point, %b.weight, %b.weight_quantizer.scale, %b.weight_quantizer.zero_point, %b.bias) {kind="conv"} : f32[N, 4, 4, 4]
      body(%j : INT[N, 6, 4, 4], %js : f32[], %jz : INT[], %v : f32[4, 6, 1, 1], %vs : f32[4], %vz : i8[4], %vbias : f32[4]) {
        %dj = quant.dequantize(%j, %js, %jz) : f32[N, 6, 4, 4]
        %qv = quant.quantize(%v, %vs, %vz) {dtype=torch.int8, axis=0} : i8[4, 6, 1, 1]
        %dv = quant.dequantize(%qv, %vs, %vz) {axis=0} : f32[4, 6, 1, 1]
        %d = aten.conv2d(%dj, %dv, %vbias) : f32[N, 4, 4, 4]
        return %d
      }
    return %z
  }
}
"""  # noqa: E501 - the text form has lines of its own length


def two_convolutions(*, integers: str = "u8", batch: int = 8, seed: int = 0) -> Program:
    """conv, relu, conv; inputs and weights quantized. The activations are `u8` or `i8`, the ranges not set."""
    program = parse_program(
        TWO_CONVOLUTIONS.replace("DTYPE", "uint8" if integers == "u8" else "int8")
        .replace("INT", integers)
        .replace("[N,", f"[{batch},")
    )
    generator = torch.Generator().manual_seed(seed)
    for weight in program.weights.values():
        shape, dtype = weight.type.shape, weight.type.dtype
        if "quantizer" in weight.name:
            weight.data = (
                torch.ones(shape, dtype=dtype) if weight.name.endswith("scale") else torch.zeros(shape, dtype=dtype)
            )
        else:
            data = torch.randn(shape, generator=generator) * 0.3
            weight.data = torch.nn.Parameter(data)
    return program
