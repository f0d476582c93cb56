"""Errors for dynamic dimensions that the model fixes or restricts, with the user's line."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from traceback import FrameSummary
from types import CodeType, FunctionType
from typing import Any

import attrs
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.usercode.error_text import first_lines, frames_of
from compiler.usercode.locations import callers, is_user_file
from ir.errors import CaptureError
from ir.locations import Location

_SIZE_OF = re.compile(r"L\['(\w+)'\]((?:\[\w+\])*)\.size\(\)\[(\d+)\]")
_ONE = re.compile(r"specialized it to be a constant \(1\)")


def with_shapes(text: str) -> str:
    """Return a text with sizes in Python's spelling: `x.shape[0]`."""
    return _SIZE_OF.sub(r"\1\2.shape[\3]", text)


def size_restricted(error: Exception, model: nn.Module, location: Location) -> CaptureError:
    """Return the error for a dynamic dimension that does not allow all sizes."""
    where = specialization(error, model) or location
    text = with_shapes(first_lines(error, 8))
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


def specialization(error: BaseException, model: nn.Module) -> Location | None:
    """Return the user's line that fixed a symbolic size, from the shape environment in the traceback."""
    for frame, _ in frames_of(error):
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
    """Return a location with the only module whose class has that line in a method, if there is one."""
    found = {
        path: module
        for path, module in model.named_modules()
        if any(
            code.co_filename == location.file and code.co_firstlineno <= location.line <= _last_line(code)
            for code in methods_of(type(module))
        )
    }
    if len(found) != 1:
        return location
    ((path, module),) = found.items()
    return attrs.evolve(
        location, module_path=path, module_class=f"{type(module).__module__}.{type(module).__qualname__}"
    )


def methods_of(class_: type) -> Iterator[CodeType]:
    """Yield the code of the methods of a module's class and its bases."""
    for base in class_.__mro__:
        if base is not nn.Module:
            yield from (item.__code__ for item in vars(base).values() if isinstance(item, FunctionType))


def _last_line(code: CodeType) -> int:
    return max((line for *_, line in code.co_lines() if line is not None), default=code.co_firstlineno)
