"""Why a capture failed, in the user's terms: module path, file and line, construct, remedy."""

from __future__ import annotations

import io
import linecache
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from traceback import FrameSummary
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any

import attrs
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from compiler.capture_state import Change, location_of_module
from compiler.lower_locations import callers, is_user_file
from ir.errors import CaptureError
from ir.locations import Location

_MAX_NAMES = 5
_ASSIGNED = re.compile(r"tensor attributes? self\.(\S+)")


@contextmanager
def partial_graphs_unprinted() -> Iterator[None]:
    """Keep `torch.export` from printing the graph so far to standard error when it fails; all else is printed after."""
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


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of an error's traceback, and of those it came from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for each in reversed(chain):
        traceback: TracebackType | None = each.__traceback__
        while traceback is not None:
            yield traceback.tb_frame, traceback.tb_lineno
            traceback = traceback.tb_next


def location_of_error(error: BaseException, model: nn.Module) -> Location:
    """Return the innermost place in the user's code that a traceback passed through, and its module."""
    paths = {id(module): path for path, module in model.named_modules()}
    path, class_name, file, line = "", "", "", 0
    found = False
    for frame, number in _frames(error):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            path, class_name = paths[id(owner)], f"{type(owner).__module__}.{type(owner).__qualname__}"
            found = True
        # frames outside of the model are the caller's, up to the first of one of its modules
        if found and is_user_file(frame.f_code.co_filename):
            file, line = frame.f_code.co_filename, number
    return Location(path, class_name, file, line)


def _keep(path: str, module: nn.Module) -> str:
    """Return the remedy of keeping a module as an opaque call; the model itself cannot be one."""
    if path:
        return f"keep `{path}` as it is with leaf_modules=[{path!r}]"
    name = type(module).__name__
    return f"move that part of {name}.forward into a submodule and keep that one as it is with leaf_modules="


def example_fails(error: Exception, model: nn.Module) -> CaptureError:
    """Return the error for a model that fails on its example inputs without any capture."""
    return CaptureError(
        f"the model itself fails on the example inputs: {type(error).__name__}: {_first_lines(error)}",
        location=location_of_error(error, model),
        remedy="pass example inputs on which the model runs",
    )


def explain(error: Exception, model: nn.Module) -> CaptureError:
    """Return the error for a model that runs on its example inputs and cannot be captured."""
    if isinstance(error, CaptureError):
        return error
    location = location_of_error(error, model)
    leaf = _keep(location.module_path, model)
    text = str(error)
    if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in text:
        return CaptureError(
            "data-dependent control flow: Python decides by a value in a tensor (`if`, `while`, `int()`, `.item()`), "
            f"which is not known when the model is captured: {_first_lines(error, 1)}",
            location=location,
            remedy=f"write it with torch.where or torch.cond, or {leaf}",
        )
    # the last is how torch's solver ends where a limit is no whole number
    if "Constraints violated" in text or "specialized" in text or "Expected op to be" in text:
        return _restricted(error, model, location)
    if "assigned during export" in text:
        found = _ASSIGNED.search(text)
        name = found.group(1).rstrip(",") if found else ""
        path = name.rpartition(".")[0]
        modules = dict(model.named_modules())
        return state_change([(path, modules.get(path, model), name.rpartition(".")[2])])
    if "Unsupported input type" in text or "which is not a known type" in text:
        what = "an argument" if "input type" in text else "a result"
        found = re.search(r"<class '([^']*)'>", text)
        name = found.group(1) if found else _first_lines(error, 1)
        return CaptureError(
            f"{what} is of a class that torch.export does not know: {name}",
            location=location_of_module("", model),
            remedy=f"before the transform, register {name} with torch.export.register_dataclass if it is a dataclass,"
            " else with torch.utils._pytree.register_pytree_node; or take and return tensors, numbers, tuples, lists"
            " and dicts",
        )
    if "dynamic_shapes" in text:
        return CaptureError(
            f"dynamic_shapes does not fit the inputs: {_first_lines(error, 3)}",
            remedy="give it as in torch.export.export: a dict by parameter name, or a tuple, with {axis: Dim(...)}",
        )
    return CaptureError(
        f"torch.export cannot trace the model: {type(error).__name__}: {_first_lines(error, 3)}",
        location=location,
        remedy=leaf,
    )


def state_change(changed: Sequence[Change]) -> CaptureError:
    """Return the error for a model that changes attributes of its modules in forward."""
    path, module, _ = changed[0]
    every = list(dict.fromkeys(f"`{p}.{n}`" if p else f"`{n}`" for p, _, n in changed))
    names = ", ".join(every[:_MAX_NAMES]) + (", …" if len(every) > _MAX_NAMES else "")
    remedy = f"keep it in a buffer (register_buffer), or {_keep(path, module)}"
    if any(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values()):
        remedy = (
            "use torch.nn.utils.parametrizations in place of the older weight_norm and spectral_norm, and make a "
            "pruning permanent with torch.nn.utils.prune.remove"
        )
    return CaptureError(
        f"forward changes Python state: {names}; a captured graph would change it never again",
        location=location_of_module(path, module),
        remedy=remedy,
    )


def _first_lines(error: BaseException, count: int = 3) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:count])


_ADVICE = re.compile(
    r"For more information, run with TORCH_LOGS=\S+ ?|The error above occurred when calling .*|"
    r"If you're using mark_dynamic, .*?Dim\.AUTO\. ?"
)
_SIZE_OF = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
_ONE = re.compile(r"specialized it to be a constant \(1\)")


def _restricted(error: Exception, model: nn.Module, location: Location) -> CaptureError:
    """Return the error for a dimension that is marked as dynamic, and which not every size fits."""
    where = _specialization(error, model) or location
    text = _SIZE_OF.sub(r"\1.shape[\2]", _ADVICE.sub("", _first_lines(error, 8))).strip()
    line = linecache.getline(where.file, where.line).strip()
    by = f" by `{line}`" if line else " by the model"
    if _ONE.search(text):
        remedy = "pass example inputs with 2 or more there: torch.export takes a size of 1 as fixed, as it broadcasts"
    elif "specialized" not in text:
        remedy = (
            "give dynamic_shapes= what the model allows: a range (Dim(name, min=, max=)), 2*n, or the same Dim twice"
        )
    else:
        remedy = "leave that dimension out of dynamic_shapes=, or make the model independent of its size"
    verb = "fixed" if "specialized" in text else "restricted"
    return CaptureError(f"a dimension marked as dynamic is {verb}{by}: {text}", location=where, remedy=remedy)


def _specialization(error: BaseException, model: nn.Module) -> Location | None:
    """Return the user's line that fixed a symbolic size, from the shape environment in the traceback."""
    for frame, _ in _frames(error):
        for value in list(frame.f_locals.values()):
            if isinstance(value, ShapeEnv):
                found = _first_user_location(value)
                if found is not None:
                    return _with_module(found, model)
    return None


def _first_user_location(shape_env: ShapeEnv) -> Location | None:
    replaced = shape_env.replacements
    slocs = getattr(shape_env, "replacements_slocs", {})
    # a symbol that became a number, before one that became another symbol
    places: list[Any] = [sloc for symbol, sloc in slocs.items() if getattr(replaced.get(symbol), "is_number", False)]
    places += [guard.sloc for guard in getattr(shape_env, "guards", ())]
    places += slocs.values()
    outside = callers()
    for place in places:
        frame = getattr(place, "framework_loc", None)
        if not isinstance(frame, FrameSummary) or frame.lineno is None or not is_user_file(frame.filename):
            continue
        if (frame.filename, frame.lineno) not in outside:
            return Location(file=frame.filename, line=frame.lineno)
    return None


def _with_module(location: Location, model: nn.Module) -> Location:
    """Return a location with the module whose class has that line in a method, where it is the only one."""
    found = {
        path: module
        for path, module in model.named_modules()
        if any(
            code.co_filename == location.file and code.co_firstlineno <= location.line <= _last_line(code)
            for code in _methods(type(module))
        )
    }
    if len(found) != 1:
        return location
    ((path, module),) = found.items()
    return attrs.evolve(
        location, module_path=path, module_class=f"{type(module).__module__}.{type(module).__qualname__}"
    )


def _methods(class_: type) -> Iterator[CodeType]:
    for base in class_.__mro__:
        if base is not nn.Module:
            yield from (item.__code__ for item in vars(base).values() if isinstance(item, FunctionType))


def _last_line(code: CodeType) -> int:
    return max((line for *_, line in code.co_lines() if line is not None), default=code.co_firstlineno)
