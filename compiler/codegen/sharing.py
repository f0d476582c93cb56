"""Modules that the original has under several paths, in the emitted tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from compiler.emitted.graphmodule import Container
from compiler.usercode.state import part_of

if TYPE_CHECKING:
    from compiler.codegen.tree import ModuleTree


def share_modules(tree: ModuleTree, made: dict[str, nn.Module]) -> None:
    """Make what the original has under several paths one module in the emitted tree.

    Args:
        tree: where everything stands.
        made: path -> module, of the tree that is built; root included.
    """
    for alias, first in tree.program.module_aliases.items():
        path, other = tree.safe_path(alias), tree.safe_path(first)
        parent, _, name = path.rpartition(".")
        if path in made and _put_inside(tree, made, path, other):
            continue
        if other not in made or path in made:
            continue
        owner = made[""]
        for part in filter(None, parent.split(".")):
            if part not in owner._modules:
                owner.add_module(part, Container())
            owner = owner.get_submodule(part)
        owner.add_module(name, made[other])
        if all(each.isdecimal() for each in owner._modules):
            owner._modules = dict(sorted(owner._modules.items(), key=lambda item: int(item[0])))
        for keys in (tree.keys, tree.opaque_keys):
            found = [(key, source) for key, source in keys.items() if key.startswith(f"{other}.")]
            for key, source in found:
                is_inside = source.startswith(f"{first}.")
                keys[f"{path}{key[len(other) :]}"] = f"{alias}{source[len(first) :]}" if is_inside else source
        for key, weight in list(tree.key_weights.items()):
            if key.startswith(f"{other}."):
                tree.key_weights[f"{path}{key[len(other) :]}"] = weight


def _put_inside(tree: ModuleTree, made: dict[str, nn.Module], path: str, other: str) -> bool:
    """Put the module at `path` into an opaque one that has the same layer at `other`."""
    for opaque in tree.opaques:
        if not other.startswith(f"{opaque}."):
            continue
        parent, _, name = other[len(opaque) + 1 :].rpartition(".")
        owner = part_of(made[opaque], parent)
        if owner is not None and type(owner._modules.get(name)) is type(made[path]):
            owner._modules[name] = made[path]
            return True
    return False
