"""Faults in what rules ask of types that are not known: they matter to graphs without shapes alone."""

from __future__ import annotations

from fuzz.mutants.mutation import Mutant
from fuzz.mutants.mutation import rule_mutant as _rule

_CLASSIFIER = "passes.convert.classifier:"
_BASE = "passes.canonicalize.base:"
_CLASS = "unknown type"


UNKNOWN_MUTANTS: tuple[Mutant, ...] = (
    _rule(
        _CLASS,
        "FlattenLinearToConv1x1Pattern: of a result of unknown shape, too little is flattened",
        _CLASSIFIER + "_rebuild",
        '"aten.flatten.using_ints", conv, 1,',
        '"aten.flatten.using_ints", conv, 2,',
    ),
    _rule(
        _CLASS,
        "FlattenLinearToConv1x1Pattern: a map of unknown rank has a batch",
        _CLASSIFIER + "_refusal",
        "if not proved or _map_of(m.x) is None or _in_features(m) == 1:",
        "if not proved or _map_of(m.x) is None:",
    ),
    _rule(
        _CLASS,
        "FlattenLinearToConv1x1Pattern: any flattening of a map of unknown shape",
        _CLASSIFIER + "_refusal",
        'flatten.name == "aten.flatten.using_ints" and _start_dim(flatten) == 1',
        "True",
    ),
    _rule(
        _CLASS,
        "FlattenLinearToConv1x1Pattern: an unknown batch stays first",
        _CLASSIFIER + "_keeps_batch_first",
        "if first is None or second is None:\n        return None",
        "if first is None or second is None:\n        return True",
    ),
    _rule(
        _CLASS,
        "DecomposeMultiheadAttentionPattern: the batch is not first and the rank unknown",
        "passes.convert.attention:_check_module",
        "(query is None or query.tensor_type.rank not in (2, 3))",
        "(query is None or query.tensor_type.rank not in (2, 3, None))",
    ),
    _rule(
        _CLASS,
        "FoldBatchNormPattern: a result of unknown rank",
        "passes.fold.batch_norm:FoldBatchNormPattern.check",
        "result.rank is None or result.rank != rank",
        "result.rank not in (None, rank)",
    ),
    _rule(
        _CLASS,
        "NoCast: two dtypes that are not known are one",
        _BASE + "same_dtype",
        "if x is None or y is None or x.dtype is None or x.device is None:",
        "if x is None or y is None:",
    ),
    _rule(
        _CLASS,
        "NoDetach: a dtype that is not known is an integer one",
        _BASE + "is_integral",
        "if type_ is None or type_.dtype is None:\n        return False",
        "if type_ is None or type_.dtype is None:\n        return True",
    ),
    _rule(
        _CLASS,
        "CountDimsFromFront: a rank that is not known is 3",
        "passes.rewrite.literals:dims_from_front",
        "rank = _rank(op, name)\n",
        "rank = 3 if (known := _rank(op, name)) is None else known\n",
    ),
    _rule(
        _CLASS,
        "SpellPermute: a rank that is not known is 2",
        _BASE + "rank_of",
        "return None if type_ is None else type_.rank",
        "return None if type_ is None else 2 if type_.rank is None else type_.rank",
    ),
    _rule(
        _CLASS,
        "WriteOutReshape: sizes that are not known are 1",
        _BASE + "shape_of",
        "if type_ is None or type_.shape is None or None in type_.shape:\n        return None\n    return type_.shape",
        "if type_ is None or type_.shape is None:\n        return None\n"
        "    return tuple(1 if size is None else size for size in type_.shape)",
    ),
)
