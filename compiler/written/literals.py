"""Python code for values: literals, and names with the imports that they need."""

from __future__ import annotations

import math
import pkgutil
import sys
import types
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ir.errors import CodegenError

WINDOW = "graphwright.emitted"
"""The module from which code imports what emitted modules are made of."""
_OURS = ("compiler.emitted.", "ir.program")
_PLAIN = (bool, int, str, bytes, type(None), type(...))


@attrs.define(eq=False)
class Imports:
    """The imports of a file of code.

    Attributes:
        names: name in the file -> (module, name in it); an empty name means the module itself.
    """

    names: dict[str, tuple[str, str]] = attrs.field(factory=dict)

    def module(self, name: str, module: str) -> str:
        """Import a module under a name."""
        return self._add(name, module, "")

    def of(self, value: Any, name: str = "") -> str:
        """Import a class or function, perhaps under another name; return its name.

        Raises:
            CodegenError: when it cannot be imported.
        """
        if isinstance(value, types.ModuleType):
            return self.module(name or value.__name__.rpartition(".")[2], value.__name__)
        module, own = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", "")
        if not _is_found(module, own, value):
            raise CodegenError(
                f"{own or value} of {module or 'no module'} cannot be written as code: it cannot be imported",
                remedy="define it at the top of a module other than the main script, or use `torch.save`",
            )
        if module.startswith(_OURS):
            module = WINDOW
        first, _, rest = own.partition(".")
        self._add(name or first, module, first)
        return f"{name or first}{f'.{rest}' if rest else ''}"

    def _add(self, name: str, module: str, own: str) -> str:
        known = self.names.setdefault(name, (module, own))
        if known != (module, own):
            raise CodegenError(f"two things are called {name!r} in one file of code: {known} and {(module, own)}")
        return name

    def lines(self) -> list[str]:
        """Return the import statements."""
        groups: tuple[list[str], ...] = ([], [], [])  # of Python, of packages, and ours
        members: dict[str, list[str]] = {}
        for name, (module, own) in self.names.items():
            if own:
                members.setdefault(module, []).append(own if own == name else f"{own} as {name}")
            else:
                parent, _, last = module.rpartition(".")
                plain = f"import {module}" if name == module else f"from {parent} import {last}"
                line = plain if name in (module, last) else f"import {module} as {name}"
                groups[_group(module)].append(line)
        for module, names in sorted(members.items()):
            groups[_group(module)].append(_members(module, names))
        ordered = [sorted(group, key=lambda line: line.startswith("from")) for group in groups if group]
        return [line for group in ordered for line in (*group, "")][:-1]


def _group(module: str) -> int:
    return 2 if module == WINDOW else 0 if module.partition(".")[0] in sys.stdlib_module_names else 1


def _members(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(sorted(names))}"
    if len(line) > 110:
        line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in sorted(names)) + ")"
    return line


def _is_found(module: str, name: str, value: Any) -> bool:
    if module == "__main__" or "<" in name or not name:
        return False
    try:
        return pkgutil.resolve_name(f"{module}:{name}") is value
    except (ImportError, AttributeError, ValueError):
        return False


def quoted(text: str) -> str:
    """Return the code of a text, in the quotes that most code has."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text else written


def literal(value: Any, imports: Imports) -> str:
    """Return the code of a value, from which an equal one is made.

    Raises:
        CodegenError: when there is none.
    """
    kind = type(value)
    if kind in _PLAIN:
        return quoted(value) if kind is str else repr(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if kind is complex:
        return f"complex({literal(value.real, imports)}, {literal(value.imag, imports)})"
    if kind is tuple or kind is torch.Size:
        inner = ", ".join(literal(item, imports) for item in value)
        return f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(literal(item, imports) for item in value)}]"
    if kind is frozenset:
        return (
            f"frozenset({{{', '.join(sorted(literal(item, imports) for item in value))}}})" if value else "frozenset()"
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k, imports)}: {literal(v, imports)}" for k, v in value.items()) + "}"
    if kind in (torch.dtype, torch.memory_format, torch.layout):
        imports.module("torch", "torch")
        return str(value)
    if kind is torch.device:
        imports.module("torch", "torch")
        return f"torch.device({str(value)!r})"
    if attrs.has(kind):
        given = [
            (field.name, getattr(value, field.name))
            for field in attrs.fields(kind)
            if not _is_default(field, getattr(value, field.name))
        ]
        return f"{imports.of(kind)}({', '.join(f'{name}={literal(each, imports)}' for name, each in given)})"
    raise CodegenError(f"a value of {kind.__module__}.{kind.__qualname__} cannot be written as code: {value!r:.80}")


def _is_default(field: Any, value: Any) -> bool:
    return type(field.default) is type(value) and field.default == value
