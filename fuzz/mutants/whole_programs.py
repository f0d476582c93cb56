"""Faults in passes over whole programs, in effects, types, the text form, and the compiler."""

from __future__ import annotations

from fuzz.mutants.mutation import Mutant, Subject

_INFERENCE = "ir.ops.inference."
_CONSTANTS = "passes.fold.constants:"
_FUNCTIONS = "compiler.codegen.functions:"
_MODULES = "compiler.codegen.modules:"
_TEXT = Subject("text")
_COMPILED = Subject("modules")
_DROPOUTS = ("aten.dropout", "aten.relu", "aten.add.Tensor")
_FILLS = ("aten.new_full", "aten.full_like", "aten.ones_like", "aten.new_ones", "aten.add.Tensor", "aten.mul.Tensor")
_CSE = "eliminate-common-subexpressions"
_DCE = "eliminate-dead-code"


def _pass(
    class_: str, name: str, target: str, old: str, new: str, operators: tuple[str, ...] = (), equivalent: str = ""
) -> Mutant:
    """Return a mutant that a pass on whole programs finds: `name` is the pass, then what is wrong."""
    return Mutant(name, class_, target, old, new, Subject("pass", name.partition(":")[0], operators), equivalent)


def _types(class_: str, name: str, target: str, old: str, new: str, *operators: str) -> Mutant:
    """Return a mutant of type inference that programs over these operators find."""
    return Mutant(f"types: {name}", class_, _INFERENCE + target, old, new, Subject("types", operators=operators))


IR_MUTANTS: tuple[Mutant, ...] = (
    # --- common subexpressions, dead code, effects
    _pass(
        "lost attribute",
        f"{_CSE}: attributes do not count",
        "passes.cleanup.cse:operation_key",
        "op.segments, values, len(op.results)",
        "op.segments, len(op.results)",
        ("aten.clamp", "aten.transpose.int", "aten.sum.dim_IntList", "aten.leaky_relu", "aten.relu"),
    ),
    _pass(
        "swapped operands",
        f"{_CSE}: operands in any order",
        "passes.cleanup.cse:operation_key",
        "return op.opdef, op.operands,",
        "return op.opdef, tuple(sorted(op.operands, key=id)),",
        ("aten.sub.Tensor", "aten.div.Tensor", "aten.add.Tensor", "aten.mul.Tensor"),
    ),
    _pass(
        "dropped condition",
        f"{_CSE}: only the first operand counts",
        "passes.cleanup.cse:operation_key",
        "return op.opdef, op.operands,",
        "return op.opdef, op.operands[:1],",
    ),
    _pass(
        "view for a copy",
        f"{_CSE}: two outputs become one",
        "passes.cleanup.cse:_may_merge",
        "return not (aliases_output(gone) and aliases_output(kept))",
        "return True",
    ),
    _pass(
        "merged random call",
        f"{_CSE}: dropouts are merged",
        "passes.rewrite.effects:is_mergeable",
        "not op.opdef.has(Trait.PURE) or may_train(op) or",
        "",
        _DROPOUTS,
    ),
    _pass(
        "merged random call",
        f"{_CSE}: dropouts that draw are merged",
        "passes.rewrite.effects:may_train",
        'if op.in_training or attributes.get("train_dropout_p", 0.0) != 0.0:',
        "if False:",
        _DROPOUTS,
    ),
    _pass(
        "merged random call",
        f"{_CSE}: random numbers are drawn once",
        "passes.rewrite.effects:is_mergeable",
        "not op.opdef.has(Trait.PURE)",
        "False",
        ("aten.rand_like", "aten.randn_like", "aten.bernoulli", "aten.dropout"),
    ),
    _pass(
        "dead write removed",
        f"{_DCE}: dropouts that nobody uses",
        "passes.rewrite.effects:is_removable",
        "return op.is_pure and not may_train(op)",
        "return True",
        _DROPOUTS,
    ),
    _pass(
        "dead write removed",
        f"{_DCE}: statistics that nobody uses",
        "passes.rewrite.effects:may_train",
        "if op.opdef.training is None:",
        'if op.opdef.training is None or op.name == "aten.batch_norm":',
        ("aten.batch_norm", "aten.relu"),
    ),
    _pass(
        "dead write removed",
        f"{_DCE}: operations whose first result nobody uses",
        "passes.cleanup.dce:_sweep",
        "all(result.is_unused for result in op.results)",
        "op.results and op.results[-1].is_unused and all(r.is_unused for r in op.results[1:])",
    ),
    # --- constants
    _pass(
        "wrong dtype promotion",
        "fold-constants: the fill value has the default dtype",
        _CONSTANTS + "_filled",
        "torch.full(shape, value, dtype=type_.dtype, device=type_.device)",
        "torch.full(shape, value, device=type_.device)",
        _FILLS,
    ),
    _pass(
        "lost attribute",
        "fold-constants: the fill value is 0",
        _CONSTANTS + "_filled",
        "value = op.attributes[fill] if isinstance(fill, str) else fill",
        "value = 0",
        _FILLS,
    ),
    _pass(
        "view for a copy",
        "fold-constants: every call hands out one tensor",
        _CONSTANTS + "_fold",
        "if not may_alias_operands(op.opdef) and any(map(_is_own, op.results)):",
        "if False:",
        _FILLS,
    ),
    _pass(
        "stale type",
        "fold-constants: equal bytes of another type are one",
        _CONSTANTS + "_materialize",
        "key = (value.type, tensor.stride(), constant.follows, raw)",
        "key = raw",
        ("aten.zeros_like", "aten.ones_like", "aten.full", "aten.zeros", "aten.add.Tensor", "aten.new_zeros"),
    ),
    _pass(
        "dropped condition",
        "fold-constants: strides of what is made like an output",
        _CONSTANTS + "_filled",
        'if op.name.endswith("_like") and reaches_output(op.result):',
        "if False:",
        (*_FILLS, "aten.permute", "aten.relu"),
    ),
    _pass(
        "dropped condition",
        "canonicalize: parameters are constants",
        _CONSTANTS + "_constant_of",
        "if weight is None or not weight.is_constant:",
        "if weight is None:",
        ("aten.linear", "aten.relu", "aten.mul.Tensor", "aten.permute", "aten.t", "aten.add.Tensor"),
    ),
    _pass(
        "skipped use check",
        "canonicalize: a reshaped weight that others use",
        "passes.rewrite.rewriter:Rewriter.replace_value",
        "for user in self.graph.replace_all_uses(old, new):",
        "for user in self.graph.replace_all_uses(new, old) if new.name == old.name else "
        "self.graph.replace_all_uses(old, new):",
    ),
    # --- types
    _types(
        "stale type",
        "reductions keep their dimension",
        "reduction:_reduced",
        "elif keepdim:",
        "else:",
        "aten.mean.dim",
        "aten.sum.dim_IntList",
        "aten.amax",
    ),
    _types(
        "lost attribute",
        "keepdim is lost",
        "reduction:_reduced",
        "elif keepdim:",
        "elif False:",
        "aten.mean.dim",
        "aten.sum.dim_IntList",
        "aten.amax",
    ),
    _types(
        "wrong dtype promotion",
        "indices have the dtype of the values",
        "reduction:with_indices",
        "TensorType(shape, torch.int64, x.device)",
        "TensorType(shape, x.dtype, x.device)",
        "aten.max.dim",
        "aten.min.dim",
    ),
    _types(
        "wrong axis",
        "transpose keeps its sizes",
        "layout:transpose",
        "shape[a], shape[b] = shape[b], shape[a]",
        "shape[a], shape[b] = shape[a], shape[b]",
        "aten.transpose.int",
        "aten.relu",
    ),
    _types(
        "wrong axis",
        "permute the wrong way round",
        "layout:permute",
        "return _with_shape(x, [x.shape[d] for d in wrap_dims(dims, len(x.shape))])",
        "return _with_shape(x, [x.shape[wrap_dims(dims, len(x.shape)).index(d)] for d in range(len(dims))])",
        "aten.permute",
        "aten.relu",
    ),
    _types(
        "wrong axis",
        "unsqueeze one further",
        "layout:unsqueeze",
        "(*x.shape[:dim], 1, *x.shape[dim:])",
        "(*x.shape[: dim + 1], 1, *x.shape[dim + 1 :])",
        "aten.unsqueeze",
        "aten.relu",
    ),
    _types(
        "lost attribute",
        "the padding of a convolution",
        "convolution:_conv_size",
        "size + 2 * padding - dilation",
        "size + padding - dilation",
        "aten.conv2d",
        "aten.conv1d",
    ),
    _types(
        "lost attribute",
        "the dilation of a convolution",
        "convolution:_conv_size",
        "dilation * (kernel - 1) - 1",
        "(kernel - 1) - 1",
        "aten.conv2d",
        "aten.conv1d",
    ),
    _types(
        "lost attribute",
        "the groups of a transposed convolution",
        "convolution:conv_transpose",
        "simplify_dim(per_group * groups)",
        "per_group",
        "aten.conv_transpose2d.input",
        "aten.conv_transpose1d",
    ),
    _types(
        "lost attribute",
        "the rounding of a pool",
        "pooling:_pool_size",
        "if ceil_mode:",
        "if False:",
        "aten.max_pool2d",
        "aten.avg_pool2d",
    ),
    _types(
        "dropped condition",
        "a last window in the padding",
        "pooling:_pool_size",
        "if (length - 1) * stride >= size + padding:",
        "if False:",
        "aten.max_pool2d",
        "aten.avg_pool2d",
    ),
    _types(
        "lost attribute",
        "the step of a slice",
        "slicing:slice_",
        "slice(start, end, step).indices(size)",
        "slice(start, end, 1).indices(size)",
        "aten.slice.Tensor",
        "aten.relu",
    ),
    _types(
        "wrong dtype promotion",
        "comparisons keep the dtype",
        "elementwise:_nary",
        "return (TensorType(shape, result.dtype, device),)",
        "return (TensorType(shape, present[0].dtype, device),)",
        "aten.gt.Tensor",
        "aten.eq.Tensor",
        "aten.add.Tensor",
    ),
    _types(
        "wrong axis",
        "broadcasting takes the smaller size",
        "support:_broadcast_dim",
        "if type(b) is int and b == 1:\n        return a",
        "if type(b) is int and b == 1:\n        return b",
        "aten.add.Tensor",
        "aten.mul.Tensor",
        "aten.relu",
    ),
    # --- the text form
    Mutant(
        "text: attributes that equal their default but for the type",
        "lost attribute",
        "ir.text.printer:_attribute_texts",
        "attributes_equal(attributes[name], defaults[name])",
        "attributes[name] == defaults[name]",
        _TEXT,
    ),
    Mutant(
        "text: floats are rounded",
        "lost attribute",
        "ir.text.printer:format_attribute",
        "if type(value) is float:\n        return repr(value)",
        'if type(value) is float:\n        return repr(float(f"{value:.3g}"))',
        _TEXT,
    ),
    Mutant(
        "text: attributes are read as their defaults",
        "lost attribute",
        "ir.text.parser:_Parser._attributes",
        "attributes[param.name] = given.pop(param.name)",
        "attributes[param.name] = (given.pop(param.name), param.default if param.has_default else None)[1]",
        _TEXT,
    ),
    Mutant(
        "text: operands in the reverse order",
        "swapped operands",
        "ir.text.printer:_operand_texts",
        "return texts[: op.num_schema_operands]",
        "return texts[: op.num_schema_operands][::-1]",
        _TEXT,
    ),
    # --- modules
    Mutant(
        "functionalize: a write leaves views as they were",
        "stale type",
        "compiler.lower.functional.functionalizer:Functionalizer._current",
        "if handle.version != storage.version:",
        "if False:",
        _COMPILED,
    ),
    Mutant(
        "functionalize: a write through a view does not reach the whole",
        "dead write removed",
        "compiler.lower.functional.functionalizer:Functionalizer.write",
        "path.append((parent, new))",
        "pass",
        _COMPILED,
        "what the whole holds is then not known, and reading it is refused: less is compiled, and nothing wrongly",
    ),
    Mutant(
        "functionalize: the second write is lost",
        "dead write removed",
        "compiler.lower.functional.functionalizer:Functionalizer.write",
        "storage.version += 1\n",
        "storage.version += 1\n    if storage.version > 1:\n        return\n",
        _COMPILED,
        "the tensor stays marked as stale, and reading it is refused: less is compiled, and nothing wrongly",
    ),
    Mutant(
        "codegen: the eps of batch norm",
        "lost attribute",
        _MODULES + "_norm_options",
        'eps=op.attributes["eps"],',
        "eps=0.1,",
        _COMPILED,
    ),
    Mutant(
        "codegen: the padding of convolutions",
        "lost attribute",
        _MODULES + "_make_conv",
        "padding=padding,",
        "padding=tuple(0 * p for p in padding) if isinstance(padding, tuple) else padding,",
        _COMPILED,
    ),
    Mutant(
        "codegen: the eps of layer norm",
        "lost attribute",
        _MODULES + "_make_layer_norm",
        'eps=a["eps"],',
        "eps=0.1,",
        _COMPILED,
    ),
    Mutant(
        "codegen: alpha",
        "lost attribute",
        _FUNCTIONS + "_emit_infix",
        'if any(name == "alpha" and not attributes_equal(value, 1) for name, value in op.attributes.items()):',
        "if False:",
        _COMPILED,
    ),
    Mutant(
        "codegen: infix operands",
        "swapped operands",
        _FUNCTIONS + "_emit_infix",
        "tuple(operands))",
        "tuple(operands[::-1]))",
        _COMPILED,
    ),
    Mutant(
        "codegen: the dimension of a split",
        "wrong axis",
        _FUNCTIONS + "_emit_split",
        '{"dim": dim} if dim != 0 else {}',
        "{}",
        _COMPILED,
    ),
    Mutant(
        "codegen: the arguments after a default",
        "lost attribute",
        _FUNCTIONS + "arguments",
        "if param.has_default and attributes_equal(attribute, param.default):",
        "if param.has_default:",
        _COMPILED,
    ),
)
