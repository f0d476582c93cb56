"""Operators of our own: modules that an FX graph keeps as a leaf, and calls whose meaning only Python knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ir.attributes import ATTRIBUTE_TYPES, Attribute
from ir.errors import InferenceError, InputError, ParseError
from ir.opdef import Facts, OpDef, Param, ParamKind, Trait, register_opdef
from ir.ops.inference import linear
from ir.ops.inference.support import with_fallback
from ir.text.literals import format_attribute, parse_attribute, parse_type
from ir.types import Type


def _multihead_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    num_heads: int,
    embed_dim: int,
    dropout: float,
    batch_first: bool,
    add_zero_attn: bool,
    need_weights: bool,
    average_attn_weights: bool,
    is_causal: bool,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute what the forward method of `nn.MultiheadAttention` does outside of its fast path."""
    transposed = batch_first and query.dim() == 3
    if transposed:
        # PyTorch chooses the projection by whether the operands are one object, so a transposed one must stay one
        seen: dict[int, Tensor] = {}
        query, key, value = (seen.setdefault(id(x), x.transpose(1, 0)) for x in (query, key, value))
    output, weights = F.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim,
        num_heads,
        in_proj_weight,
        in_proj_bias,
        bias_k,
        bias_v,
        add_zero_attn,
        dropout,
        out_proj_weight,
        out_proj_bias,
        training=training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=in_proj_weight is None,
        q_proj_weight=q_proj_weight,
        k_proj_weight=k_proj_weight,
        v_proj_weight=v_proj_weight,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    return (output.transpose(1, 0) if transposed else output), weights


def _params(kind: ParamKind, names: str) -> tuple[Param, ...]:
    return tuple(Param(name, kind) for name in names.split())


def _attribute(name: str, type_: str, default: Attribute = None, has_default: bool = False) -> Param:
    return Param(name, ParamKind.ATTRIBUTE, default, has_default, type_)


MULTIHEAD_ATTENTION = register_opdef(
    OpDef(
        "nn.multihead_attention",
        (
            *_params(ParamKind.TENSOR, "query key value"),
            *_params(ParamKind.OPTIONAL, "in_proj_weight in_proj_bias"),
            *_params(ParamKind.TENSOR, "out_proj_weight"),
            *_params(
                ParamKind.OPTIONAL,
                "out_proj_bias q_proj_weight k_proj_weight v_proj_weight bias_k bias_v key_padding_mask attn_mask",
            ),
            _attribute("num_heads", "int"),
            _attribute("embed_dim", "int"),
            _attribute("dropout", "float", 0.0, True),
            _attribute("batch_first", "bool", False, True),
            _attribute("add_zero_attn", "bool", False, True),
            _attribute("need_weights", "bool", True, True),
            _attribute("average_attn_weights", "bool", True, True),
            _attribute("is_causal", "bool", False, True),
            _attribute("training", "bool", False, True),
        ),
        ("tensor", "opaque"),
        facts=Facts(
            Trait.PURE | Trait.RANDOM | Trait.COMPARES_OPERANDS,
            infer=with_fallback("nn.multihead_attention", linear.multihead_attention),
            evaluate=_multihead_attention,
            training="training",
        ),
    )
)
"""`nn.MultiheadAttention` as one operation: only where an FX graph has the module as a leaf.

Its second result is the attention weights; it is opaque (None) where `need_weights` is False.
"""


def _infer_opaque(types: tuple[Any, ...], attributes: Mapping[str, Attribute]) -> tuple[Type, ...]:
    """Return the types that the capture recorded: nothing else is known of the call."""
    try:
        return tuple(parse_type(text) for text in attributes["result_types"])
    except ParseError as error:
        raise InferenceError(f"the result types of nn.opaque are ill-formed: {error.message}") from error


OPAQUE = register_opdef(
    OpDef(
        "nn.opaque",
        (
            Param("args", ParamKind.LIST, type="List[Tensor]"),
            _attribute("callee", "str"),
            _attribute("spec", "str"),
            _attribute("training", "bool", False, True),
            _attribute("result_types", "str[]"),
            _attribute("returns", "str", "leaves", True),
            _attribute("writes", "bool", False, True),
        ),
        ("list",),
        facts=Facts(Trait.OPAQUE | Trait.COMPARES_OPERANDS, infer=_infer_opaque, training="training"),
    )
)
"""A call of a Python callable of `Program.opaques`: never moved, merged or removed.

`spec` is the text of the arguments (`encode_call`). The results are the leaves of what the callable returns; where
`returns` is "items", its items as they are, and where it is "whole", what it returns, tensor or not.

Where `writes` is True, the callable writes to its arguments, which nothing else reads then.
"""


def opaque_results(returned: Any, returns: str) -> list[Any]:
    """Return the results of an opaque operation whose callable returned this."""
    if returns == "whole":
        return [returned]
    return list(returned) if returns == "items" else list(pytree.tree_leaves(returned))


def encode_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], is_operand: Callable[[Any], bool]
) -> tuple[str, list[Any]]:
    """Return the text of the arguments of an opaque call, and the leaves that become operands, in order.

    Args:
        args: positional arguments: nested tuples, lists, dicts (with text keys), slices, and leaves.
        kwargs: keyword arguments.
        is_operand: tells which leaves are operands; the others must be attribute values.

    Raises:
        InputError: when a leaf is neither.
    """
    operands: list[Any] = []

    def encode(item: Any) -> Any:
        if is_operand(item):
            operands.append(item)
            return {"operand": len(operands) - 1}
        if item is None or isinstance(item, bool | str):
            return item
        if isinstance(item, list):
            return [encode(part) for part in item]
        if type(item) is tuple:
            return {"tuple": [encode(part) for part in item]}
        if isinstance(item, slice):
            return {"slice": [encode(part) for part in (item.start, item.stop, item.step)]}
        if type(item) is dict and all(isinstance(key, str) for key in item):
            return {"dict": {key: encode(part) for key, part in item.items()}}
        if isinstance(item, ATTRIBUTE_TYPES):
            return {"attribute": format_attribute(item)}
        raise InputError(
            f"an opaque call cannot take an argument of class {type(item).__qualname__}",
            remedy="pass it when the module is made; calls may have tensors, numbers, texts, tuples, lists and dicts",
        )

    tree = {"args": [encode(part) for part in args], "kwargs": {key: encode(part) for key, part in kwargs.items()}}
    return json.dumps(tree), operands


def decode_call(
    spec: str, operands: Sequence[Any], resolve: Callable[[Attribute], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that `encode_call` made a text of.

    Args:
        spec: the text.
        operands: what stands for each operand.
        resolve: maps each attribute value to what the callable takes (a symbolic size to its number).

    Raises:
        InputError: when the text is not what `encode_call` writes.
    """

    def decode(item: Any) -> Any:
        if isinstance(item, list):
            return [decode(part) for part in item]
        if not isinstance(item, dict):
            return item
        ((kind, content),) = item.items()
        if kind == "operand":
            return operands[content]
        if kind == "tuple":
            return tuple(decode(part) for part in content)
        if kind == "slice":
            return slice(*map(decode, content))
        if kind == "dict":
            return {key: decode(part) for key, part in content.items()}
        if kind == "attribute":
            return resolve(parse_attribute(content))
        raise ValueError(f"unknown kind {kind!r}")

    try:
        tree = json.loads(spec)
        return [decode(part) for part in tree["args"]], {key: decode(part) for key, part in tree["kwargs"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"the arguments of an opaque call are ill-formed: {error} in {spec}") from error


def call_module(callee: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call an opaque callable; a module gets copies of its buffers, so that a call never writes them."""
    if isinstance(callee, torch.nn.Module):
        buffers = {name: buffer.clone() for name, buffer in callee.named_buffers()}
        return torch.func.functional_call(callee, buffers, tuple(args), dict(kwargs))
    return callee(*args, **kwargs)
