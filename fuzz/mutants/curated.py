"""Curated mutants, which no operator makes: faults in passes, regions, the text form and the compiler."""

from __future__ import annotations

from fuzz.mutants.mutation import Mutant, Subject

_KINDS = {"pass": "pass", "inference": "types", "text form": "text", "compiler": "modules"}


def _mutant(class_: str, name: str, target: str, old: str, new: str, *operators: str) -> Mutant:
    """Return a mutant; its name starts with the rule or the pass that finds it, if there is one."""
    kind = _KINDS.get(class_, "rule")
    names = (name.partition(":")[0],) if kind in ("rule", "pass") else ()
    return Mutant(name, class_, target, old, new, Subject(kind, names, operators))


CURATED: tuple[Mutant, ...] = (
    _mutant(
        "rule",
        "QuantizeBeforeMove: pieces with other parameters",
        "passes.canonicalize.quantization:QuantizeBeforeMove.check",
        "each.opdef is m.root.opdef and _parameters(each) == _parameters(m.root)",
        "each.opdef is m.root.opdef",
    ),
    _mutant(
        "rule",
        "QuantizeBeforeMove: another piece",
        "passes.canonicalize.quantization:QuantizeBeforeMove.rewrite",
        "moved.results[m.root.operand_values[0].index]",
        "moved.results[-1]",
    ),
    _mutant(
        "rule",
        "QuantizeBeforeCat: operands of another dtype",
        "passes.canonicalize.quantization:QuantizeBeforeCat.check",
        "value.tensor_type.dtype is not m.cat.result.tensor_type.dtype",
        "value.tensor_type.dtype is None",
    ),
    _mutant(
        "rule",
        "QuantizeDequantized: a narrower range",
        "passes.canonicalize.quantization:QuantizeDequantized.check",
        'integer_range(dtype, attributes["quant_min"], attributes["quant_max"]) != integer_range(dtype)',
        'integer_range(dtype, None, attributes["quant_max"]) != integer_range(dtype)',
    ),
    _mutant(
        "rule",
        "DequantizeBehindCat: other parameters",
        "passes.canonicalize.dequantization:DequantizeBehindCat.check",
        "any(each != attributes[0] for each in attributes)",
        "any(each[1] != attributes[0][1] for each in attributes)",
    ),
    _mutant(
        "rule",
        "NoReshape: sizes in any order",
        "passes.canonicalize.reshape:NoReshape.check",
        "shapes_equal(shape_of(m.x), shape_of(m.root.result))",
        "sorted(map(str, shape_of(m.x) or ())) == sorted(map(str, shape_of(m.root.result) or ()))",
    ),
    _mutant(
        "rule",
        "SpellClamp: the bound goes to the other side",
        "passes.canonicalize.spelling:SpellClamp.rewrite",
        "{name: op.resolved_attribute(name) for name in op.attributes}",
        '{"min" if name == "max" else "max": op.resolved_attribute(name) for name in op.attributes}',
    ),
    _mutant(
        "rule",
        "FlattenLinearToConvPattern: the attributes of the activations between",
        "passes.convert.classifier:_rebuild",
        "dict(link.attributes),",
        "dict(link.opdef.defaults) if link.attributes.keys() == link.opdef.defaults.keys() else dict(link.attributes),",
    ),
    _mutant(
        "rule",
        "FoldBatchNormPattern: the stride, padding and groups",
        "passes.fold.batch_norm:FoldBatchNormPattern.rewrite",
        "dict(layer.attributes)",
        '(dict(layer.attributes) | {k: v for k, v in layer.opdef.defaults.items() if k == "dilation"})',
    ),
    _mutant(
        "rule",
        "NoContiguous: strides of a permute are those of its operand",
        "ir.memory.strides:_step",
        'strides = tuple(strides[d] for d in op.attributes["dims"])',
        "return LayoutMap.identity(shape)",
    ),
    _mutant(
        "unknown type",
        "FlattenLinearToConv1x1Pattern: an unknown batch stays first",
        "passes.convert.classifier:_keeps_batch_first",
        "if first is None or second is None:\n        return None",
        "if first is None or second is None:\n        return True",
    ),
    _mutant(
        "unknown type",
        "SpellPermute: a rank that is not known is 2",
        "passes.canonicalize.base:rank_of",
        "return None if type_ is None else type_.rank",
        "return None if type_ is None else 2 if type_.rank is None else type_.rank",
    ),
    _mutant(
        "unknown type",
        "WriteOutReshape: sizes that are not known are 1",
        "passes.canonicalize.base:shape_of",
        "return None if value is None else value.known_shape",
        "shape = None if value is None or tensor(value) is None else value.type.shape\n"
        "    return None if shape is None else tuple(1 if size is None else size for size in shape)",
    ),
    _mutant(
        "region",
        "LinearActPattern: what is no activation",
        "passes.fuse.base:activation",
        "p.op(operators, x",
        'p.op((*operators, "aten.neg"), x',
    ),
    _mutant(
        "region",
        "LinearPattern: input and weight of a region",
        "passes.rewrite.rewriter:Rewriter.fuse",
        "tuple(names.values()),\n        {",
        "tuple(reversed(names.values())),\n        {",
    ),
    _mutant(
        "region",
        "ConvBNAddActPattern: what enters a region twice",
        "passes.rewrite.rewriter:_entering",
        "uses[op, i] = known[-1]",
        "uses[op, i] = next(iter(names))",
    ),
    _mutant(
        "region",
        "ConvBNPattern: the region has the type of its input",
        "passes.rewrite.rewriter:Rewriter.fuse",
        "[value.type for value in outputs],",
        "[ordered[0].operand_values[0].type for value in outputs],",
    ),
    _mutant(
        "pass",
        "eliminate-common-subexpressions: operands in any order",
        "passes.cleanup.cse:operation_key",
        "return op.opdef, op.operands,",
        "return op.opdef, tuple(sorted(op.operands, key=id)),",
        "aten.sub.Tensor",
        "aten.div.Tensor",
        "aten.add.Tensor",
        "aten.mul.Tensor",
    ),
    _mutant(
        "pass",
        "eliminate-common-subexpressions: dropouts that draw are merged",
        "passes.rewrite.effects:may_train",
        'if op.in_training or attributes.get("train_dropout_p", 0.0) != 0.0:',
        "if False:",
        "aten.dropout",
        "aten.relu",
        "aten.add.Tensor",
    ),
    _mutant(
        "pass",
        "eliminate-dead-code: statistics that nobody uses",
        "passes.rewrite.effects:may_train",
        "if op.opdef.training is None:",
        'if op.opdef.training is None or op.name == "aten.batch_norm":',
        "aten.batch_norm",
        "aten.relu",
    ),
    _mutant(
        "pass",
        "eliminate-dead-code: operations whose first result nobody uses",
        "passes.cleanup.dce:_sweep",
        "all(result.is_unused for result in op.results)",
        "op.results and op.results[-1].is_unused and all(r.is_unused for r in op.results[1:])",
    ),
    _mutant(
        "pass",
        "fold-constants: equal bytes of another type are one",
        "passes.fold.constants:_materialize",
        "key = (value.type, tensor.stride(), constant.follows, raw)",
        "key = raw",
        "aten.zeros_like",
        "aten.ones_like",
        "aten.full",
        "aten.zeros",
        "aten.add.Tensor",
        "aten.new_zeros",
    ),
    _mutant(
        "inference",
        "types: permute the wrong way round",
        "ir.columns:permutation",
        'order = [wrap(dim, rank) for dim in attributes["dims"]]',
        'order = [[wrap(dim, rank) for dim in attributes["dims"]].index(place) for place in range(rank)]',
        "aten.permute",
        "aten.relu",
    ),
    _mutant(
        "text form",
        "text: attributes that equal their default but for the type",
        "ir.text.printer:_attribute_texts",
        "attributes_equal(attributes[name], defaults[name])",
        "attributes[name] == defaults[name]",
    ),
    _mutant(
        "text form",
        "text: floats are rounded",
        "ir.text.printer:format_attribute",
        "if type(value) is float:\n        return repr(value)",
        'if type(value) is float:\n        return repr(float(f"{value:.3g}"))',
    ),
    _mutant(
        "text form",
        "text: operands in the reverse order",
        "ir.text.printer:_operand_texts",
        "return texts[: op.num_schema_operands]",
        "return texts[: op.num_schema_operands][::-1]",
    ),
    _mutant(
        "compiler",
        "functionalize: a write leaves views as they were",
        "compiler.lower.functional.tensors:FunctionalTensors._current",
        "if handle.version != storage.version:",
        "if False:",
    ),
    _mutant(
        "compiler",
        "codegen: the eps of batch norm",
        "compiler.codegen.modules:_norm_options",
        'eps=op.attributes["eps"],',
        "eps=0.1,",
    ),
    _mutant(
        "compiler",
        "codegen: infix operands",
        "compiler.codegen.functions:_emit_operator",
        "tuple(operands))",
        "tuple(operands[::-1]))",
    ),
    _mutant(
        "compiler",
        "codegen: the dimension of a split",
        "compiler.codegen.functions:_emit_split",
        '{"dim": dim} if dim != 0 else {}',
        "{}",
    ),
)
"""The curated mutants."""
