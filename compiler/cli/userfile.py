"""The user's code for the command line: a model from `FILE.py:function`, patterns and passes, dynamic sizes."""

from __future__ import annotations

import importlib.util
import inspect
import keyword
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from compiler.usercode.error_text import frames_of
from ir.errors import GraphwrightError, InputError
from passes.manager.manager import Pass
from passes.rewrite.pattern import Pattern

_SIZE_FORM = "write INPUT.DIM=NAME, or INPUT.DIM=NAME:MIN..MAX with the smallest and the largest size: x.0=batch:1..64"
_WHAT_TO_RETURN = "return (module, example inputs) or (module, example inputs, keyword arguments)"


class UserCodeError(GraphwrightError):
    """The user's file failed to load, or its function did not return a model."""


@attrs.frozen(eq=False)
class UserModel:
    """What the user's function returned."""

    module: nn.Module | ExportedProgram
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any]


@contextmanager
def search_path(folder: Path) -> Iterator[None]:
    """Put a folder first on `sys.path`, as Python does for a script in it."""
    saved = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = saved


def load_file(path: Path) -> ModuleType:
    """Import a Python file under its own name, so that what it defines can be pickled.

    Raises:
        UserCodeError: when it raises.
    """
    path = path.resolve()
    # A file called like an imported module (`json.py`, `ir.py`) must not take its place.
    name = path.stem
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserCodeError(f"{path} is not a Python file", remedy="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserCodeError(f"{path} raised {type(error).__name__}: {error}{line_in(error, path)}") from error
    return module


def load_model(file: ModuleType, function: str) -> UserModel:
    """Call a function of a loaded file without arguments, and return the model it made.

    Raises:
        UserCodeError: when there is no such function, it raises, or it does not return a module, perhaps with example
            inputs and keyword arguments.
    """
    path = Path(str(file.__file__))
    found = vars(file).get(function)
    if not callable(found):
        functions = [value for value in vars(file).values() if inspect.isfunction(value)]
        known = [value.__name__ for value in functions if value.__module__ == file.__name__]
        raise UserCodeError(
            f"{path} has no function {function!r}", remedy=f"it has {', '.join(known)}" if known else _WHAT_TO_RETURN
        )
    returned = call(found, path)
    parts = returned if isinstance(returned, tuple) else (returned,)
    module, args, kwargs = (*parts, None, None)[:3]
    if not isinstance(module, (nn.Module, ExportedProgram)) or len(parts) > 3:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise UserCodeError(f"{path.name}:{function} returned ({kinds})", remedy=_WHAT_TO_RETURN)
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not (args is None or isinstance(args, (tuple, list))) or not (kwargs is None or isinstance(kwargs, Mapping)):
        raise UserCodeError(
            f"{path.name}:{function} returned a {type(args).__name__} as inputs and a {type(kwargs).__name__} as "
            "keyword arguments",
            remedy="the inputs are a tensor or a tuple, the keyword arguments a dict",
        )
    return UserModel(module, None if args is None else tuple(args), dict(kwargs or {}))


def call(function: Callable[[], Any], path: Path) -> Any:
    """Return what a function of the user's file returns.

    Raises:
        UserCodeError: when it raises; it names the line.
    """
    try:
        return function()
    except GraphwrightError:
        raise
    except (Exception, SystemExit) as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise UserCodeError(
            f"{path.name}:{name} raised {type(error).__name__}: {error}{line_in(error, path)}"
        ) from error


def line_in(error: BaseException, path: Path) -> str:
    """Return the innermost line of the user's file in a traceback, as the end of a message; empty if there is none."""
    lines = [line for frame, line in frames_of(error) if frame.f_code.co_filename == str(path)]
    line = lines[-1] if lines else 0
    if isinstance(error, SyntaxError) and error.lineno:
        line = error.lineno
    return f"\n  at {path}:{line}" if line else ""


def extensions_of(modules: Sequence[ModuleType]) -> tuple[tuple[type[Pattern], ...], tuple[type[Pass], ...]]:
    """Return the pattern classes and the pass classes that modules define themselves, in order of definition."""
    patterns: list[type[Pattern]] = []
    passes: list[type[Pass]] = []
    for module in modules:
        for value in vars(module).values():
            if not isinstance(value, type) or value.__module__ != module.__name__:
                continue
            if issubclass(value, Pattern):
                patterns.append(value)
            elif issubclass(value, Pass):
                passes.append(value)
    return tuple(patterns), tuple(passes)


@attrs.frozen
class DynamicSize:
    """`INPUT.DIM=NAME[:MIN..MAX]`: dimension `dim` of an input (a parameter's name or number) is the symbol `name`."""

    input: str
    dim: int
    name: str
    min: int | None = None
    max: int | None = None

    @classmethod
    def parse(cls, text: str) -> DynamicSize:
        """Return the size that `text` describes.

        Raises:
            InputError: when the text has another form, or no size is in the range.
        """
        place, _, symbol = text.partition("=")
        input_, _, dim = place.rpartition(".")
        name, colon, bounds = symbol.partition(":")
        low, dots, high = bounds.partition("..")
        is_number = re.compile(r"[0-9]+").fullmatch
        numbers_fit = is_number(dim) and all(part == "" or is_number(part) for part in (low, high))
        if not (input_ and name.isidentifier() and not keyword.iskeyword(name) and numbers_fit):
            raise InputError(f"{text!r} is not a dynamic size", remedy=_SIZE_FORM)
        if bool(colon) != bool(dots) or (colon and not (low or high)):
            raise InputError(f"{bounds!r} in {text!r} is not a range of sizes", remedy=_SIZE_FORM)
        if low and high and int(low) >= int(high):
            same = int(low) == int(high)
            raise InputError(
                f"the range {bounds} in {text!r} has {'one size only' if same else 'no size'}",
                remedy="leave the dimension out, it is static then" if same else f"write {high}..{low}",
            )
        return cls(input_, int(dim), name, int(low) if low else None, int(high) if high else None)


def dynamic_shapes_of(model: UserModel, sizes: Sequence[DynamicSize], *, batch: bool) -> dict[str, Any] | None:
    """Return `dynamic_shapes` as `torch.export` takes them; None when nothing is dynamic.

    Args:
        model: the model and its inputs.
        sizes: single dimensions.
        batch: whether the first dimension of every tensor is the symbol `batch`.

    Raises:
        InputError: when the inputs do not fit the model, a size names an input that is not a tensor, two sizes
            contradict each other, or the example is of another size.
    """
    if not (sizes or batch):
        return None
    if isinstance(model.module, ExportedProgram) or model.args is None:
        raise InputError("dynamic sizes need an nn.Module and example inputs", remedy="return the module itself")
    try:
        bound = inspect.signature(model.module.forward).bind(*model.args, **model.kwargs).arguments
    except TypeError as error:
        raise InputError(f"the example inputs do not fit {type(model.module).__name__}.forward: {error}") from error
    symbols: dict[str, Any] = {}
    ranges = _ranges(sizes)

    def symbol(name: str) -> Any:
        if name not in symbols:
            bounds = zip(("min", "max"), ranges.get(name, (None, None)), strict=True)
            symbols[name] = Dim(name, **{key: value for key, value in bounds if value is not None})
        return symbols[name]

    dims: dict[str, dict[int, Any]] = {}
    names = list(bound)
    for size in sizes:
        name = names[int(size.input)] if size.input.isdigit() and int(size.input) < len(names) else size.input
        tensor = bound.get(name)
        if not isinstance(tensor, torch.Tensor) or size.dim >= tensor.dim():
            raise InputError(
                f"there is no dimension {size.dim} of an input {size.input!r}",
                remedy=f"the inputs are {', '.join(f'{n} {_shape(v)}' for n, v in bound.items())}",
            )
        low, high = ranges[size.name]
        if tensor.shape[size.dim] < (low or 0) or (high is not None and tensor.shape[size.dim] > high):
            raise InputError(
                f"dimension {size.dim} of the example input {name!r} is {tensor.shape[size.dim]}, which is not in the "
                f"range {'' if low is None else low}..{'' if high is None else high} of {size.name!r}",
                remedy="widen the range, or return an example input of a size in it",
            )
        if size.dim in dims.get(name, {}):
            raise InputError(f"dimension {size.dim} of input {name!r} is given twice", remedy="give it one symbol")
        dims.setdefault(name, {})[size.dim] = symbol(size.name)

    def spec(name: str, value: Any) -> Any:
        own = dims.get(name, {})

        def of_leaf(leaf: Any) -> dict[int, Any] | None:
            if not isinstance(leaf, torch.Tensor):
                return None
            first = {0: symbol("batch")} if batch and leaf.dim() and 0 not in own else {}
            return {**first, **own} or None

        return pytree.tree_map(of_leaf, value)

    return {name: spec(name, value) for name, value in bound.items()}


def _ranges(sizes: Sequence[DynamicSize]) -> dict[str, tuple[int | None, int | None]]:
    """Return the range of each symbol; one of its places is enough to give it."""
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for size in sizes:
        given = size.min, size.max
        known = ranges.get(size.name, (None, None))
        if (None, None) not in (given, known) and given != known:
            raise InputError(f"{size.name!r} is given two ranges", remedy="give one, at one of its places")
        ranges[size.name] = known if given == (None, None) else given
    return ranges


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"({type(value).__name__})"
