"""The text of tree specifications: PyTorch's JSON, where that says all there is to say."""

from __future__ import annotations

import contextlib
import enum
import json
import sys
from types import ModuleType
from typing import Any

from torch.utils import _pytree as pytree


class SpecError(ValueError):
    """The text is no tree specification, or asks for what no text may ask for."""


def format_spec(spec: pytree.TreeSpec) -> str:
    """Return a tree specification as JSON; one that cannot be read back from it is only named."""
    try:
        text = str(pytree.treespec_dumps(spec))
        if read_spec(text, 0)[0] == spec:
            return text
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        pass
    return f"unserializable {json.dumps(' '.join(str(spec).split()))}"


def read_spec(source: str, start: int) -> tuple[pytree.TreeSpec, int]:
    """Return the tree specification whose JSON starts at a place of a text, and where it ends.

    Raises:
        SpecError: when there is none, or it names a class that is not registered here or not imported. Nothing is
            imported for a text: that would run code of its choice.
    """
    try:
        data, end = json.JSONDecoder(object_hook=_check_names).raw_decode(source, start)
        for schema in data[1:]:
            _check_contexts(schema)
        return pytree.treespec_loads(source[start:end]), end
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(str(error) or type(error).__name__) from error


def _check_contexts(schema: Any) -> None:
    """Check the contexts, most of which are JSON inside of a string."""
    if isinstance(schema["context"], str):
        with contextlib.suppress(json.JSONDecodeError):  # then the class reads it in its own way
            json.loads(schema["context"], object_hook=_check_names)
    for child in schema["children_spec"]:
        _check_contexts(child)


def _check_names(item: dict[str, Any]) -> dict[str, Any]:
    """Refuse what `treespec_loads` would import: the class of an enum, the factory of a defaultdict."""
    if "__enum__" in item:
        module, _, name = str(item.get("fqn")).partition(":")
        _check_class(module, name, enum.Enum)
    if "default_factory_module" in item:
        _check_class(str(item["default_factory_module"]), str(item.get("default_factory_name")), object)
    return item


def _check_class(module: str, name: str, base: type) -> None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # not getattr: a module may import what it is asked for
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
    if not isinstance(found, type) or not issubclass(found, base):
        raise SpecError(f"there is no class {name!r} in an imported module {module!r}")
