"""Mutants that were judged equivalent: they survived, and change no meaning."""

from __future__ import annotations

_JUDGED: dict[str, dict[str, str]] = {
    "ir.memory.aliasing:_reaches": {
        "statement: without seen.add(reached)": "a graph has no cycles: it bounds the time of the walk",
    },
    "ir.memory.layout:_divide": {
        "connective: without isinstance(b, int) of `and`": "only 0 divides by an expression, and of 0 both ways say 0",
    },
    "ir.memory.layout:LayoutMap.step": {
        "connective: without not isinstance(size, int) of `or`": "a slice of a symbolic size has a known type where it "
        "provably starts within it; then the map is right, and rules want that of a whole projection",
    },
    "ir.memory.strides:memory_order": {
        "integer: 0 -> 1": "rules ask whether there is an order; lowering takes it, and tests of lowering hold it",
    },
    "ir.quant.dialect:_quantize": {
        "order: x.dtype <-> scale.dtype": "both must be floating: which one the refusal names",
    },
    "ir.ops.inference.reduction:vector_norm": {
        "connective: without order is None of `or`": "what is left to fake tensors is typed as the rule does",
    },
    "ir.ops.inference.slicing:_symbolic_slice": {
        "order: first <-> last": "the same is required of both bounds",
    },
    "passes.attention:find_in_projection": {
        "order: 'query' <-> 'key'": "a word of the reason",
    },
    "passes.canonicalize.base:tensor": {
        "connective: without type(value.type) is not TensorType of `or`": "lowering hands what is no tensor to opaque "
        "calls only",
    },
    "passes.canonicalize.dequantization:fault_of_move": {
        "reason: return None, not 'the pieces share memory'": "the strides of what shares memory with an output "
        "reach it, but for what an opaque call hides",
    },
    "passes.canonicalize.identity:NoPad.check": {
        "connective: without type(n) is not int of `or`": "an expression is unequal to a number as well",
    },
    "passes.canonicalize.permute:ReshapeOfUnitPermute.check": {
        "connective: without target is None of `or`": "a reshape of an operand of known shape has a known shape",
    },
    "passes.canonicalize.reshape:ReshapeOfCopy.check": {
        "condition: never target is None": "it is known where the operand's shape is; else `reshape_copies` says no",
    },
    "passes.canonicalize.split:split_sizes": {
        "condition: never type(size) is not int": "an expression is as right: the rule does more then",
        "comparison: dim < len(shape) -> dim <= len(shape)": "the caller wrapped `dim`, and pieces have the rank of x",
    },
    "passes.canonicalize.split:_place": {
        "connective: without dim is None of `or`": "what is split has a dimension, and inference checked `dim`",
    },
    "passes.cleanup.cse:eliminate_common_subexpressions": {
        "integer: 0 -> 1": "the count that is returned, which tests of the pass hold",
    },
    "passes.convert.attention:_check_exported": {
        "condition: never op.location.class_name != 'MultiheadAttention'": "it says which modules are meant, and is "
        "right for all",
    },
    "passes.convert.attention:_check_module": {
        "order: op.operand('key') <-> op.operand('value')": "it asks whether all three are one value",
        "connective: without op.operand('bias_v') is not None of `or`": "`bias_k` and `bias_v` come together",
    },
    "passes.convert.attention:_follow_result": {
        "connective: without best is None of `and`": "what has the shape of the result again, behind layout "
        "operations, is the result too",
    },
    "passes.convert.attention:_in_projection": {
        "order: 'key' <-> 'value'": "the names of values: which result is which says their order",
    },
    "passes.convert.attention:_shows": {
        "connective: without reaches_output(value) of `and`": "it keeps the order of the module also where nobody sees "
        "it: as right, and a copy more",
    },
    "passes.convert.classifier:FlattenLinearToConvPattern.check": {
        "integer: 1 -> 0 (3)": "a map of C x 1 x 1 is the other rule's, and right here as well",
    },
    "passes.convert.classifier:_has_rank_of_map": {
        "condition: always v not in seen": "it saves a second look at what several operations share",
        "boolean: False -> True": "lowering hands what is no tensor to opaque calls only",
    },
    "passes.convert.classifier:_keeps_batch_first": {
        "connective: without first is None of `or`": "unknown sizes are not provably equal: refused in other words",
        "connective: without second is None of `or`": "unknown sizes are not provably equal: refused in other words",
    },
    "passes.convert.classifier:_start_dim": {
        "integer: -1 -> -2 (2)": "no start: only 1 is asked for",
    },
    "passes.convert.pooling:RemoveIdentityAdaptiveAvgPoolPattern.check": {
        "connective: without None in sizes of `or`": "the comparison that follows refuses an unknown size "
        "too, in other words",
    },
    "passes.fold.batch_norm:FoldBatchNormPattern.check": {
        "order: m.w <-> *of_channels": "which weight the reason names",
        "connective: without bn.operand('running_var') is None of `or`": "mean and variance come together",
        "reason: return None, not f'{where} normalizes with the statistics of the batch'": "PyTorch raises where the "
        "pattern's `training=False` has no statistics",
        "connective: without isinstance(type_, TensorType) of `and`": "the operands of a layer and a batch norm are "
        "tensors",
    },
    "passes.fold.batch_norm:FoldBatchNormPattern.pattern": {
        "keyword: without training=False in p.op(...)": "what it writes in training is a mutated weight or computed, "
        "and `check` refuses both",
    },
    "passes.fold.batch_norm:FoldBatchNorm.run": {
        "keyword: without record=True in run_worklist(...)": "what the report says, which tests of it hold",
    },
    "passes.fold.batch_norm:_does_not_fit": {
        "connective: without mean is None of `or`": "all weights have data, or none",
        "reason: return None, not f'batch_norm at `{m.bn.location.where}`: the weight is {m.w.tensor_type}, not "
        "floating point'": "PyTorch raises for such a map, unless it is empty, and then there is nothing to fold into",
    },
    "passes.fold.constants:_fold": {
        "condition: never value is None": "no constant is found for an operand that is None",
    },
    "passes.fold.constants:_same_numbers": {
        "order: converted <-> wide": "both are treated alike, and equality is symmetric",
    },
    "passes.fold.constants:_filled": {
        "condition: never type_.dtype is None or type_.device is None or type_.device.type == 'meta'": "the dtype is "
        "known by then, and only a second device that holds numbers would show the others; tests of the pass hold them",
        "keyword: without device=type_.device in torch.full(...)": "only a second device that holds numbers would show "
        "it: programs are drawn on the CPU, the default",
    },
    "passes.fold.constants:_materialize": {
        "connective: without tensor.numel() * tensor.element_size() <= _MAX_INTERNED_BYTES of `and`": "it bounds the "
        "time that comparing takes; equal constants are one also where they are large",
        "connective: not _is_own(value) -> _is_own(value)": "equal constants stay several, and only that",
    },
    "passes.fold.constants:_anything_to_fold": {
        "connective: without _constant_of(w.value, {}) is not None of `and`": "it saves a look at programs without "
        "constants",
    },
    "passes.fold.weights:_is_replaceable": {
        "connective: without weight.kind is not WeightKind.CONSTANT of `and`": "a literal that is not folded is a view "
        "of itself as well",
    },
    "passes.fuse.attention:ScaledDotProductAttentionPattern.check": {
        "order: 'mask' <-> 'mask2'": "it asks whether any of them is computed inside",
    },
    "passes.fuse.attention:ScaledDotProductAttentionPattern.pattern": {
        "order: one <-> p.op(_MATMULS, after, value) in p.one_of(...)": "no operation is both: they have other "
        "operators",
    },
    "passes.fuse.attention:fuse_in_projection": {
        "keyword: without quantization_points=MHAInProjectionPattern.quantization_points in b.fuse(...)": "its one "
        "input is its point, as where nothing is said",
    },
    "passes.fuse.base:unlike_operand": {
        "connective: without isinstance(type_, TensorType) of `and`": "the operands of an addition of tensors are "
        "tensors: a number is the attribute of `add.Scalar`",
    },
    "passes.quant.place:_Placer._can_lift": {
        "connective: without root is None of `or`": "an absent operand has no type of integers",
    },
    "passes.quant.unify:UnifyQuantizers.run": {
        "statement: without context.log.remarks.add(join.remark)": "what the report says, which tests of it hold",
    },
    "passes.quant.unify:_Unifier._join": {
        "connective: without fault of `or`": "the reason that is told, which tests of the pass hold",
    },
    "passes.rewrite.effects:_never_draws": {
        "order: 'p' <-> 'dropout'": "no operator has both",
    },
    "passes.rewrite.effects:is_effectless": {
        "condition: never op.body is None and op.opdef.training is None": "a short way: what has no mode is as pure as "
        "its operator, and does not train",
    },
    "passes.rewrite.effects:may_train": {
        "condition: never op.opdef.training is None": "such an operator has none of the attributes asked for next",
    },
    "passes.rewrite.literals:_rank": {
        "condition: always value and isinstance(value.type, TensorType)": "what has a `dim` takes a tensor first",
    },
    "passes.rewrite.literals:one_form": {
        "connective: without op.name != 'aten.tile' of `and`": "no count is negative, so none is taken for a dimension "
        "from the back",
    },
    "passes.rewrite.literals:dims_from_front": {
        "condition: always d is not None": "none is None by then: the filter is for the type checker",
    },
}

EQUIVALENT: dict[str, str] = {
    f"{target}: {change}": reason for target, changes in _JUDGED.items() for change, reason in changes.items()
}
"""Name -> why it changes no meaning."""
