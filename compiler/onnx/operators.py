"""How operators are written in ONNX where PyTorch's exporter is not right: it decomposes them, or errs.

Some stand in the trace as operators of the library `graphwright`, which the exporter does not look into.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from compiler.extras import import_extra
from compiler.onnx.formulas import FORMULAS
from compiler.onnx.scatter import SCATTERS
from ir.caches import cached
from ir.errors import CodegenError

_SCHEMAS = {
    "quantize": "(Tensor x, Tensor scale, Tensor zero_point, int? axis) -> Tensor",
    "dequantize": "(Tensor q, Tensor scale, Tensor zero_point, int? axis) -> Tensor",
    "global_average_pool": "(Tensor x) -> Tensor",
}


@cached()
def _library() -> Any:
    """Register the operators; they are traced, and never run."""
    library = torch.library.Library("graphwright", "DEF")
    fakes = {
        "quantize": lambda x, scale, zero_point, axis: torch.empty_like(x, dtype=zero_point.dtype),
        "dequantize": lambda q, scale, zero_point, axis: torch.empty_like(q, dtype=scale.dtype),
        "global_average_pool": lambda x: x.new_empty([*x.shape[:2], *[1] * (x.dim() - 2)]),
    }
    for name, schema in _SCHEMAS.items():
        library.define(f"{name}{schema}")
        library.impl(name, fakes[name], "CompositeExplicitAutograd")
    return library


def kernels() -> dict[str, Callable[..., Any]]:
    """Return what stands in the trace for operators of a program: operator -> function of operands and attributes."""
    _library()
    ops: Any = torch.ops.graphwright

    def quantize(x: Any, scale: Any, zero_point: Any, **attributes: Any) -> Any:
        # both are of one type in ONNX; from a narrower one the conversion is exact
        q = ops.quantize(x.to(scale.dtype) if x.dtype.itemsize < 4 else x, scale, zero_point, attributes["axis"])
        low, high = attributes["quant_min"], attributes["quant_max"]
        return q if low is None and high is None else torch.clamp(q, low, high)

    def dequantize(q: Any, scale: Any, zero_point: Any, **attributes: Any) -> Any:
        x = ops.dequantize(q, scale, zero_point, attributes["axis"])
        dtype = attributes["dtype"]
        return x if dtype in (None, scale.dtype) else x.to(dtype)

    return {
        **FORMULAS,
        **SCATTERS,
        "quant.quantize": quantize,
        "quant.dequantize": dequantize,
        **{f"aten.adaptive_avg_pool{rank}d": partial(_adaptive_avg_pool, rank) for rank in (1, 2, 3)},
        **{f"aten.adaptive_max_pool{rank}d": partial(_adaptive_max_pool, rank) for rank in (1, 2, 3)},
        **{f"aten.conv{rank}d": partial(_conv, rank) for rank in (1, 2, 3)},
        "aten.amax": partial(_of_dims, torch.amax),
        "aten.amin": partial(_of_dims, torch.amin),
        "aten.pad": _pad,
        "aten.hstack": lambda *tensors: _stacked(1, tensors),
        "aten.vstack": lambda *tensors: _stacked(2, tensors),
        "aten.dstack": lambda *tensors: _stacked(3, tensors),
        **{
            f"aten.{name}{overload}": partial(_antialiased, name)
            for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
            for overload in ("", ".vec")
        },
        "aten.avg_pool1d": _avg_pool,
        "aten.avg_pool2d": _avg_pool,
        "aten.avg_pool3d": _avg_pool,
        "aten.max_pool1d": _max_pool,
        "aten.max_pool2d": _max_pool,
        "aten.max_pool3d": _max_pool,
    }


def _of_dims(reduction: Callable[..., Any], x: Any, *, dim: Sequence[int], keepdim: bool) -> Any:
    """Name the dimensions where no name means all of them."""
    return reduction(x, list(dim) or list(range(x.dim())), keepdim) if x.dim() else x.clone()


def _stacked(rank: int, tensors: Sequence[Any]) -> Any:
    """Write a stack as a concatenation: the exporter maps a function over a sequence, which takes no floats."""
    widened = []
    for x in tensors:
        x = x.reshape(1) if x.dim() == 0 else x
        x = x[None] if x.dim() == 1 and rank > 1 else x
        widened.append(x[..., None] if x.dim() == 2 and rank > 2 else x)
    return torch.cat(widened, (min(1, widened[0].dim() - 1), 0, 2)[rank - 1])


def _conv(rank: int, x: Any, weight: Any, bias: Any, *, stride: Any, padding: Any, **attributes: Any) -> Any:
    """Write a kernel of one cell with strides and a padding as slices of the padded map.

    OpenVINO moves such strides in front of what is before, and forgets the padding.
    """
    conv = getattr(torch.ops.aten, f"conv{rank}d")
    if any(size != 1 for size in weight.shape[2:]) or isinstance(padding, str):
        overload = conv.padding if isinstance(padding, str) else conv.default
        return overload(x, weight, bias, stride, padding, **attributes)
    strides, pads = (list(each) * (rank if len(each) == 1 else 1) for each in (stride, padding))
    if any(each > 1 for each in strides) and any(pads):
        x = torch.ops.aten.constant_pad_nd.default(x, [each for pad in reversed(pads) for each in (pad, pad)])
        for dim, step in enumerate(strides, x.dim() - rank):
            x = torch.ops.aten.slice.Tensor(x, dim, None, None, step)
        strides, pads = [1] * rank, [0] * rank
    return conv.default(x, weight, bias, strides, pads, **attributes)


def _adaptive_avg_pool(rank: int, x: Any, *, output_size: Sequence[Any]) -> Any:
    """Average over one dimension after the other: a mean over a box is a mean of means."""
    if rank == 2 and tuple(output_size) == (1, 1) and x.dim() == 4:
        return torch.ops.graphwright.global_average_pool(x)
    if rank < 3 and all(type(size) is int for size in x.shape[-rank:]):
        return getattr(torch.ops.aten, f"adaptive_avg_pool{rank}d").default(x, list(output_size))
    for dim, windows in _adaptive_windows(x, output_size):
        x = torch.cat([x.narrow(dim, *window).mean(dim, keepdim=True) for window in windows], dim)
    return x


def _adaptive_max_pool(rank: int, x: Any, *, output_size: Sequence[Any]) -> tuple[Any, Any]:
    """Return the maxima of windows, and their places; the last dimension first, so that the first of ties is taken."""
    sizes = x.shape[-rank:]
    if all(type(size) is int and size % count == 0 for size, count in zip(sizes, output_size, strict=True)):
        values, places = getattr(torch.ops.aten, f"adaptive_max_pool{rank}d").default(x, list(output_size))
        return values, places
    places = sum(
        torch.arange(size).reshape([-1, *[1] * (rank - 1 - number)]) * math.prod(sizes[number + 1 :])
        for number, size in enumerate(sizes)
    ).expand(x.shape)
    for dim, windows in reversed(_adaptive_windows(x, output_size)):
        found = [(x.narrow(dim, *window).max(dim, keepdim=True), places.narrow(dim, *window)) for window in windows]
        x = torch.cat([most.values for most, _ in found], dim)
        places = torch.cat([each.gather(dim, most.indices) for most, each in found], dim)
    return x, places


def _adaptive_windows(x: Any, output_size: Sequence[Any]) -> list[tuple[int, list[tuple[Any, Any]]]]:
    """Return the starts and lengths of an adaptive pool's windows, for each dimension that it changes."""
    found = []
    for dim, count in enumerate(output_size, x.dim() - len(output_size)):
        size = x.shape[dim]
        if type(count) is int:
            starts = [number * size // count for number in range(count)]
            ends = [-(-(number + 1) * size // count) for number in range(count)]
            found.append((dim, [(start, end - start) for start, end in zip(starts, ends, strict=True)]))
        elif count is not size and count.node.expr != size.node.expr:
            raise CodegenError(
                f"an adaptive pool to a dynamic size ({count}) cannot be written",
                remedy="transform the model with fixed sizes in place of the dynamic ones (no `dynamic_shapes=`)",
            )
    return found


def _pad(x: Any, *, pad: Sequence[Any], mode: str, value: float | None) -> Any:
    """Wrap around by slices, which every engine has."""
    if mode != "circular":
        return torch.ops.aten.pad.default(x, list(pad), mode, value)
    for place, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = x.dim() - 1 - place
        start = max(0, -before)
        x = x.narrow(dim, start, x.shape[dim] - start - max(0, -after))
        parts = [x.narrow(dim, x.shape[dim] - before, before)] if before > 0 else []
        parts += [x, x.narrow(dim, 0, after)] if after > 0 else [x]
        x = torch.cat(parts, dim)
    return x


def _antialiased(name: str, x: Any, *, output_size: Sequence[int] | None, align_corners: bool, **scales: Any) -> Any:
    """Resize by a product with a matrix for rows and one for columns, which the operator itself gives.

    Engines have no antialiasing, or compute it otherwise with `align_corners`, with factors, and down to one column.
    """
    sizes = x.shape[-2:]
    if not all(type(size) is int for size in sizes) or not x.is_floating_point():
        what = "integers" if not x.is_floating_point() else "a dynamic size"
        raise CodegenError(
            f"aten.{name} resizes {what} with antialiasing, which cannot be written",
            remedy="resize before the model, or without antialiasing",
        )
    factors = scales.get("scale_factors") or [scales.get("scales_h"), scales.get("scales_w")]
    if output_size is None:
        output_size = [int(size * factor) for size, factor in zip(sizes, factors, strict=True)]
    with disable_current_modes():
        of_rows, of_columns = _resizing(name, sizes, output_size, align_corners, factors)
    return torch.tensor(of_rows, dtype=x.dtype) @ (x @ torch.tensor(of_columns, dtype=x.dtype))


def _resizing(
    name: str, sizes: Sequence[int], output_size: Sequence[int], align_corners: bool, factors: Sequence[float | None]
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the matrices [new rows, rows] and [columns, new columns] of a resize that is a product with both."""
    kernel = getattr(torch.ops.aten, name).default
    (rows, columns), (height, width) = sizes, output_size
    identities = (torch.eye(size, dtype=torch.float64)[None, None] for size in (rows, columns))
    of_rows = kernel(next(identities), [height, rows], align_corners, factors[0], None)[0, 0]
    of_columns = kernel(next(identities), [columns, width], align_corners, None, factors[1])[0, 0]
    probe = torch.rand(1, 2, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = kernel(probe, [height, width], align_corners, *factors)
    if not torch.allclose(found, of_rows @ probe @ of_columns):
        # PyTorch 2.13 takes [n, c, h, 1] for channels_last on the way
        raise CodegenError(
            f"aten.{name} from {rows} x {columns} to {height} x {width} depends on the strides in PyTorch",
            remedy="resize the rows and the columns one after the other",
        )
    return of_rows.tolist(), of_columns.tolist()


def _max_pool(
    x: Any,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Any:
    """Return the maxima of windows, without `ceil_mode` where OpenVINO has it otherwise.

    It adds a window in the padding alone, which PyTorch and the specification leave out, and takes no map that is
    smaller than a window.
    """
    rank = len(kernel_size)
    pool = getattr(torch.ops.aten, f"max_pool{rank}d").default
    stride = list(stride) or list(kernel_size)
    sizes, padding, dilation = x.shape[-rank:], list(padding), list(dilation)
    is_small = any(
        type(n) is int and n + 2 * p < d * (k - 1) + 1
        for n, p, d, k in zip(sizes, padding, dilation, kernel_size, strict=True)
    )
    if not ceil_mode or not (is_small or windows_in_padding(sizes, kernel_size, stride, padding, dilation)):
        return pool(x, list(kernel_size), stride, padding, dilation, ceil_mode)
    whole = pool(x, list(kernel_size), stride, padding, dilation, True).shape[-rank:]
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(whole, stride, dilation, kernel_size, strict=True)]
    ends = [max(r - n - p, p) for r, n, p in zip(reach, sizes, padding, strict=True)]
    if ends == padding:
        return pool(x, list(kernel_size), stride, padding, dilation, False)
    around = [each for pair in zip(reversed(padding), reversed(ends), strict=True) for each in pair]
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = torch.nn.functional.pad(x, around, value=lowest)
    return pool(padded, list(kernel_size), stride, [0] * rank, dilation, False)


def windows_in_padding(
    sizes: Sequence[Any],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Return whether rounding up adds a window that lies in the padding alone, in a dimension of static size."""
    for size, k, s, p, d in zip(sizes, kernel_size, stride, padding, dilation, strict=True):
        if type(size) is int and -(-(size + 2 * p - d * (k - 1) - 1) // s) * s >= size + p:
            return True
    return False


def _avg_pool(
    x: Any,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Any:
    """Return the averages of windows; windows that reach beyond the padding count only what is inside of it.

    Engines count the cells beyond as well, or not, each in its own way: those are zeros here, and the average is
    divided by the share of cells that count.
    """
    rank = len(kernel_size)
    pool = getattr(torch.ops.aten, f"avg_pool{rank}d").default
    stride = list(stride) or list(kernel_size)
    kernel, padding = list(kernel_size), list(padding)
    if divisor_override is None and not ceil_mode:
        return pool(x, kernel, stride, padding, False, count_include_pad)
    sizes = x.shape[-rank:]
    whole = pool(x, kernel, stride, padding, ceil_mode, count_include_pad).shape[-rank:]
    # cells beyond the padding; of a dynamic size, as many as there can be
    ends = [
        max((w - 1) * s + k - n - 2 * p, 0) if type(n) is int else (s - 1 if ceil_mode else 0)
        for n, w, s, k, p in zip(sizes, whole, stride, kernel, padding, strict=True)
    ]
    if divisor_override is None and not any(ends):
        return pool(x, kernel, stride, padding, False, count_include_pad)
    around = [each for p, end in zip(reversed(padding), reversed(ends), strict=True) for each in (p, p + end)]
    pooled = pool(torch.nn.functional.pad(x, around), kernel, stride, [0] * rank, False, True)
    if divisor_override is not None:
        return pooled * (math.prod(kernel) / divisor_override)
    inside = x.new_ones([1, 1, *x.shape[-rank:]])
    if count_include_pad:
        inside = torch.nn.functional.pad(inside, [each for p in reversed(padding) for each in (p, p)], value=1.0)
        around = [each for end in reversed(ends) for each in (0, end)]
    share = pool(torch.nn.functional.pad(inside, around), kernel, stride, [0] * rank, False, True)
    return pooled / (share if x.dim() == rank + 2 else share[0])


def translations() -> Mapping[Any, Callable[..., Any]]:
    """Return operator of PyTorch -> the function that writes it.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
    """
    _library()
    op = import_extra("onnxscript").opset20
    ours: Any = torch.ops.graphwright

    # the exporter reads the signatures
    def quantize(x: Any, scale: Any, zero_point: Any, axis: int | None = None) -> Any:
        return op.QuantizeLinear(x, scale, zero_point, axis=1 if axis is None else axis)

    def dequantize(q: Any, scale: Any, zero_point: Any, axis: int | None = None) -> Any:
        return op.DequantizeLinear(q, scale, zero_point, axis=1 if axis is None else axis)

    def global_average_pool(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        return _attention(op, query, key, value, attn_mask, is_causal, scale, enable_gqa)

    # of sizes; the exporter's own rounds to zero
    def floordiv(self: Any, other: Any) -> Any:
        return op.Div(op.Sub(self, op.Mod(self, other)), other)

    return {
        operator.floordiv: floordiv,
        ours.quantize.default: quantize,
        ours.dequantize.default: dequantize,
        ours.global_average_pool.default: global_average_pool,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
    }


def _attention(
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Any:
    """softmax(q·kᵀ·scale + mask)·v, as PyTorch computes it: a row whose keys are all masked gives 0.

    The exporter's own function gives such a row the mean of all values.
    """
    rank = len(key.shape)
    causal = _causal(op, query, key) if is_causal else None  # what is repeated has no known shape
    if enable_gqa and query.shape[1] != key.shape[1]:
        key, value = (_repeated(op, each, query.shape[1]) for each in (key, value))
    perm = [*range(rank - 2), rank - 1, rank - 2]
    scores = op.MatMul(query, op.Transpose(key, perm=perm))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if factor != 1:
        scores = op.Mul(scores, op.CastLike(op.Constant(value_float=factor), query))
    lowest = op.CastLike(op.Constant(value_float=-math.inf), query)
    zero = op.CastLike(op.Constant(value_float=0.0), query)
    if causal is not None:
        scores = op.Where(causal, scores, lowest)
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if attn_mask.dtype == import_extra("onnx_ir").DataType.BOOL:
        kept, scores = attn_mask, op.Where(attn_mask, scores, lowest)
    else:
        kept, scores = op.Not(op.Equal(attn_mask, lowest)), op.Add(scores, attn_mask)
    kept = kept if causal is None else op.And(kept, causal)
    return op.MatMul(op.Where(kept, op.Softmax(scores, axis=-1), zero), value)


def _causal(op: Any, query: Any, key: Any) -> Any:
    """Return the mask [queries, keys] of what each query may see: the keys up to its own number."""

    def numbers(value: Any) -> Any:
        rank = len(value.shape)
        size = op.Squeeze(op.Shape(value, start=rank - 2, end=rank - 1))
        return op.Range(op.Constant(value_int=0), size, op.Constant(value_int=1))

    return op.GreaterOrEqual(op.Unsqueeze(numbers(query), op.Constant(value_ints=[1])), numbers(key))


def _repeated(op: Any, value: Any, heads: int) -> Any:
    """Return [batch, heads, sequence, features] of keys or values with fewer heads, each repeated."""
    times = heads // value.shape[1]
    wide = op.Expand(op.Unsqueeze(value, op.Constant(value_ints=[2])), op.Constant(value_ints=[1, 1, times, 1, 1]))
    return op.Reshape(wide, op.Constant(value_ints=[0, heads, -1, value.shape[-1]]))
