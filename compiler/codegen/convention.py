"""The calling convention in emitted code: parameters of `forward`, the leaves inside them, and the result."""

from __future__ import annotations

import collections
import inspect
import keyword
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from compiler.codegen.guard import (
    Check,
    InputGuard,
    Leaves,
    checked_ranges,
    checked_relations,
    drop_unbound,
    tensor_check,
)
from compiler.graphmodule import SignatureCodeGen
from ir.attributes import UnknownObject
from ir.errors import CodegenError
from ir.parameters import NO_DEFAULT, ParameterKind, ParameterSpec
from ir.program import InputLeaf, Program

_LITERALS = (type(None), bool, int, float, str, torch.dtype, torch.device)
_ABSENT = inspect.Parameter.empty

_Access = tuple[int, int, tuple[Any, ...]]
"""A graph input: its number, the number of the parameter, the keys that lead to it."""


@attrs.frozen(eq=False)
class Parameter:
    """One parameter of `forward`."""

    name: str
    spec: pytree.TreeSpec | None
    """Structure of the argument; None where the capture passed none, and the default counts."""
    keyword_only: bool = False
    default: Any = _ABSENT


def parameters_of(program: Program) -> list[Parameter]:
    """Return the parameters of `forward`, positional ones first.

    Names and defaults are those of the original's signature where the capture knows it.
    """
    convention = program.convention
    leaf = pytree.tree_structure(0)
    if convention.in_spec is None:
        leaves = convention.inputs or tuple(InputLeaf(v.name, i) for i, v in enumerate(program.graph.inputs))
        return [Parameter(argument_name(leaf_.name, i), leaf) for i, leaf_ in enumerate(leaves)]
    args_spec, kwargs_spec = convention.in_spec.children()
    args = args_spec.children()
    kwargs = dict(zip(kwargs_spec.context, kwargs_spec.children(), strict=True))
    known = convention.parameters or (ParameterSpec("args", ParameterKind.VAR_POSITIONAL),)
    found = list(_from_signature(known, args, kwargs))
    seen: dict[str, None] = {}
    unique: list[Parameter] = []
    for parameter in found:
        name, number = parameter.name, 0
        while name in seen:
            number += 1
            name = f"{parameter.name}_{number}"
        seen[name] = None
        unique.append(attrs.evolve(parameter, name=name))
    return unique


def _from_signature(
    parameters: Sequence[ParameterSpec], args: list[pytree.TreeSpec], kwargs: Mapping[str, pytree.TreeSpec]
) -> Iterator[Parameter]:
    rest = dict(kwargs)
    position = 0
    for parameter in parameters:
        kind, name, default = parameter.kind, parameter.name, parameter.default
        if default is NO_DEFAULT or isinstance(default, UnknownObject):
            default = _ABSENT
        if kind is ParameterKind.VAR_POSITIONAL:
            for i, spec in enumerate(args[position:]):
                yield Parameter(f"{name}_{i}", spec)
            position = len(args)
        elif kind is not ParameterKind.VAR_KEYWORD:
            keyword_only = kind is ParameterKind.KEYWORD_ONLY
            if not keyword_only and position < len(args):
                yield Parameter(argument_name(name, position), args[position], default=default)
                position += 1
            elif name in rest:
                yield Parameter(name, rest.pop(name), keyword_only, default)
            elif default is not _ABSENT:
                yield Parameter(name, None, keyword_only, default)
    for name, spec in rest.items():
        yield Parameter(name, spec, keyword_only=True)


def argument_name(name: str, number: int) -> str:
    """Return `name` if a parameter may have it, or else `input_<number>`."""
    usable = name.isidentifier() and not keyword.iskeyword(name) and name != "self"
    return name if usable else f"input_{number}"


class Inputs:
    """Placeholders, guard and leaves of a program's graph."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.program = program
        self.graph = graph
        self.parameters = parameters_of(program)
        self.checks: list[Check] = []
        convention = program.convention
        self._pending = iter(
            convention.inputs or tuple(InputLeaf(v.name, i) for i, v in enumerate(program.graph.inputs))
        )
        self._bound: dict[sympy.Symbol, None] = {}
        self._constant_defaults()
        positional = sum(not p.keyword_only for p in self.parameters)
        absent = {i: p.default for i, p in enumerate(self.parameters) if p.spec is None}
        graph.set_codegen(SignatureCodeGen(positional, len(self.parameters), absent))
        self.placeholders = [
            graph.placeholder(p.name, default_value=p.default if p.default is not _ABSENT else inspect.Signature.empty)
            for p in self.parameters
        ]

    def _constant_defaults(self) -> None:
        """Drop defaults before a parameter that has none: Python allows no such signature."""
        required = False
        for i in range(len(self.parameters) - 1, -1, -1):
            parameter = self.parameters[i]
            if parameter.keyword_only:
                continue
            if required and parameter.default is not _ABSENT:
                self.parameters[i] = attrs.evolve(parameter, default=_ABSENT)
            required |= parameter.default is _ABSENT

    def build(self) -> list[Any]:
        """Add the guard and the extraction of leaves; return the node of each graph input."""
        nodes: dict[int, Any] = {}
        accesses: list[_Access] = []
        for number, parameter in enumerate(self.parameters):
            if parameter.spec is None:
                self.checks.append(Check(parameter.name, number, constant=(parameter.default,), expected=""))
                continue
            self._walk(parameter.spec, number, parameter.name, (), accesses)
        self.graph.create_node("call_module", "_guard", tuple(self.placeholders), name="_guard")
        flattened: dict[tuple[int, tuple[Any, ...]], Any] = {}
        for value, number, path in accesses:
            node: Any = self.placeholders[number]
            prefix: tuple[Any, ...] = ()
            for key in path:
                prefix = (*prefix, key)
                found = flattened.get((number, prefix))
                if found is None:
                    found = self._access(node, key)
                    flattened[number, prefix] = found
                node = found
            nodes[value] = node
        return [nodes.get(i) for i in range(len(self.program.graph.inputs))]

    def guard(self) -> InputGuard:
        """Return the guard of all inputs."""
        return InputGuard(
            drop_unbound(self.checks, self._bound),
            checked_ranges(self.program.symbols),
            checked_relations(self.program.constraints, self._bound),
        )

    def _access(self, node: Any, key: Any) -> fx.Node:
        if isinstance(key, Leaves):
            return self.graph.create_node("call_function", pytree.tree_leaves, (node,))
        return self.graph.create_node("call_function", operator.getitem, (node, key))

    def _walk(
        self,
        spec: pytree.TreeSpec,
        number: int,
        name: str,
        path: tuple[Any, ...],
        accesses: list[_Access],
    ) -> None:
        if spec.is_leaf():
            self._leaf(number, name, path, accesses)
            return
        children = spec.children()
        type_ = spec.type
        keys: list[Any]
        if type_ in (tuple, list) or type_ is collections.namedtuple or hasattr(type_, "_fields"):
            keys = list(range(len(children)))
            names = [f"{name}[{i}]" for i in keys]
        elif type_ is dict or getattr(type_, "__name__", "") in ("OrderedDict", "defaultdict"):
            keys = list(spec.context[1] if getattr(type_, "__name__", "") == "defaultdict" else spec.context)
            names = [f"{name}[{key!r}]" for key in keys]
        else:
            flatten = Leaves()
            self.checks.append(Check(name, number, (*path, flatten), length=spec.num_leaves))
            for i in range(spec.num_leaves):
                self._leaf(number, f"{name}.{i}", (*path, flatten, i), accesses)
            return
        self.checks.append(Check(name, number, path, length=len(children)))
        for key, child, child_name in zip(keys, children, names, strict=True):
            self._walk(child, number, child_name, (*path, key), accesses)

    def _leaf(self, number: int, name: str, path: tuple[Any, ...], accesses: list[_Access]) -> None:
        leaf = next(self._pending, None)
        if leaf is None:
            raise CodegenError("the calling convention has fewer input leaves than its structure")
        if leaf.value is None:
            if isinstance(leaf.constant, UnknownObject):
                raise unknown_constant(f"argument `{name}`", leaf.constant)
            if isinstance(leaf.constant, _LITERALS):
                self.checks.append(Check(name, number, path, constant=(leaf.constant,)))
            return
        type_ = self.program.graph.inputs[leaf.value].type
        self.checks.append(tensor_check(name, number, path, type_, self._bound))
        accesses.append((leaf.value, number, path))


def unknown_constant(what: str, constant: UnknownObject) -> CodegenError:
    """Return the error for a constant of which a parsed program has the class alone."""
    return CodegenError(
        f"{what} is an object of class {constant.class_name}, and the text of a program has no more than its class",
        remedy="emit the program itself, or put the object into its calling convention",
    )


def native_structure(spec: pytree.TreeSpec, leaves: Iterator[Any], call: Callable[..., Any]) -> Any:
    """Return the result as nested tuples, lists, dicts and named tuples; NotImplemented where it has other types.

    Args:
        spec: the structure.
        leaves: what it is filled with.
        call: adds a call of a function to the graph.
    """
    if spec.is_leaf():
        return next(leaves)
    children = [native_structure(child, leaves, call) for child in spec.children()]
    if any(child is NotImplemented for child in children):
        return NotImplemented
    if spec.type is tuple:
        return tuple(children)
    if spec.type is torch.Size:
        return call(torch.Size, (children,))  # pytree itself would make a tuple
    if spec.type is list:
        return children
    if spec.type is dict:
        return dict(zip(spec.context, children, strict=True))
    if spec.type is collections.namedtuple:
        return spec.context(*children)
    return NotImplemented
