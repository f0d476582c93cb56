"""Checks of example inputs, and the user's names of dynamic dimensions."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from compiler.usercode.overlap import may_overlap
from ir.attributes import is_deeper
from ir.errors import CaptureError, InputError

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that take an argument by name."""


MAX_NESTING = 200
"""How deep arguments and results may be nested: PyTorch compares structures by recursion."""


def has_example(model: Any, example_inputs: Any, example_kwargs: Any) -> bool:
    """Return whether there is an example call: an exported program may bring its own."""
    if example_inputs is not None or example_kwargs is not None:
        return True
    return isinstance(model, ExportedProgram) and model.example_inputs is not None


def check_inputs(example_inputs: Any, example_kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as (args, kwargs).

    Raises:
        InputError: when they are not a tuple (or a bare tensor) and a mapping with string keys, or nested too deep.
    """
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if example_inputs is None:
        example_inputs = ()
    if type(example_inputs) is not tuple:
        kind = type(example_inputs).__qualname__
        remedy = "write `(x,)` for a model that takes `x`, `(x, y)` for one that takes `x` and `y`"
        if isinstance(example_inputs, dict):
            remedy = "pass keyword arguments as example_kwargs="
        elif isinstance(example_inputs, list):
            remedy = "write a tuple: `(x,)`; or `([x, y],)` if the model takes a list"
        raise InputError(f"example_inputs must be a tuple of the positional arguments, not a {kind}", remedy=remedy)
    kwargs = {} if example_kwargs is None else example_kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise InputError(f"example_kwargs must map argument names to values, not be a {type(kwargs).__qualname__}")
    if is_deeper((example_inputs, kwargs), MAX_NESTING):
        raise InputError(
            f"the example inputs are nested more than {MAX_NESTING} deep", remedy="pass a list of what they hold"
        )
    return example_inputs, dict(kwargs)


def check_layouts(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse weights and arguments that are sparse or nested, which types cannot describe.

    Raises:
        CaptureError: when there is one.
    """
    named = [(f"`{name}`", tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    named += [(f"tensor number {i} of the arguments", leaf) for i, leaf in enumerate(leaves)]
    for what, tensor in named:
        if tensor.layout is not torch.strided or tensor.is_nested:
            layout = "a nested tensor" if tensor.is_nested else f"of layout {tensor.layout}"
            raise CaptureError(
                f"{what} is {layout}, which is not supported",
                remedy="make it dense: with to_dense(), or as a padded tensor and a mask",
            )


@attrs.frozen(eq=False)
class BoundInputs:
    """The arguments of the example call in the order of the capture."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    """Those of named parameters in the order of the signature, then those of `**kwargs` in the order given."""
    dynamic_shapes: Any


def bind_inputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> BoundInputs:
    """Bind the example inputs to the parameters of the forward method.

    The order of named arguments is meaningless, so equal calls are captured in one order. Arguments of an FX graph are
    completed by the defaults, since `torch.export` interprets it with all of them by position.

    Raises:
        InputError: when the inputs do not fit the parameters, or keyword arguments would be passed by position.
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return BoundInputs(args, dict(kwargs), dynamic_shapes)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit {type(model).__qualname__}.forward{signature}: {error}",
            remedy="pass the arguments of one call as example_inputs=(...) and example_kwargs={...}",
        ) from None
    if kwargs and isinstance(model, fx.GraphModule):
        starred = [n.target for n in model.graph.nodes if n.op == "placeholder" and str(n.target).startswith("*")]
        if starred:
            raise InputError(
                f"the graph takes {starred[0]}, and torch.export would pass it the keyword arguments by position",
                remedy="pass the model that the graph was traced from",
            )
        if isinstance(dynamic_shapes, (list, tuple)):
            dynamic_shapes = dict(zip(bound.arguments, dynamic_shapes, strict=False))
        bound.apply_defaults()
        absent = [name for name in bound.arguments if name in signature.parameters and name not in kwargs]
        absent = [n for n in absent[len(args) :] if signature.parameters[n].kind in _BY_NAME]
        kwargs = {**kwargs, **{name: bound.arguments[name] for name in absent}}
        if isinstance(dynamic_shapes, dict):
            dynamic_shapes = {**dict.fromkeys(absent), **dynamic_shapes}
    named = [name for name, p in signature.parameters.items() if name in kwargs and p.kind in _BY_NAME]
    return BoundInputs(args, {name: kwargs[name] for name in dict.fromkeys((*named, *kwargs))}, dynamic_shapes)


def variable_keywords(model: nn.Module, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keyword arguments that `**kwargs` of the forward method takes."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return ()
    return tuple(name for name in kwargs if name not in parameters or parameters[name].kind not in _BY_NAME)


def check_names(model: nn.Module | ExportedProgram) -> None:
    """Refuse names that Python's parser identifies, as it normalizes names by NFKC.

    The code of graphs, ours and that of PyTorch, would confuse the attributes.

    Raises:
        InputError: when there are such names.
    """
    if isinstance(model, nn.Module):
        held = (model.named_modules, model.named_parameters, model.named_buffers)
        paths = [path for each in held for path, _ in each(remove_duplicate=False)]
    else:
        paths = [*model.state_dict, *model.constants]
    if all(map(str.isascii, paths)):
        return
    found: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
            other = found.setdefault(unicodedata.normalize("NFKC", name), name)
            if other != name:
                raise InputError(
                    f"`{other}` ({other!a}) and `{name}` ({name!a}) are one name in Python code, where names"
                    " are normalized (NFKC): the code of a graph could not tell them apart",
                    remedy="rename one of them",
                )


def unshared(tree: Any) -> Any:
    """Return the example inputs with copies of tensors that share storage with an earlier one.

    `torch.export` would identify two tensors of one storage.
    """
    seen: set[tuple[torch.device, int]] = set()

    def visit(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided or leaf.device.type == "meta":
            return leaf
        key = (leaf.device, leaf.untyped_storage().data_ptr())
        if key not in seen:
            seen.add(key)
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    return pytree.tree_map(visit, tree)


def sharing(tree: Any) -> tuple[frozenset[int], ...]:
    """Return the groups of example inputs that overlap in memory, by their numbers among the tensors.

    Disjoint parts of one storage do not overlap.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    groups = []
    for i, tensor in enumerate(tensors):
        group = frozenset(j for j, other in enumerate(tensors) if may_overlap(tensor, other)) | {i}
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return tuple(groups)


def symbol_names(
    exported: ExportedProgram, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> dict[str, str]:
    """Return PyTorch's name of a symbol -> the user's name."""
    if not dynamic_shapes:
        return {}
    specs = list(_flat_specs((args, dict(kwargs)), _by_argument(model, args, kwargs, dynamic_shapes)))
    vals = [
        node.meta.get("val")
        for node, spec in zip(exported.graph.nodes, exported.graph_signature.input_specs, strict=False)
        if spec.kind is InputKind.USER_INPUT
    ]
    names: dict[str, str] = {}
    for val, spec in zip(vals, specs, strict=False):
        if not isinstance(val, torch.Tensor) or not isinstance(spec, (dict, list, tuple)):
            continue
        pairs = spec.items() if isinstance(spec, dict) else enumerate(spec)
        for axis, dim in pairs:
            size = val.shape[axis]
            name = getattr(dim, "__name__", None)
            if not isinstance(name, str) or not name.isidentifier():
                continue
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                names.setdefault(size.node.expr.name, name)
    return names


def _by_argument(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> tuple[Any, Any]:
    """Return dynamic shapes, given by parameter name or as a sequence, in the structure (args, kwargs)."""
    parameters = inspect.signature(model.forward).parameters
    arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    if isinstance(dynamic_shapes, (list, tuple)):
        dynamic_shapes = dict(zip(arguments, dynamic_shapes, strict=False))
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, argument in arguments.items():
        kind, spec = parameters[name].kind, dynamic_shapes.get(name)
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found = spec if isinstance(spec, (list, tuple)) else ()
            positional += [found[i] if i < len(found) else None for i in range(len(argument))]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            keywords.update(spec if isinstance(spec, Mapping) else {})
        elif len(positional) < len(args):
            positional.append(spec)
        else:
            keywords[name] = spec
    return tuple(positional), keywords


def _flat_specs(tree: Any, spec: Any) -> Iterator[Any]:
    """Yield the entry in `spec` of each leaf of `tree`, in pytree order."""
    children, context = _children(tree)
    if children is None:
        yield spec
        return
    for key, child in children:
        entry = None
        if isinstance(spec, Mapping):
            entry = spec.get(key)
        elif isinstance(spec, (list, tuple)) and isinstance(key, int) and key < len(spec):
            entry = spec[key]
        elif context is not None and isinstance(spec, context):
            entry = getattr(spec, str(key), None)
        yield from _flat_specs(child, entry)


def _children(tree: Any) -> tuple[Sequence[tuple[Any, Any]] | None, type | None]:
    kind = type(tree)
    if isinstance(tree, dict) and kind in pytree.SUPPORTED_NODES:
        return list(tree.items()), None
    if kind not in pytree.SUPPORTED_NODES and not pytree.is_namedtuple_instance(tree):
        return None, None
    flat, _ = pytree.tree_flatten(tree, is_leaf=lambda item: item is not tree)
    return list(enumerate(flat)), kind
