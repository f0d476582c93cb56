"""Operators of our own: leaf modules of FX graphs, and opaque calls of Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ir.attributes import (
    LITERAL_TYPES,
    Attribute,
    Ref,
    is_deeper,
    is_written_exactly,
    iter_leaves,
    map_leaves,
    normalize_attribute,
)
from ir.errors import InferenceError, InputError, ParseError
from ir.opdef import ARGUMENTS, Facts, OpDef, Param, ParamKind, Trait, register_opdef
from ir.ops.inference import linear
from ir.ops.inference.support import with_fallback
from ir.text.lexer import MAX_DEPTH, MAX_DIGITS, Lexer, is_readable
from ir.text.literals import Literals, format_attribute, parse_type
from ir.types import Type

_MAX_ARGUMENT_DEPTH = MAX_DEPTH - 10
"""How deep the arguments of an opaque call may be nested: the text of a program nests them once more."""


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
    """Compute `nn.MultiheadAttention.forward` without its fast path."""
    transposed = batch_first and query.dim() == 3
    if transposed:
        # PyTorch chooses the projection by identity of the operands, so transposing must keep it
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
"""`nn.MultiheadAttention` as one operation, for FX graphs that have it as a leaf module.

The second result is the attention weights; it is opaque (None) if `need_weights` is False.
"""


def _infer_opaque(types: tuple[Any, ...], attributes: Mapping[str, Attribute]) -> tuple[Type, ...]:
    """Return the types that the capture recorded."""
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
            _attribute("positional", ARGUMENTS, (), True),
            _attribute("keywords", ARGUMENTS, {}, True),
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

`positional` and `keywords` are the arguments (`encode_call`); they refer to the operands. The results are the leaves of
what the callable returns; if `returns` is "items", its items; if it is "whole", the returned object itself.

If `writes` is True, the callable mutates its arguments, and nothing else reads them.
"""


def opaque_results(returned: Any, returns: str) -> list[Any]:
    """Return the results of an opaque operation for what its callable returned."""
    if returns == "whole":
        return [returned]
    return list(returned) if returns == "items" else list(pytree.tree_leaves(returned))


def encode_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], is_operand: Callable[[Any], bool]
) -> tuple[tuple[Attribute, ...], dict[str, Attribute], list[Any]]:
    """Return the arguments of an opaque call as attributes, and the leaves that become operands.

    Args:
        args: positional arguments: nested tuples, lists, dicts (with constants as keys), slices, and leaves.
        kwargs: keyword arguments.
        is_operand: tells which leaves are operands; the others must be attribute values.

    Raises:
        InputError: when a leaf is neither, or no text can hold the arguments.
    """
    operands: list[Any] = []

    def refused(what: str) -> InputError:
        return InputError(
            f"an opaque call cannot take {what}",
            remedy="pass it when the module is made; calls may have tensors, numbers, texts, and tuples, lists and "
            "dicts of these",
        )

    def encode(item: Any) -> Attribute:
        if is_operand(item):
            operands.append(item)
            return Ref(len(operands) - 1)
        if type(item) is list:
            return [encode(part) for part in item]
        if type(item) is tuple:
            return tuple([encode(part) for part in item])
        if isinstance(item, slice):
            return slice(*map(encode, (item.start, item.stop, item.step)))
        if type(item) is dict:
            return {encode_key(key): encode(part) for key, part in item.items()}
        # of a subclass, such as an enum, the callable may ask for the class
        if type(item) in LITERAL_TYPES or isinstance(item, (sympy.Expr, Ref)):
            return within_bound(normalize_attribute(item))
        raise refused(f"an argument of class {type(item).__qualname__}")

    def encode_key(key: Any) -> Attribute:
        if is_written_exactly(key):
            return within_bound(normalize_attribute(key))
        raise refused(f"a dict with a key of class {type(key).__qualname__}")

    def within_bound(item: Attribute) -> Attribute:
        if any(type(leaf) is int and not is_readable(leaf) for leaf in iter_leaves(item)):
            raise refused(f"a number of more than {MAX_DIGITS} digits")
        return item

    if any(is_deeper(item, _MAX_ARGUMENT_DEPTH) for item in (*args, *kwargs.values())):
        raise refused(f"an argument that is nested more than {_MAX_ARGUMENT_DEPTH} deep")
    return tuple(map(encode, args)), {key: encode(part) for key, part in kwargs.items()}, operands


def decode_call(
    attributes: Mapping[str, Attribute], operands: Sequence[Any], resolve: Callable[[Attribute], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that `encode_call` encoded.

    Args:
        attributes: of the opaque call.
        operands: the tensor for each operand.
        resolve: maps each attribute value to what the callable takes: a symbolic size to its number.
    """

    def decode(leaf: Attribute) -> Any:
        return operands[leaf.index] if type(leaf) is Ref else resolve(leaf)

    return map_leaves(attributes["positional"], decode), map_leaves(attributes["keywords"], decode)


def format_call(positional: tuple[Attribute, ...], keywords: dict[str, Attribute]) -> str:
    """Return the text of the arguments of an opaque call; `%3` is operand 3."""
    return format_attribute((positional, keywords), lambda index: f"%{index}")


def parse_call(text: str) -> tuple[tuple[Attribute, ...], dict[str, Attribute]]:
    """Return the arguments of an opaque call, from the text of `format_call`."""
    lexer = Lexer(text)
    positional, keywords = Literals(lexer, lambda: Ref(int(lexer.expect_value()))).constant()
    return positional, keywords


def call_module(callee: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call an opaque callable; a module gets copies of its buffers, so that calls never mutate them."""
    if isinstance(callee, torch.nn.Module):
        buffers = {name: buffer.clone() for name, buffer in callee.named_buffers()}
        return torch.func.functional_call(callee, buffers, tuple(args), dict(kwargs))
    return callee(*args, **kwargs)
