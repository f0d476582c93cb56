"""Faults in what fusions take for a kind of region: no number changes, and yet the region is not what it is called."""

from __future__ import annotations

from fuzz.mutants.mutation import Mutant
from fuzz.mutants.mutation import rule_mutant as _rule

_ATTENTION = "passes.fuse.attention:"
_CONV = "passes.fuse.conv:"
_CLASS = "another kind"


KIND_MUTANTS: tuple[Mutant, ...] = (
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: a softmax over any dimension",
        _ATTENTION + "_over_last_dim",
        "if dim == -1 or (rank is not None and dim == rank - 1):",
        "if True:",
    ),
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: a softmax over a dimension of unknown rank",
        _ATTENTION + "_over_last_dim",
        "(rank is not None and dim == rank - 1)",
        "(rank is None or dim == rank - 1)",
    ),
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: a mask that is added more than once",
        _ATTENTION + "ScaledDotProductAttentionPattern.pattern",
        "scores, mask, alpha=1)",
        "scores, mask)",
    ),
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: a second mask that is added more than once",
        _ATTENTION + "ScaledDotProductAttentionPattern.pattern",
        'p.any("mask2"), alpha=1)',
        'p.any("mask2"))',
    ),
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: a key that is permuted otherwise",
        _ATTENTION + "ScaledDotProductAttentionPattern.rewrite",
        "if tuple(d % rank for d in dims) != swap:",
        "if False:",
    ),
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: an operand that is computed inside",
        _ATTENTION + "ScaledDotProductAttentionPattern.check",
        "if any(value in inner for value in",
        "if any(False for value in",
    ),
    _rule(
        _CLASS,
        "ScaledDotProductAttentionPattern: scores that come back in another shape",
        _ATTENTION + "_other_shape",
        "if apart is None or back is None:",
        "if True:",
    ),
    _rule(
        _CLASS,
        "MHAInProjectionPattern: query and key under each other's names",
        _ATTENTION + "fuse_in_projection",
        '("q_proj", "k_proj", "v_proj")',
        '("k_proj", "q_proj", "v_proj")',
    ),
    _rule(
        _CLASS,
        "MHAInProjectionPattern: the results in another order",
        _ATTENTION + "MHAInProjectionPattern.rewrite",
        '("query", "key", "value")',
        '("key", "query", "value")',
    ),
    _rule(
        _CLASS,
        "ConvBNPattern: another operator passes for batch norm",
        _CONV + "conv_bn",
        'p.op("aten.batch_norm", y',
        'p.op(("aten.batch_norm", "aten.relu"), y',
    ),
    _rule(
        _CLASS,
        "LinearActPattern: what is no activation",
        "passes.fuse.base:activation",
        "p.op(FUSED_ACTIVATIONS, x",
        'p.op((*FUSED_ACTIVATIONS, "aten.neg"), x',
    ),
    _rule(
        _CLASS,
        "ConvBNAddActPattern: a residual that is added more than once",
        _CONV + "ConvBNAddActPattern.pattern",
        'name="add", alpha=1)',
        'name="add")',
    ),
    _rule(
        _CLASS,
        "ConvBNAddActPattern: a residual that is broadcast",
        _CONV + "ConvBNAddActPattern.check",
        "if not shapes_equal(type_.shape, sum_.shape):",
        "if False:",
    ),
    _rule(
        _CLASS,
        "ConvBNAddActPattern: a residual that promotes",
        _CONV + "ConvBNAddActPattern.check",
        "if type_.dtype != sum_.dtype:",
        "if False:",
    ),
    _rule(
        _CLASS,
        "ConvBNAddActPattern: the residual is the convolution itself",
        _CONV + "ConvBNAddActPattern.check",
        "if m.residual.defining_op in m.ops:",
        "if False:",
    ),
    _rule(
        _CLASS,
        "StemConvBNActMaxPoolPattern: any number of channels",
        _CONV + "StemConvBNActMaxPoolPattern.check",
        "shape[1:] != (3, 7, 7)",
        "shape[2:] != (7, 7)",
    ),
    _rule(
        _CLASS,
        "StemConvBNActMaxPoolPattern: groups of channels",
        _CONV + "StemConvBNActMaxPoolPattern.check",
        'or m.conv.attributes["groups"] != 1',
        "",
    ),
)
