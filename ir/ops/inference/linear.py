"""Inference for matrix products, attention and embedding."""

from __future__ import annotations

from typing import Any

import torch

from ir.ops.inference.support import (
    INTEGERS,
    Attributes,
    Misfit,
    Shape,
    broadcast,
    common_device,
    float_dtype,
    knows_misfits,
    require,
    require_equal,
    require_one_dtype,
    require_rank,
)
from ir.types import Dim, OpaqueType, TensorType, Type, dims_equal, simplify_dim


@knows_misfits
def linear(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[*, in], [out, in], [out] or [1] -> [*, out]."""
    x, weight, bias = types
    _check_linear(x.shape, weight.shape, bias and bias.shape)
    require_one_dtype(types)  # fakes take a bias of another dtype
    dtype, device = float_dtype(types, torch.int64), common_device(types)
    if x.shape is None or (weight.shape is None and len(x.shape) < 2):
        return (TensorType(None, dtype, device),)  # of two vectors there is a scalar
    if weight.shape is None:
        return (TensorType((*x.shape[:-1], None), dtype, device),)
    return (TensorType((*x.shape[:-1], weight.shape[0]), dtype, device),)


def _check_linear(x: Shape | None, weight: Shape | None, bias: Shape | None) -> None:
    if weight is None:
        return
    require(len(weight) != 1)
    require_rank(weight, 2)
    out, inputs = weight
    if x is not None:
        if not x:
            raise Misfit("the input has no dimension")
        require_equal(x[-1], inputs, "the last size of the input")
    if bias is not None:
        require(len(bias) == 1)
        if bias[0] != 1:
            require_equal(bias[0], out, "the size of the bias")


@knows_misfits
def matmul(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[*, n, k] @ [*, k, m] -> [*, n, m], where a vector stands for a row on the left and a column on the right."""
    a, b = types
    require_one_dtype(types)
    shape: Shape | None = None
    if a.shape is not None and b.shape is not None:
        if not a.shape or not b.shape:
            raise Misfit("an operand is a scalar")
        require_equal(a.shape[-1], b.shape[-2] if len(b.shape) > 1 else b.shape[0], "the reduced size")
        rows: Shape = a.shape[-2:-1]
        columns: Shape = b.shape[-1:] if len(b.shape) > 1 else ()
        shape = (*broadcast([a.shape[:-2], b.shape[:-2]]), *rows, *columns)
    return (TensorType(shape, float_dtype(types), common_device(types)),)


@knows_misfits
def mm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[n, k] @ [k, m] -> [n, m]."""
    a, b = _ranked(types[0], 2), _ranked(types[1], 2)
    require_equal(a[1], b[0], "the reduced size")
    require_one_dtype(types)
    return (TensorType((a[0], b[1]), float_dtype(types), common_device(types)),)


@knows_misfits
def bmm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[b, n, k] @ [b, k, m] -> [b, n, m]."""
    a, b = _ranked(types[0], 3), _ranked(types[1], 3)
    require_equal(a[0], b[0], "the batch size")
    require_equal(a[2], b[1], "the reduced size")
    require_one_dtype(types)
    batch = a[0] if a[0] is not None else b[0]
    return (TensorType((batch, a[1], b[2]), float_dtype(types), common_device(types)),)


@knows_misfits
def addmm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """beta * input + alpha * (a @ b)."""
    return _added(types, mm(types[1:], attributes))


@knows_misfits
def baddbmm(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """beta * input + alpha * (a @ b), for batches of matrices."""
    return _added(types, bmm(types[1:], attributes))


def _added(types: tuple[Any, ...], product: tuple[Type, ...]) -> tuple[Type, ...]:
    (result,) = product
    assert type(result) is TensorType
    require_one_dtype(types)  # fakes take a sum of another dtype
    dtype, device = float_dtype(types), common_device(types)
    if types[0].shape is not None:
        assert result.shape is not None
        if len(types[0].shape) > len(result.shape):
            raise Misfit("the added tensor has more dimensions than the product")
        for have, want in zip(reversed(types[0].shape), reversed(result.shape), strict=False):
            if have != 1:
                require_equal(have, want, "a size of the added tensor")
    return (TensorType(result.shape, dtype, device),)


def einsum(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """`"ab,bc->ac"`: the sizes of the letters after the arrow, which is required."""
    (operands,) = types
    equation = str(attributes["equation"]).replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    letters = inputs.split(",")
    require(attributes["path"] is None and bool(arrow) and equation.isascii())
    require(all(part.isalpha() for part in letters) and (output.isalpha() or not output))
    require(len(set(output)) == len(output) and set(output) <= set("".join(letters)))
    require(len(letters) == len(operands) and all(type(operand) is TensorType for operand in operands))
    sizes: dict[str, Dim | None] = {}
    for part, operand in zip(letters, operands, strict=True):
        shape = operand.shape
        # diagonals (a letter twice in one operand) and broadcasting are left to the operator
        require(shape is not None and len(shape) == len(part) == len(set(part)) and None not in shape)
        for letter, size in zip(part, shape, strict=True):
            require(dims_equal(sizes.setdefault(letter, size), size))
    return (TensorType(tuple([sizes[letter] for letter in output]), float_dtype(operands), common_device(operands)),)


@knows_misfits
def attention(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[*, L, E], [*, S, E], [*, S, Ev] -> [*, L, Ev]; with `enable_gqa`, the last of * are heads of the query."""
    query, key, value, mask = types
    is_grouped = attributes["enable_gqa"]
    _require_floats(query, key, value)
    require_one_dtype((query, key, value))
    q, k, v = query.shape, key.shape, value.shape
    if q is not None and k is not None and v is not None:
        require(0 not in (*q, *k, *v))
        if min(map(len, (q, k, v))) < 2:
            raise Misfit("attention needs a rank of at least 2")
        require_equal(q[-1], k[-1], "the size of a key")
        require_equal(k[-2], v[-2], "the number of values")
        if not is_grouped:
            broadcast([q[:-2], k[:-2], v[:-2]])
        elif min(map(len, (q, k, v))) < 3:
            # without a token there is nothing to compute, and heads are not asked for
            require(None not in (*q, *k, *v))
            raise Misfit("grouped heads need a rank of at least 3")
    dtype, device = float_dtype((query, key, value)), common_device(types)
    dropout = attributes["dropout_p"]
    require(isinstance(dropout, (int, float)) and 0 <= dropout <= 1)
    if q is None or k is None or v is None:
        return (TensorType(None, dtype, device),)
    require(len(q) == len(k) == len(v))
    for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True):
        # broadcasting and grouped heads are left to the operator
        require(a is None or b is None or dims_equal(a, b))
        require(b is None or c is None or dims_equal(b, c))
    if mask is not None:
        require(not attributes["is_causal"])
        require(mask.dtype in (torch.bool, dtype))
        require(mask.shape is None or 2 <= len(mask.shape) <= len(q))
        if mask.shape is not None:
            for have, want in zip(reversed(mask.shape), reversed((*q[:-1], k[-2])), strict=False):
                require(have is None or want is None or have == 1 or dims_equal(have, want))
    # what is not known may be larger than a 1 of the query
    batch = broadcast([q[:-3], k[:-3], v[:-3]]) + q[-3:-2] if is_grouped else broadcast([q[:-2], k[:-2], v[:-2]])
    return (TensorType((*batch, q[-2], v[-1]), dtype, device),)


@knows_misfits
def multihead_attention(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[N, L, E], [N, S, K], [N, S, V] -> [N, L, E], weights [N, L, S], with `batch_first`.

    Otherwise tokens come before the batch; there may be no batch. Without `need_weights` there are no weights; not
    averaged, they are [N, heads, L, S].
    """
    query, key, value, in_proj, in_bias, out_proj, out_bias, *separate, bias_k, bias_v, padding, mask = types
    _require_floats(query, key, value)
    floats = (query, key, value, in_proj, in_bias, out_proj, out_bias, *separate, bias_k, bias_v)
    dtype, device = float_dtype(floats), common_device(types)
    width, heads = attributes["embed_dim"], attributes["num_heads"]
    require(isinstance(width, int) and isinstance(heads, int) and width > 0 and heads > 0 and width % heads == 0)
    q, k, v = query.shape, key.shape, value.shape
    require(q is not None and k is not None and v is not None and len(q) == len(k) == len(v) and len(q) in (2, 3))
    require(0 not in (*q, *k, *v))
    if attributes["batch_first"] and len(q) == 3:
        q, k, v = ((shape[1], shape[0], shape[2]) for shape in (q, k, v))
    (tokens, *batch, _), (others, *key_batch, key_width), (values, *value_batch, value_width) = q, k, v
    expected: list[tuple[TensorType | None, Shape]] = [
        (query, (*query.shape[:-1], width)),
        (out_proj, (width, width)),
        (out_bias, (width,)),
        (in_bias, (3 * width,)),
        (bias_k, (1, 1, width)),
        (bias_v, (1, 1, width)),
        (padding, (*batch, others)),
    ]
    if in_proj is not None:
        expected += [
            (in_proj, (3 * width, width)),
            (key, (*key.shape[:-1], width)),
            (value, (*value.shape[:-1], width)),
        ]
    else:
        require(all(weight is not None for weight in separate))
        expected += zip(separate, ((width, width), (width, key_width), (width, value_width)), strict=True)
    if mask is not None and mask.shape is not None:
        require(len(mask.shape) == 2)
        expected.append((mask, (tokens, others)))
    for type_, shape in expected:
        if type_ is not None:
            require(type_.shape is not None and len(type_.shape) == len(shape))
            for have, want in zip(type_.shape or (), shape, strict=True):
                require(have is not None and want is not None and dims_equal(have, want))
    for a, b in zip((others, *batch, *batch), (values, *key_batch, *value_batch), strict=True):
        require(dims_equal(a, b))
    require((bias_k is None) == (bias_v is None) and not (attributes["is_causal"] and mask is None))
    require(all(m is None or m.dtype in (torch.bool, dtype) for m in (mask, padding)))
    result = TensorType(query.shape, dtype, device)
    if not attributes["need_weights"]:
        return result, OpaqueType()
    extra = int(bias_k is not None) + int(bool(attributes["add_zero_attn"]))
    attended = simplify_dim(others + extra) if extra else others
    by_head = () if attributes["average_attn_weights"] else (heads,)
    return result, TensorType((*batch, *by_head, tokens, attended), dtype, device)


def _require_floats(*types: TensorType) -> None:
    """Refuse attention to integers, which has a softmax between two products, unless there is nothing to attend to.

    Raises:
        Misfit: when all are integers or bools.
    """
    is_empty = any(type_.shape is None or None in type_.shape or 0 in type_.shape for type_ in types)
    if not is_empty and all(type_.dtype in INTEGERS for type_ in types):
        raise Misfit(f"attention needs floats, not {types[0].dtype}")


def embedding(types: tuple[Any, ...], attributes: Attributes) -> tuple[Type, ...]:
    """[n, width], indices [*] -> [*, width]."""
    weight, indices = types
    require(indices.dtype in (torch.int64, torch.int32, None))
    if weight.shape is not None:
        require(len(weight.shape) == 2)
    device = common_device(types)
    if indices.shape is None:
        return (TensorType(None, weight.dtype, device),)
    width = None if weight.shape is None else weight.shape[1]
    return (TensorType((*indices.shape, width), weight.dtype, device),)


def _ranked(type_: TensorType, rank: int) -> Shape:
    if type_.shape is None:
        return (None,) * rank
    require_rank(type_.shape, rank)
    return type_.shape
