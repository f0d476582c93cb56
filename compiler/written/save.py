"""Packages of code: an emitted module as files that can be read and imported."""

from __future__ import annotations

import importlib.util
import keyword
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.emitted.graphmodule import EmittedModule, TreeGraphModule
from compiler.emitted.written import WrittenModule, tensors_of
from compiler.savefiles import write_files
from compiler.written.code import WEIGHTS, Written, write_module
from compiler.written.layers import OF_MODULES, alike, layer_class
from ir.errors import CodegenError, InputError
from ir.paths import checked_path

_MARK = "# Written by graphwright: "
_INIT, _MODULE = "__init__.py", "module.py"
_OWN = (_INIT, _MODULE, WEIGHTS, "__pycache__")


def check_package(path: Path) -> None:
    """Check that a package can be written to a folder.

    Raises:
        InputError: when its name is none that Python can import, its parent does not exist, or it holds other things.
    """
    name = path.resolve().name
    if not name.isidentifier() or keyword.iskeyword(name):
        fit = "".join(c if c.isalnum() else "_" for c in name.removesuffix(".py"))
        raise InputError(
            f"Python cannot import a package called {name!r}",
            remedy=f"name the folder {fit if fit.isidentifier() and not keyword.iskeyword(fit) else f'net_{fit}'}",
        )
    if not path.resolve().parent.is_dir():
        raise InputError(f"there is no folder {path.resolve().parent} to write the package {name} to")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, and a folder is to be written there: name another one")
    other = sorted(each.name for each in path.iterdir() if each.name not in _OWN) if path.is_dir() else []
    is_ours = not (path.is_dir() and any(path.iterdir())) or _is_ours(path / _INIT)
    if other or not is_ours:
        raise InputError(
            f"{path} holds other things than a package that graphwright wrote"
            + (f" ({', '.join(other[:3])})" if other else ""),
            remedy="name another folder, or remove this one",
        )


def _is_ours(file: Path) -> bool:
    try:
        return file.read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False


def save_code(module: nn.Module, path: str | os.PathLike[str], *, source: str = "") -> None:
    """Write an emitted module as a package: its code, to be read, and its weights; `load()` of it returns the module.

    What is written is imported and compared with the module before it takes its place.

    Args:
        module: the module of a result.
        path: the folder, whose name is that of the package. One that this function wrote is replaced.
        source: what the module was made of, for the first lines.

    Raises:
        InputError: when the module is none of a result, or the folder cannot be the package's.
        CodegenError: when a part of the module cannot be written as code.
        SaveError: when a file cannot be written.
    """
    folder = checked_path(path, "the folder", "net")
    check_package(folder)
    write_files({folder: lambda place: write_package(module, place, source=source)})
    importlib.invalidate_caches()


def write_package(module: nn.Module, place: Path, *, source: str = "") -> None:
    """Write what `save_code` writes to a folder that is made.

    Raises:
        InputError: when the module is none of a result.
        CodegenError: when a part of the module cannot be written as code.
        OSError: when a file cannot be written.
    """
    if not isinstance(module, EmittedModule):
        raise InputError(
            f"{type(module).__qualname__} is no emitted module", remedy="give the module of a result: `result.model`"
        )
    of = f" from {source}" if source else ""
    written = write_module(module, module._kept, f"{module._class_name}, emitted by graphwright{of}.")
    _write(place, written, module)
    _check(place, written, module)


def _write(place: Path, written: Written, module: EmittedModule) -> None:
    place.mkdir()
    needs = f"load(opaques={{{', '.join(f'{each!r}: ...' for each in written.kept)}}})" if written.kept else "load()"
    lines = [
        f"{_MARK}a module as code. It may be edited; written anew, it is replaced.",
        f'"""{written.name}: `{needs}` returns it with its weights."""',
        f"\nfrom .module import {written.name}, load",
        f'\n__all__ = ["{written.name}", "load"]\n',
    ]
    (place / _INIT).write_text("\n".join(lines), encoding="utf-8")
    (place / _MODULE).write_text(written.code, encoding="utf-8")
    torch.save(tensors_of(module, written.kept), place / WEIGHTS)


def _check(place: Path, written: Written, module: EmittedModule) -> None:
    """Import what was written, and compare the module that it loads."""
    package = _imported(place)
    try:
        kept = {path: module.get_submodule(path) for path in written.kept}
        loaded = package.load(opaques=kept) if kept else package.load(map_location=None)
    except Exception as error:
        raise CodegenError(
            f"the code that was written for the module raises {type(error).__name__}: {error}", remedy="report this"
        ) from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
            del sys.modules[name]
    fault = next(_differences(module, loaded, written.kept), None)
    if fault is not None:
        raise CodegenError(f"the code that was written makes another module: {fault}", remedy="report this")


def _imported(place: Path) -> ModuleType:
    name = f"_graphwright_written_{os.getpid()}"
    spec = importlib.util.spec_from_file_location(name, place / _INIT, submodule_search_locations=[str(place)])
    assert spec is not None and spec.loader is not None
    importlib.invalidate_caches()  # a folder of this name may have been listed before
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    dont_write = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(package)
    except Exception as error:
        del sys.modules[name]
        raise CodegenError(
            f"the code that was written for the module raises {type(error).__name__}: {error}", remedy="report this"
        ) from error
    finally:
        sys.dont_write_bytecode = dont_write
    return package


def _differences(module: EmittedModule, loaded: WrittenModule, kept: tuple[str, ...]) -> Iterator[str]:
    """Yield how a module that was loaded differs from the emitted one."""
    pairs = [list(each.named_modules(remove_duplicate=False)) for each in (module, loaded)]
    if [path for path, _ in pairs[0]] != [path for path, _ in pairs[1]]:
        yield "it holds modules at other paths"
        return
    for (path, one), (_, other) in zip(*pairs, strict=True):
        if not isinstance(one, TreeGraphModule) and layer_class(one) is not layer_class(other):
            yield f"`{path}` is {type(other).__qualname__}, and was {type(one).__qualname__}"
        if one.training != other.training:
            yield f"`{path}` is in another mode"
        for name in dict.fromkeys((*vars(one), *vars(other))):
            if name not in OF_MODULES and name not in _OF_GRAPHS:
                values = [getattr(each, name, None) for each in (one, other)]
                if not _same(*values):
                    yield f"the attribute {name!r} of `{path}` {_told(*values)}"
    yield from _different_tensors(module, loaded, kept)


_OF_GRAPHS = frozenset(vars(torch.fx.GraphModule(nn.Module(), torch.fx.Graph()))) | {
    *("_class_name", "_weight_names", "_kept", "_order", "_code", "_lineno_map", "_prologue_start", "shape_env"),
    *("_tracer_cls", "_tracer_extras", "_graph"),
}
"""Attributes of the emitted module that the code has another form of."""


def _different_tensors(module: EmittedModule, loaded: WrittenModule, kept: tuple[str, ...]) -> Iterator[str]:
    if list(module.state_dict()) != list(loaded.state_dict()):
        yield "its `state_dict` has other keys"
    if [name for name, _ in module.named_parameters()] != [name for name, _ in loaded.named_parameters()]:
        yield "its parameters are listed in another order"
    known: dict[int, str] = {}
    new: dict[int, str] = {}
    ours, theirs = tensors_of(module, kept), tensors_of(loaded, kept)
    for name, tensor in ours.items():
        other = theirs.get(name)
        if other is None or type(other) is not type(tensor) or other.requires_grad != tensor.requires_grad:
            yield f"`{name}` is another kind of tensor"
        elif tensor.is_meta != other.is_meta or (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
            yield f"`{name}` has another type"
        elif tensor.stride() != other.stride():
            yield f"`{name}` lies in memory otherwise"
        elif known.setdefault(id(tensor), name) != new.setdefault(id(other), name):
            yield f"`{name}` is not tied as it was"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, pytree.TreeSpec):
        return isinstance(b, pytree.TreeSpec) and a == b
    return alike(a, b) or (type(a) is not type(b) and not a and not b)


def _told(old: Any, new: Any) -> str:
    """Return two values in words, cut to where they differ."""
    texts = [repr(each) for each in (new, old)]
    same = next((place for place, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), 0)
    start = same - 40 if same > 60 else 0
    new_, old_ = (f"{'...' if start else ''}{text[start : start + 80]}" for text in texts)
    return f"is {new_}, and was {old_}"
