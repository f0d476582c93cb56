"""Errors of the capture in the user's terms: module path, file and line, construct, remedy."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from types import FunctionType
from typing import Any

import attrs
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from compiler.capture.restricted_sizes import methods_of, size_restricted, with_shapes
from compiler.usercode.error_text import first_lines, frames_of
from compiler.usercode.locations import is_inside, is_user_file, kept_with, names_in
from compiler.usercode.state import Change, location_of_module
from ir.errors import CaptureError, GraphwrightError, InferenceError
from ir.locations import Location

_MAX_NAMES = 5
_MAX_TEXT = 100
_ASSIGNED = re.compile(r"tensor attributes? self\.(\S+)")


@contextmanager
def partial_graphs_unprinted() -> Iterator[None]:
    """Keep `torch.export` from printing a partial graph to standard error; other output is printed at the end."""
    held = io.StringIO()
    graph = ""
    try:
        with redirect_stderr(held):
            yield
    except Exception as error:
        graph = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise
    finally:
        sys.stderr.write(held.getvalue().replace(graph, "") if graph.strip() else held.getvalue())


def location_of_error(error: BaseException, model: nn.Module) -> Location:
    """Return the innermost location in the user's code in a traceback, with its module."""
    paths = {id(module): path for path, module in model.named_modules()}
    path, class_name, file, line = "", "", "", 0
    found = False
    for frame, number in frames_of(error):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            path, class_name = paths[id(owner)], f"{type(owner).__module__}.{type(owner).__qualname__}"
            found = True
        # frames above the first one of the model's modules are the caller's
        if found and is_user_file(frame.f_code.co_filename):
            file, line = frame.f_code.co_filename, number
    return Location(path, class_name, file, line)


def _keep(path: str, module: nn.Module) -> str:
    """Return the remedy of making a module opaque; the model itself cannot be."""
    if path:
        return kept_with(path)
    name = type(module).__name__
    return f"move that part of {name}.forward into a submodule and keep that one as is with leaf_modules="


def example_fails(error: Exception, model: nn.Module) -> CaptureError:
    """Return the error for a model that itself fails on its example inputs."""
    if isinstance(error, CaptureError):
        return error
    return CaptureError(
        f"the model itself fails on the example inputs: {type(error).__name__}: {first_lines(error)}",
        location=location_of_error(error, model),
        remedy="pass example inputs on which the model runs",
    )


def exported_fails(error: Exception) -> CaptureError:
    """Return the error for an exported program that itself fails on its example inputs."""
    return CaptureError(
        f"the exported program itself fails on its example inputs: {type(error).__name__}: {first_lines(error)}; it "
        "has every call that was traced, one that raised and was caught (`try:`) as well",
        remedy="transform the model that it was exported from, or export one whose forward catches no exceptions",
    )


def explain(error: Exception, model: nn.Module) -> CaptureError:
    """Return the error for a model that runs on its example inputs and cannot be captured."""
    if isinstance(error, CaptureError):
        return error
    location = location_of_error(error, model)
    text = str(error)
    foreign = foreign_modules(model)
    if foreign and (location.module_path in foreign or "script" in text.lower() or "__obj_flatten__" in text):
        return _foreign(error, foreign)
    leaf = _keep(_around_packed(error, location.module_path, model), model)
    if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in text:
        if _raised_in_distributions(error):
            return CaptureError(
                "data-dependent control flow: a distribution of torch.distributions checks its arguments, and values "
                "that are drawn or looked up, by numbers that are not known when the model is captured",
                location=location,
                remedy=f"make the distribution with validate_args=False, or {leaf}",
            )
        return CaptureError(
            "data-dependent control flow: Python decides by a value in a tensor (`if`, `while`, `int()`, `.item()`), "
            f"which is not known when the model is captured: {first_lines(error, 1)}",
            location=location,
            remedy=f"write it with torch.where or torch.cond, or {leaf}",
        )
    if _is_transformation(error):
        if not location.file:
            location = _that_names(model, *_TRANSFORMERS) or location_of_module("", model)
        return CaptureError(
            "forward calls torch.func.grad, torch.vmap or another transformation of functions, which torch.export "
            f"cannot trace: {type(error).__name__}: {first_lines(error, 1)[:_MAX_TEXT]}",
            location=location,
            remedy=f"write it with operators, or {_keep(location.module_path, model)}",
        )
    if "Static shape constraint" in text:
        return CaptureError(
            f"dynamic_shapes fixes a size that the example has not: {with_shapes(first_lines(error, 1))}",
            remedy='a number is the size itself; write torch.export.Dim("batch") for one that may change',
        )
    # the last is how torch's solver fails where a limit is not a whole number
    if "Constraints violated" in text or "specialized" in text or "Expected op to be" in text:
        return size_restricted(error, model, location)
    if "assigned during export" in text:
        found = _ASSIGNED.search(text)
        name = found.group(1).rstrip(",") if found else ""
        path = name.rpartition(".")[0]
        modules = dict(model.named_modules())
        return state_change([(path, modules.get(path, model), name.rpartition(".")[2])])
    if "Unsupported input type" in text or "which is not a known type" in text:
        return _unknown_class(error, model)
    if "dynamic_shapes" in text or _raised_in(error, _ABOUT_DYNAMIC_SHAPES):
        return CaptureError(
            f"dynamic_shapes does not fit the inputs: {first_lines(error, 3)}",
            remedy="give it as in torch.export.export: a dict by parameter name, or a tuple, with {axis: Dim(...)} for "
            "axes that the tensor has",
        )
    if "fake tensor in the exported program constant" in text:
        place = _that_names(model, "autograd", "backward", "jacrev", "jacfwd", "hessian")
        place = place or location_of_module("", model)
        return CaptureError(
            "forward computes gradients (torch.autograd.grad), or makes a constant of what depends on its inputs: "
            "torch.export cannot trace it",
            location=place,
            remedy=_keep(place.module_path, model),
        )
    return CaptureError(
        f"torch.export cannot trace the model: {type(error).__name__}: {first_lines(error, 3)}",
        location=location,
        remedy=leaf,
    )


_ABOUT_DYNAMIC_SHAPES = ("torch/export/dynamic_shapes.py", "torch/_export/non_strict_utils.py")


def _raised_in_distributions(error: BaseException) -> bool:
    """Return whether the innermost code above the tracer is that of a distribution."""
    home = "torch/distributions/"
    found = False
    for frame, _ in frames_of(error):
        file = frame.f_code.co_filename.replace("\\", "/")
        if home in file:
            found = True
        elif is_user_file(frame.f_code.co_filename):
            found = False
    return found


def _raised_in(error: BaseException, files: tuple[str, ...]) -> bool:
    """Return whether an error was raised in one of some files of PyTorch."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code.co_filename.replace("\\", "/").endswith(files)


def foreign_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules, by path, that torch.export cannot trace: TorchScript, packed weights."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        held = isinstance(module, torch.jit.ScriptModule) or any(
            isinstance(item, torch.ScriptObject) for item in module.__dict__.values()
        )
        if path and held and not is_inside(path, found):
            holder = _holder(path, model)
            found[holder] = model.get_submodule(holder)
    return found


def _holder(path: str, model: nn.Module) -> str:
    """Return the path of the layer whose packed weights a module holds; else of the module itself."""
    parent = path.rpartition(".")[0]
    packed = type(model.get_submodule(path)).__name__ == "LinearPackedParams"
    return parent if packed and parent else path


def _foreign(error: Exception, modules: dict[str, nn.Module]) -> CaptureError:
    path, module = next(iter(modules.items()))
    kind = "a TorchScript module" if isinstance(module, torch.jit.ScriptModule) else "a layer with packed weights"
    names = ", ".join(f"`{each}`" for each in list(modules)[:_MAX_NAMES])
    return CaptureError(
        f"{names} is {kind}, which torch.export cannot trace: {type(error).__name__}: {first_lines(error, 1)}",
        location=location_of_module(path, module),
        remedy=f"keep it as is with leaf_modules={list(modules)!r}, or transform the model as it was before",
    )


def _around_packed(error: BaseException, path: str, model: nn.Module) -> str:
    """Return the module to keep: with a packed sequence among its arguments, the one around it, which packs it."""
    for frame, _ in frames_of(error):
        held = frame.f_locals
        if held.get("self") is model.get_submodule(path) and any(isinstance(v, PackedSequence) for v in held.values()):
            return path.rpartition(".")[0]
    return path


def check_no_packed(tree: Any, path: str, module: nn.Module) -> None:
    """Check the arguments or the result of an opaque module.

    Raises:
        CaptureError: when there is a packed sequence among them.
    """
    if not any(isinstance(item, PackedSequence) for item in pytree.tree_leaves(tree, is_leaf=_is_packed)):
        return
    around = path.rpartition(".")[0]
    raise CaptureError(
        f"`{path}` is given or returns a PackedSequence, and an opaque module takes and returns tensors",
        location=location_of_module(path, module),
        remedy=f"keep the module around it, which packs and unpacks the sequence, with leaf_modules=[{around!r}]"
        if around
        else "move what packs and unpacks the sequence into a submodule with it, and name that one in leaf_modules=",
    )


def _is_packed(item: Any) -> bool:
    return isinstance(item, PackedSequence)


_OF_TENSORS = ("torch.dtype", "torch.device", "torch.layout")


def _unknown_class(error: Exception, model: nn.Module) -> CaptureError:
    """Return the error for an argument or a result of a class that pytree does not know."""
    text = str(error)
    what = "an argument" if "input type" in text else "a result"
    found = re.search(r"<class '([^']*)'>", text)
    name = found.group(1) if found else first_lines(error, 1)
    simple = name.rpartition(".")[2]
    if name in _OF_TENSORS:
        return CaptureError(
            f"{what} of forward is a {name}, which torch.export does not know",
            location=location_of_module("", model),
            remedy=f"leave it out of the result: the caller has it as `y.{simple}` of a tensor `y` there"
            if what == "a result"
            else f"ask a tensor for it in forward (`x.{simple}`), or keep it in an attribute of the module",
        )
    return CaptureError(
        f"{what} of forward is of a class that torch.export does not know: {name}",
        location=location_of_module("", model),
        remedy=f"call torch.export.register_dataclass({simple}) once if it is a dataclass, "
        f"torch.utils._pytree.register_pytree_node({simple}, ...) if it is another container; or take and return "
        "tensors, numbers, tuples, lists and dicts",
    )


def _that_names(model: nn.Module, *names: str) -> Location | None:
    """Return the innermost module whose code, or a function in its attributes, names one of `names`."""
    found = None
    for path, module in model.named_modules():
        held = (item.__code__ for item in module.__dict__.values() if isinstance(item, FunctionType))
        for code in (*methods_of(type(module)), *held):
            if is_user_file(code.co_filename) and not set(names).isdisjoint(names_in(code)):
                found = attrs.evolve(location_of_module(path, module), file=code.co_filename, line=code.co_firstlineno)
    return found


def is_of_functorch(target: Any) -> bool:
    """Return whether a function in a graph is internal to functorch (torch.vmap, torch.func)."""
    return "functorch" in (getattr(target, "__module__", "") or "")


def _is_transformation(error: BaseException) -> bool:
    """Return whether the tracer failed in a function transformation."""
    if "functorch tensor" in str(error):
        return True
    return any(frame.f_code.co_filename.replace("\\", "/").endswith(_TRANSFORMATIONS) for frame, _ in frames_of(error))


_TRANSFORMERS = ("vmap", "grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "linearize")
_TRANSFORMATIONS = ("torch/_functorch/eager_transforms.py", "torch/_functorch/vmap.py", "torch/_functorch/apis.py")


def no_operator(target: Any, location: Location, model: nn.Module | None) -> CaptureError:
    """Return the error for a function in a graph that is not an operator."""
    name = getattr(target, "__name__", repr(target))
    path = location.module_path
    keep = kept_with(path) if path or model is None else _keep("", model)
    if is_of_functorch(target):
        return CaptureError(
            "forward calls torch.vmap, torch.func.grad or another transformation of functions, which torch.export "
            f"leaves in the graph: no operators ({name})",
            location=location,
            remedy=f"write it with operators (on the stacked tensors, for vmap), or {keep}",
        )
    return CaptureError(f"the graph calls {name!r}, which is not an operator", location=location, remedy=keep)


def at_operation(error: GraphwrightError, location: Location, advice: str = "") -> GraphwrightError:
    """Return an error with the location of its operation, and with a remedy if it is about types.

    That is `advice`, or a general one if it is empty.
    """
    place, remedy = error.location or location, error.remedy
    if remedy is None and isinstance(error, InferenceError) and advice:
        remedy = advice
    elif remedy is None and isinstance(error, InferenceError):
        path = place.module_path
        what = f"leaf_modules=[{path!r}]" if path else "leaf_modules=, in a submodule of its own"
        remedy = f"write it with other operators, or keep the code that calls it as is with {what}"
    return type(error)(error.message, location=place, remedy=remedy)


def state_change(changed: Sequence[Change], opaques: Collection[str] = ()) -> CaptureError:
    """Return the error for a model that changes attributes of its modules in forward.

    `opaques` are the paths of opaque modules, whose own code was not called.
    """
    path, module, _ = changed[0]
    every = list(dict.fromkeys(f"`{p}.{n}`" if p else f"`{n}`" for p, _, n in changed))
    names = ", ".join(every[:_MAX_NAMES]) + (", …" if len(every) > _MAX_NAMES else "")
    remedy = f"keep it in a buffer (register_buffer), or {_keep(path, module)}"
    if changed[0][2] in module._buffers:
        remedy = (
            f"let the buffer {changed[0][2]!r} be a tensor, of one shape and dtype, from __init__ on; "
            f"or {_keep(path, module)}"
        )
    if any(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values()):
        remedy = (
            "use torch.nn.utils.parametrizations in place of the older weight_norm and spectral_norm, and make a "
            "pruning permanent with torch.nn.utils.prune.remove"
        )
    if is_inside(path, opaques):
        remedy = (
            f"keep the module that sets it as is with leaf_modules=, not `{path}` alone; or, where it is set once "
            "for good, call the model once before it is transformed"
        )
    kind = "what buffers are" if changed[0][2] in module._buffers else "Python state"
    return CaptureError(
        f"forward changes {kind}: {names}; a captured graph would not change it",
        location=location_of_module(path, module),
        remedy=remedy,
    )
