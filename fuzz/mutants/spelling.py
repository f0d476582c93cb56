"""Faults in the canonicalization rules that spell operators and splits in one way."""

from __future__ import annotations

from fuzz.mutants.mutation import Mutant
from fuzz.mutants.mutation import rule_mutant as _rule

_SPELLING = "passes.canonicalize.spelling:"
_LITERALS = "passes.rewrite.literals:"
_SPLIT = "passes.canonicalize.split:"


SPELLING_MUTANTS: tuple[Mutant, ...] = (
    _rule(
        "swapped operands",
        "SpellRsub: the operands stay",
        _SPELLING + "SpellRsub.rewrite",
        "m.y, m.x, alpha",
        "m.x, m.y, alpha",
    ),
    _rule(
        "lost attribute",
        "SpellRsub: alpha",
        _SPELLING + "SpellRsub.rewrite",
        ", alpha=m.alpha",
        "",
    ),
    _rule(
        "lost attribute",
        "SpellRelu6: the upper bound",
        _SPELLING + "SpellRelu6.check",
        "bounds != (0, 6)",
        "bounds[0] != 0",
    ),
    _rule(
        "lost attribute",
        "SpellRelu6: the sign of the lower bound",
        _SPELLING + "SpellRelu6.check",
        'None if attributes_equal(float(m.low), 0.0) else "the lower bound is -0.0"',
        "None",
    ),
    _rule(
        "lost attribute",
        "SpellClamp: the bound goes to the other side",
        _SPELLING + "SpellClamp.rewrite",
        "{name: op.resolved_attribute(name) for name in op.attributes}",
        '{"min" if name == "max" else "max": op.resolved_attribute(name) for name in op.attributes}',
    ),
    _rule(
        "lost attribute",
        "SpellSynonym: attributes get their defaults",
        _SPELLING + "SpellSynonym.rewrite",
        "op.resolved_attribute(p.name) if p.kind is ParamKind.ATTRIBUTE else",
        "(p.default if p.has_default else op.resolved_attribute(p.name)) if p.kind is ParamKind.ATTRIBUTE else",
    ),
    _rule(
        "wrong axis",
        "SpatialMeanToPool: over any two dimensions",
        _SPELLING + "SpatialMeanToPool.check",
        "{wrap(d, 4) for d in m.dims} != {2, 3} or len(m.dims) != 2",
        "len(m.dims) != 2",
    ),
    _rule(
        "lost attribute",
        "SpatialMeanToPool: keepdim",
        _SPELLING + "SpatialMeanToPool.rewrite",
        "return pool if m.keepdim else",
        "return pool if m.keepdim or shape[:2] == (1, 1) else",
    ),
    _rule(
        "wrong dtype promotion",
        "SpatialMeanToPool: converted",
        _SPELLING + "SpatialMeanToPool.check",
        " or m.dtype not in (None, type_.dtype)",
        "",
    ),
    _rule(
        "dropped condition",
        "SpatialMeanToPool: an empty map",
        _SPELLING + "SpatialMeanToPool.check",
        "0 in shape or not is_floating(m.x)",
        "not is_floating(m.x)",
        equivalent="the pool of an empty map is computed as this mean too: NaN, or nothing",
    ),
    _rule(
        "dropped condition",
        "SpatialMeanToPool: an output",
        _SPELLING + "SpatialMeanToPool.check",
        "if m.keepdim and any(user.opdef is RETURN for user in m.root.result.users):",
        "if False:",
        equivalent="of the strides, those of dimensions of size 1 alone differ, which mean nothing",
    ),
    _rule(
        "dropped condition",
        "SpatialMeanToPool: a conversion behind it",
        _SPELLING + "SpatialMeanToPool.check",
        "if m.keepdim and reaches_format(m.root.result):",
        "if False:",
    ),
    _rule(
        "lost attribute",
        "WriteOutPoolStride: a stride of 1",
        _SPELLING + "WriteOutPoolStride.rewrite",
        'm.root.attributes["kernel_size"]',
        'tuple(1 for _ in m.root.attributes["kernel_size"])',
    ),
    _rule(
        "lost attribute",
        "WriteOutConvPadding: the dilation",
        _SPELLING + "_padding",
        "padding.append(dilation * (kernel - 1) // 2)",
        "padding.append((kernel - 1) // 2)",
    ),
    _rule(
        "lost attribute",
        "WriteOutConvPadding: the other side",
        _SPELLING + "_padding",
        " or dilation * (kernel - 1) % 2:",
        ":",
    ),
    _rule(
        "wrong axis",
        "CountDimsFromFront: one too far",
        _LITERALS + "dims_from_front",
        "return wrap(given, rank)",
        "return (given + 1) % rank if given < 0 and rank else wrap(given, rank)",
    ),
    _rule(
        "wrong axis",
        "CountDimsFromFront: stack has one dimension more",
        _LITERALS + "_rank",
        "rank += 1",
        "rank += 0",
    ),
    _rule(
        "wrong axis",
        "CountDimsFromFront: the first of several dimensions is lost",
        _LITERALS + "dims_from_front",
        "tuple(sorted(counted)",
        "tuple(sorted(counted)[-1:]",
    ),
    _rule(
        "wrong axis",
        "SelectFromFront: one too far",
        _LITERALS + "index_from_front",
        "index + size",
        "max(index + size - 1, 0)",
    ),
    _rule(
        "wrong axis",
        "SelectFromFront: the size of the first dimension",
        _LITERALS + "index_from_front",
        "else shape[dim]",
        "else shape[0]",
    ),
    # --- split
    _rule(
        "wrong axis",
        "SpellSplit: along the first dimension",
        _SPLIT + "SpellSplit.rewrite",
        "first(m.root), sizes, dim, names",
        "first(m.root), sizes, 0, names",
    ),
    _rule(
        "swapped operands",
        "SpellSplit: the pieces in the reverse order",
        _SPLIT + "SpellSplit.rewrite",
        "names=names).results",
        "names=names).results[::-1]",
    ),
    _rule(
        "wrong axis",
        "SplitFromFront: the dimension is not counted back",
        _SPLIT + "SplitFromFront.rewrite",
        'op.attributes["dim"] + len(shape)',
        '(-1 - op.attributes["dim"])',
    ),
    _rule(
        "swapped operands",
        "SpellUnbind: the pieces in the reverse order",
        _SPLIT + "SpellUnbind.rewrite",
        "in zip(pieces, op.results, strict=True)",
        "in zip(pieces[::-1], op.results, strict=True)",
    ),
    _rule(
        "wrong axis",
        "SpellUnbind: along the first dimension",
        _SPLIT + "SpellUnbind.rewrite",
        "(1,) * len(op.results), dim)",
        "(1,) * len(op.results), 0)",
    ),
    _rule(
        "dropped condition",
        "NoSplit: several pieces",
        _SPLIT + "NoSplit.check",
        "len(m.root.results) == 1",
        "m.root.results",
    ),
)
