"""What each kind of region means: a function of its operands, with which the body is compared.

A region computes its body, so fusing changes no numbers. But a quantizer, a runtime or a person takes `conv_bn_act` for
an activation of a batch norm of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch

from ir.copying import copy_into
from ir.core import Graph, Operation, Value
from ir.errors import InputError, PatternError
from ir.evaluate import evaluate_graph
from ir.opdef import Trait
from ir.types import UNKNOWN_TENSOR, TensorType, shapes_equal
from passes.fuse.base import FUSED_ACTIVATIONS
from passes.rewrite.region_names import check_kind, parts_of


@attrs.frozen(eq=False)
class Region:
    """A region as its meaning sees it: operands by name, and parts to apply to them.

    Attributes:
        op: the region, in its program.
        operands: its operands by the name of the body's input.
    """

    op: Operation
    operands: Mapping[str, torch.Tensor]
    shapes: Sequence[torch.Size]
    """Those of its results."""

    def operand(self, name: str) -> torch.Tensor:
        """Return an operand by its name in the body.

        Raises:
            PatternError: when there is none.
        """
        if name not in self.operands:
            raise self.error(f"has no operand {name!r}, but {', '.join(self.operands)}")
        return self.operands[name]

    def has(self, part: str) -> bool:
        """Return whether an operation of the body is a part of this name."""
        return part in parts_of(self.op)

    def part(self, name: str, *operators: str | Trait) -> Operation:
        """Return a part, which must be one of these operators.

        Raises:
            PatternError: when it is another one, or there is none.
        """
        found = [op for op, part in zip(self.body.operations(), parts_of(self.op), strict=True) if part == name]
        if len(found) != 1:
            raise self.error(f"has {len(found)} parts {name!r}")
        op = found[0]
        if not any(op.opdef.has(o) if isinstance(o, Trait) else op.name == o for o in operators):
            raise self.error(f"has {op.name} for its part {name!r}")
        return op

    def apply(self, op: Operation, x: torch.Tensor) -> torch.Tensor:
        """Return an operation of the body on `x` in place of its first operand; the others are operands of the region.

        Raises:
            PatternError: when they are not.
        """
        graph = Graph([("x", UNKNOWN_TENSOR)])
        entering: list[Value | None] = [graph.inputs[0]]
        tensors = [x]
        for value in op.operands[1:]:
            if value is None:
                entering.append(None)
                continue
            if value.owner is not self.body:
                raise self.error(f"computes an operand of its {op.name}")
            entering.append(graph.add_input(value.type, value.name))
            tensors.append(self.operands[value.name])
        twin = copy_into(op, graph, {}, entering)
        graph.set_outputs([twin.results[0]])
        result: torch.Tensor = evaluate_graph(graph, tensors, {}, {})[0]
        return result

    @property
    def body(self) -> Graph:
        """The body."""
        assert self.op.body is not None
        return self.op.body

    def error(self, what: str) -> PatternError:
        """Return an error about the region."""
        return PatternError(
            f"the region {self.op.name} at `{self.op.location.where}` {what}",
            location=self.op.location,
            remedy="fuse what the kind means, or name another kind",
        )


Meaning = Callable[[Region], torch.Tensor | Sequence[torch.Tensor]]
"""Computes the results of a region from its operands; raises a `PatternError` where it cannot be of the kind."""


# --- convolutions -------------------------------------------------------------------------------------------


def conv_bn(region: Region) -> torch.Tensor:
    """[batch_norm](conv(input))"""
    y = region.apply(region.part("conv", Trait.CONV), region.operand("input"))
    return region.apply(region.part("bn", "aten.batch_norm"), y) if region.has("bn") else y


def conv_bn_act(region: Region) -> torch.Tensor:
    """act([batch_norm](conv(input)))"""
    return _act(region, conv_bn(region))


def conv_bn_add_act(region: Region) -> torch.Tensor:
    """[act]([batch_norm](conv(input)) + residual), the residual of the shape and dtype of the sum"""
    total = conv_bn(region) + region.operand("residual")
    _refuse_broadcasts(region)
    return _act(region, total) if region.has("act") else total


def _refuse_broadcasts(region: Region) -> None:
    for op in region.body.operations():
        types = [value.type for value in (*op.operand_values, *op.results)]
        if op.name == "aten.add.Tensor" and all(isinstance(t, TensorType) and t.is_known for t in types):
            first, *others = (t for t in types if isinstance(t, TensorType))
            if not all(shapes_equal(first.shape, t.shape) and first.dtype == t.dtype for t in others):
                raise region.error(f"broadcasts or promotes what it adds: {', '.join(map(str, types))}")


def conv_bn_act_max_pool(region: Region) -> torch.Tensor:
    """max_pool2d(act([batch_norm](conv(input)))), the window 7x7 on 3 channels"""
    conv = region.part("conv", Trait.CONV)
    y = conv_bn_act(region)
    weight = region.operand(conv.input("weight").name)
    if weight.shape[1:] != (3, 7, 7) or conv.attributes["groups"] != 1:
        raise region.error(f"has a convolution by {tuple(weight.shape)} in {conv.attributes['groups']} groups")
    return region.apply(region.part("pool", "aten.max_pool2d"), y)


def _act(region: Region, x: torch.Tensor) -> torch.Tensor:
    return region.apply(region.part("act", *FUSED_ACTIVATIONS), x)


# --- one layer ----------------------------------------------------------------------------------------------


def linear(region: Region) -> torch.Tensor:
    """linear(input)"""
    return region.apply(region.part("linear", "aten.linear"), region.operand("input"))


def linear_act(region: Region) -> torch.Tensor:
    """act(linear(input))"""
    return _act(region, linear(region))


def gated_linear(region: Region) -> torch.Tensor:
    """act(linear(input)) · linear(input), of two linears or the halves of one"""
    x = region.operand("input")
    act = region.part("act", *FUSED_ACTIVATIONS)
    if region.has("gate"):
        gate = region.apply(region.part("gate", "aten.linear"), x)
        return region.apply(act, gate) * region.apply(region.part("up", "aten.linear"), x)
    halves = region.apply(region.part("gate_up", "aten.linear"), x).chunk(2, -1)
    gate, up = halves if act.operand_values[0].index == 0 else halves[::-1]
    return region.apply(act, gate) * up


def group_norm(region: Region) -> torch.Tensor:
    """[act](group_norm(input))"""
    y = region.apply(region.part("norm", "aten.group_norm"), region.operand("input"))
    return _act(region, y) if region.has("act") else y


def layer_norm(region: Region) -> torch.Tensor:
    """layer_norm(input)"""
    return region.apply(region.part("norm", "aten.layer_norm"), region.operand("input"))


def rms_norm(region: Region) -> torch.Tensor:
    """input · rsqrt(mean(input²) + eps) [· (weight + offset)], over the last dimensions"""
    x, ops = region.operand("input"), list(region.body.operations())
    if region.has("norm"):
        norm = region.part("norm", "aten.rms_norm").attributes
        y = torch.rms_norm(x, norm["normalized_shape"], None, norm["eps"])
    else:
        means = [op for op in ops if op.name == "aten.mean.dim"]
        if len(means) != 1:
            raise region.error(f"has {len(means)} means")
        square = x.square().mean(tuple(range(-len(means[0].attributes["dim"]), 0)), keepdim=True)
        y = x * torch.rsqrt(square + _added(ops, means[0].result))
    if "weight" not in region.operands:
        return y
    weight = next(value for value in region.body.inputs if value.name == "weight")
    return y * (region.operand("weight") + _added(ops, weight))


def _added(ops: Sequence[Operation], value: Value) -> float:
    """Return the number that is added to a value, cast or not."""
    same = [value]
    for op in ops:
        if op.operands and op.operands[0] in same:
            if op.name == "aten.add.Scalar":
                return float(op.attributes["other"])
            if op.name == "aten.to.dtype":
                same.append(op.result)
    return 0.0


def adaptive_avg_pool2d(region: Region) -> torch.Tensor:
    """adaptive_avg_pool2d(input)"""
    return region.apply(region.part("pool", "aten.adaptive_avg_pool2d"), region.operand("input"))


def add_act(region: Region) -> torch.Tensor:
    """act(input + other), both of the shape and dtype of the sum"""
    _refuse_broadcasts(region)
    return _act(region, region.operand("input") + region.operands.get("other", region.operand("input")))


# --- attention ----------------------------------------------------------------------------------------------


def scaled_dot_product_attention(region: Region) -> torch.Tensor:
    """[dropout](softmax([cap](query · keyᵀ · scale [· factor]) [+ masks])) · value, softmax over the last dimension"""
    query, key, value = (region.operand(name) for name in ("query", "key", "value"))
    if not region.has("attention"):
        before, after = _scales(region.body)
        scores = query @ key.mT * before
        if after is not None:
            scores = torch.tanh(scores) * after
        if "factor" in region.operands:
            scores = scores * region.operand("factor")
        weights = torch.softmax(_masked(region, scores), -1)
        drop = region.part("drop", "aten.dropout") if region.has("drop") else None
        return (weights if drop is None else region.apply(drop, weights)) @ value
    attributes = region.part("attention", "aten.scaled_dot_product_attention").attributes
    if attributes["enable_gqa"]:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = attributes["scale"]
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    mask = region.operands.get("mask")
    if attributes["is_causal"]:
        # some kernels refuse a mask beside it, others mask by both
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    return torch.dropout(torch.softmax(scores, -1), attributes["dropout_p"], attributes["dropout_p"] > 0) @ value


def _scales(body: Graph) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the product of the numbers that query, key or scores are multiplied by, and of those behind a cap."""
    scale = torch.ones((), dtype=torch.float64)  # a tensor can be divided by 0
    before: torch.Tensor | None = None
    for op in body.operations():
        if op.name == "aten.tanh":
            before, scale = scale, torch.ones_like(scale)
        elif op.name in ("aten.mul.Scalar", "aten.div.Scalar"):
            number = op.attributes["other"]
            scale = scale * number if op.name == "aten.mul.Scalar" else scale / number
    return (scale, None) if before is None else (before, scale)


def _masked(region: Region, scores: torch.Tensor) -> torch.Tensor:
    """Return scores with masks added, the second one perhaps in a shape of its own, or filled in."""
    if "mask" not in region.operands:
        return scores
    filled = [op for op in region.body.operations() if op.name == "aten.masked_fill.Scalar"]
    if filled:
        return scores.masked_fill(region.operand("mask"), filled[0].attributes["value"])
    masked = scores + region.operand("mask")
    if "mask2" not in region.operands:
        return masked
    shapes = [op.attributes["shape"] for op in region.body.operations() if op.name == "aten.reshape"]
    if not shapes:
        return masked + region.operand("mask2")
    return (masked.reshape(shapes[0]) + region.operand("mask2")).reshape(masked.shape)


def batch_first_projection(region: Region) -> tuple[torch.Tensor, ...]:
    """(heads(query), heads(key), heads(value)) of linear projections of one input, (batch, tokens, width)"""
    return tuple([heads.transpose(-3, -2) for heads in _projected(region)])


def tokens_first_projection(region: Region) -> tuple[torch.Tensor, ...]:
    """The same of an input (tokens, batch, width)"""
    return tuple([heads.permute(1, 2, 0, 3) for heads in _projected(region)])


def _projected(region: Region) -> list[torch.Tensor]:
    x = region.operand("input")
    if region.has("in_proj"):
        parts = list(region.apply(region.part("in_proj", "aten.linear"), x).chunk(3, -1))
    else:
        parts = [region.apply(region.part(f"{name}_proj", "aten.linear"), x) for name in "qkv"]
    heads, head_dim = region.shapes[0][-3], region.shapes[0][-1]
    if any(part.shape[-1] != heads * head_dim for part in parts):
        raise region.error(f"does not split {parts[0].shape[-1]} numbers into {heads} heads of {head_dim}")
    return [part.unflatten(-1, (heads, head_dim)) for part in parts]


# --- the table ----------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Meaning, ...]] = {
    "conv_bn": (conv_bn,),
    "conv_bn_act": (conv_bn_act,),
    "conv_bn_add_act": (conv_bn_add_act,),
    "conv_bn_act_max_pool": (conv_bn_act_max_pool,),
    "linear": (linear,),
    "linear_act": (linear_act,),
    "gated_linear": (gated_linear,),
    "group_norm": (group_norm,),
    "layer_norm": (layer_norm,),
    "rms_norm": (rms_norm,),
    "add_act": (add_act,),
    "adaptive_avg_pool2d": (adaptive_avg_pool2d,),
    "scaled_dot_product_attention": (scaled_dot_product_attention,),
    "mha_in_projection": (batch_first_projection, tokens_first_projection),
}
"""Kind -> what it means: one of these readings holds of a region."""


def register_kind(kind: str, *meanings: Meaning) -> None:
    """Register what a kind of region means, for the fuzzer to compare with.

    Args:
        kind: the kind.
        meanings: functions that compute the results from the operands; a region must agree with one of them.

    Raises:
        PatternError: when the kind is not an identifier.
        InputError: when no meaning is given, or the kind has another one.
    """
    check_kind(kind)
    if not meanings or not all(map(callable, meanings)):
        raise InputError(f"the meanings of kind {kind!r} are {meanings!r}", remedy="pass a function of a `Region`")
    if KINDS.setdefault(kind, meanings) != meanings:
        raise InputError(f"the kind {kind!r} has a meaning already", remedy="name another kind")


def meanings_of(op: Operation) -> Sequence[Meaning]:
    """Return the meanings of a region's kind; none for other operations and for kinds without a meaning."""
    return KINDS.get(op.attributes.get("kind", ""), ()) if op.body is not None else ()
