"""The calling convention in emitted code: parameters of `forward`, the leaves inside them, and the result."""

from __future__ import annotations

import builtins
import collections
import enum
import inspect
import itertools
import keyword
import operator
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import fx
from torch.fx.graph import _custom_builtins, _illegal_names
from torch.utils import _pytree as pytree

from compiler.emitted.forward_code import SignatureCodeGen
from compiler.emitted.guard import (
    Check,
    InputGuard,
    Leaves,
    checked_ranges,
    checked_relations,
    container_name,
    drop_unbound,
    tensor_check,
)
from ir.attributes import UnknownObject, is_written_exactly
from ir.errors import CodegenError
from ir.parameters import NO_DEFAULT, ParameterKind, ParameterSpec
from ir.program import InputLeaf, Program
from ir.spelling import free_name
from ir.types import data_symbols_in, is_data_symbol

_LITERALS = (type(None), bool, int, float, str, torch.dtype, torch.device, enum.Enum)
_ABSENT = inspect.Parameter.empty

_Access = tuple[int, int, tuple[Any, ...]]
"""A graph input: its number, the number of the parameter, the keys that lead to it."""


@attrs.frozen(eq=False)
class Parameter:
    """One parameter of `forward`, or one argument of its `**kwargs`."""

    name: str
    spec: pytree.TreeSpec | None
    """Structure of the argument; None where the capture passed none, and the default counts."""
    leaves: tuple[InputLeaf, ...] = ()
    """The leaves of that structure."""
    keyword_only: bool = False
    default: Any = _ABSENT
    positional_only: bool = False
    is_ours: bool = False
    """Whether the name is not a parameter of the original: no caller passes it."""
    key: str | None = None
    """The keyword of an argument that `**kwargs` takes."""


@attrs.frozen(eq=False)
class _Argument:
    """One argument of the captured call."""

    spec: pytree.TreeSpec
    leaves: tuple[InputLeaf, ...]


def parameters_of(program: Program) -> tuple[list[Parameter], str]:
    """Return the parameters of `forward`, positional ones first, and the name of its `**kwargs` if it has such.

    Names and defaults are those of the original's signature where the capture knows it.
    """
    convention = program.convention
    leaves = convention.inputs or tuple(InputLeaf(v.name, i) for i, v in enumerate(program.graph.inputs))
    if convention.in_spec is None:
        leaf = pytree.tree_structure(0)
        names = [argument_name(each.name, i) for i, each in enumerate(leaves)]
        made = [
            Parameter(name, leaf, (each,), is_ours=name != each.name) for name, each in zip(names, leaves, strict=True)
        ]
        return _distinct(made, ""), ""
    args, kwargs = _arguments(convention.in_spec, leaves)
    known = convention.parameters or (ParameterSpec("args", ParameterKind.VAR_POSITIONAL),)
    found = list(_from_signature(known, args, kwargs))
    variable = next((p.name for p in known if p.kind is ParameterKind.VAR_KEYWORD), "")
    if all(parameter.key is None for parameter in found):
        variable = ""
    elif _is_global(variable):
        variable = "kwargs"
    return _distinct(found, variable), variable


def _arguments(spec: pytree.TreeSpec, leaves: Sequence[InputLeaf]) -> tuple[list[_Argument], dict[str, _Argument]]:
    """Return the arguments of the captured call, each with its own leaves."""
    if spec.num_leaves != len(leaves):
        raise CodegenError(
            f"the calling convention has {len(leaves)} input leaves, and structure for {spec.num_leaves}"
        )
    rest = iter(leaves)
    args_spec, kwargs_spec = spec.children()
    args, kwargs = (
        [_Argument(child, tuple(itertools.islice(rest, child.num_leaves))) for child in each.children()]
        for each in (args_spec, kwargs_spec)
    )
    return args, dict(zip(kwargs_spec.context, kwargs, strict=True))


def _from_signature(
    parameters: Sequence[ParameterSpec], args: Sequence[_Argument], kwargs: Mapping[str, _Argument]
) -> Iterator[Parameter]:
    rest = dict(kwargs)
    position = 0
    for parameter in parameters:
        kind, name, default = parameter.kind, parameter.name, parameter.default
        if default is NO_DEFAULT or isinstance(default, UnknownObject):
            default = _ABSENT
        if kind is ParameterKind.VAR_POSITIONAL:
            for i, arg in enumerate(args[position:]):
                yield Parameter(f"{name}_{i}", arg.spec, arg.leaves, is_ours=True)
            position = len(args)
        elif kind is not ParameterKind.VAR_KEYWORD:
            keyword_only = kind is ParameterKind.KEYWORD_ONLY
            positional_only = kind is ParameterKind.POSITIONAL_ONLY
            if not keyword_only and position < len(args):
                arg, name = args[position], argument_name(name, position)
                yield Parameter(name, arg.spec, arg.leaves, default=default, positional_only=positional_only)
                position += 1
            elif name in rest and not positional_only:
                arg, name = rest.pop(name), argument_name(name, position)
                yield Parameter(name, arg.spec, arg.leaves, keyword_only, default)
            elif default is not _ABSENT:
                yield Parameter(name, None, (), keyword_only, default, positional_only)
    is_variable = any(parameter.kind is ParameterKind.VAR_KEYWORD for parameter in parameters)
    for i, (key, arg) in enumerate(rest.items()):
        name = argument_name(key, len(args) + i)
        yield Parameter(
            name, arg.spec, arg.leaves, keyword_only=True, is_ours=is_variable, key=key if is_variable else None
        )


def _distinct(parameters: Sequence[Parameter], variable: str) -> list[Parameter]:
    """Number the names that occur twice, except those by which callers pass arguments."""
    given = {p.name for p in parameters if not p.is_ours}
    taken = {variable}
    unique: list[Parameter] = []
    for parameter in parameters:
        avoided = taken | given if parameter.is_ours else taken
        name = free_name(parameter.name, avoided.__contains__)
        taken.add(name)
        unique.append(attrs.evolve(parameter, name=name))
    return unique


def _is_global(name: str) -> bool:
    """Whether generated code may need the global `name`."""
    return hasattr(builtins, name) or name in _custom_builtins or name in sys.modules


def argument_name(name: str, number: int) -> str:
    """Return `name` if a parameter may have it, as Python's parser normalizes it, or else `input_<number>`."""
    name = unicodedata.normalize("NFKC", name)
    usable = name.isidentifier() and not keyword.iskeyword(name) and name != "self"
    return name if usable else f"input_{number}"


def add_placeholder(
    graph: fx.Graph, name: str, others: Collection[str], default: Any = inspect.Signature.empty
) -> fx.Node:
    """Return a new placeholder of a parameter, and call it as none of the others.

    fx calls the parameter `input` `input_1`, since Python has a builtin of this name, and assigns to that first: a
    parameter `input_1` would be lost.

    Args:
        graph: the graph.
        name: the name of the parameter.
        others: the names of all parameters.
        default: its default, if it has one.
    """
    used = {node.name for node in graph.nodes}
    called = name
    if name in _illegal_names or name in used:
        called = free_name(name, lambda each: each == name or each in others or each in _illegal_names or each in used)
    given = () if default is inspect.Signature.empty else (default,)
    return graph.create_node("placeholder", name, given, name=called)


class Inputs:
    """Placeholders, guard and leaves of a program's graph."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.program = program
        self.graph = graph
        self.parameters, variable = parameters_of(program)
        self.checks: list[Check] = []
        self.keys: list[Any] = []
        """Keys in the arguments that Python code cannot write."""
        self._keys: fx.Node | None = None
        self._bound: dict[sympy.Symbol, None] = {}
        self._written = {mutation.input for mutation in program.convention.mutations}
        self._constant_defaults()
        parameters = self.parameters
        codegen = SignatureCodeGen(
            sum(not p.keyword_only for p in parameters),
            names=tuple(p.name if p.key is None else p.key for p in parameters),
            positional_only=sum(p.positional_only for p in parameters),
            defaults={i: p.default for i, p in enumerate(parameters) if p.default is not _ABSENT},
            absent=tuple(i for i, p in enumerate(parameters) if p.spec is None),
            variable=variable,
            keywords=sum(p.key is not None for p in parameters),
            keeps_order=program.convention.keeps_order,
        )
        graph.set_codegen(codegen)
        names = {p.name for p in parameters}
        self.placeholders = [
            add_placeholder(graph, p.name, names, p.default if p.default is not _ABSENT else inspect.Signature.empty)
            for p in parameters
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
            self._walk(parameter.spec, number, parameter.name, (), iter(parameter.leaves), accesses)
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
            checked_ranges({s: bounds for s, bounds in self.program.symbols.items() if not is_data_symbol(s)}),
            checked_relations([r for r in self.program.constraints if not data_symbols_in(r)], self._bound),
        )

    def _access(self, node: Any, key: Any) -> fx.Node:
        if isinstance(key, Leaves):
            return self.graph.create_node("call_function", pytree.tree_leaves, (node,))
        if not _is_written(key):
            if self._keys is None:
                self._keys = self.graph.create_node("get_attr", "_keys")
            self.keys.append(key)
            key = self.graph.create_node("call_function", operator.getitem, (self._keys, len(self.keys) - 1))
        return self.graph.create_node("call_function", operator.getitem, (node, key))

    def _walk(
        self,
        spec: pytree.TreeSpec,
        number: int,
        name: str,
        path: tuple[Any, ...],
        leaves: Iterator[InputLeaf],
        accesses: list[_Access],
    ) -> None:
        if spec.is_leaf():
            self._leaf(next(leaves), number, name, path, accesses)
            return
        children = spec.children()
        type_ = spec.type
        keys: list[Any]
        is_mapping = False
        if type_ in (tuple, list) or type_ is collections.namedtuple or hasattr(type_, "_fields"):
            keys = list(range(len(children)))
            names = [f"{name}[{i}]" for i in keys]
        elif type_ is dict or getattr(type_, "__name__", "") in ("OrderedDict", "defaultdict"):
            keys = list(spec.context[1] if getattr(type_, "__name__", "") == "defaultdict" else spec.context)
            names = [f"{name}[{key!r}]" for key in keys]
            is_mapping = True
        else:
            flatten = Leaves()
            self.checks.append(Check(name, number, path, container=container_name(type_)))
            self.checks.append(Check(name, number, (*path, flatten), length=spec.num_leaves))
            if any(map(_has_mapping, children)):
                # its leaves are taken by their numbers, which depend on the order of keys inside
                self.checks.append(Check(name, number, path, structure=str(spec)))
            for i in range(spec.num_leaves):
                self._leaf(next(leaves), number, f"{name}.{i}", (*path, flatten, i), accesses)
            return
        order = tuple(keys) if is_mapping and self.program.convention.keeps_order else ()
        class_ = spec.context if type_ is collections.namedtuple else type_
        container = container_name(class_)
        self.checks.append(Check(name, number, path, length=len(children), container=container, keys=order))
        for key, child, child_name in zip(keys, children, names, strict=True):
            self._walk(child, number, child_name, (*path, key), leaves, accesses)

    def _leaf(self, leaf: InputLeaf, number: int, name: str, path: tuple[Any, ...], accesses: list[_Access]) -> None:
        if leaf.value is None:
            if "any" in leaf.accepts:
                return
            if isinstance(leaf.constant, UnknownObject):
                raise unknown_constant(f"argument `{name}`", leaf.constant)
            if isinstance(leaf.constant, _LITERALS):
                self.checks.append(Check(name, number, path, constant=(leaf.constant,)))
            return
        type_ = self.program.graph.inputs[leaf.value].type
        check = tensor_check(name, number, path, type_, self._bound)
        self.checks.append(attrs.evolve(check, accepts=leaf.accepts, written=leaf.value in self._written))
        accesses.append((leaf.value, number, path))


def _is_written(key: Any) -> bool:
    """Return whether fx writes code for a key: a constant, a member of an enum, or a tuple of these."""
    if isinstance(key, enum.Enum):
        return type(key).__members__.get(key.name or "") is key
    return all(map(_is_written, key)) if type(key) is tuple else is_written_exactly(key)


def unknown_constant(what: str, constant: UnknownObject) -> CodegenError:
    """Return the error for a constant of a parsed program, which has only its class."""
    return CodegenError(
        f"{what} is an object of class {constant.class_name}, and the text of a program has no more than its class",
        remedy="emit the program itself, or put the object into its calling convention",
    )


def _has_mapping(spec: pytree.TreeSpec) -> bool:
    if spec.is_leaf():
        return False
    names = [base.__name__ for base in getattr(spec.type, "__mro__", ())]
    return "dict" in names or any(map(_has_mapping, spec.children()))


def native_structure(
    spec: pytree.TreeSpec, leaves: Iterator[Any], call: Callable[..., Any], *, in_mapping: bool = False
) -> Any:
    """Return the result as nested tuples, lists, dicts and named tuples; NotImplemented where it has other types.

    So it is where a key is an object that Python code cannot write.

    Args:
        spec: the structure.
        leaves: what it is filled with.
        call: adds a call of a function to the graph.
        in_mapping: whether it is inside of a dict, where fx writes named tuples without their module.
    """
    if spec.is_leaf():
        return next(leaves)
    inner = in_mapping or spec.type is dict
    children = [native_structure(child, leaves, call, in_mapping=inner) for child in spec.children()]
    if any(child is NotImplemented for child in children):
        return NotImplemented
    if spec.type is tuple:
        return tuple(children)
    if spec.type is torch.Size:
        return call(torch.Size, (children,))  # pytree itself would make a tuple
    if spec.type is list:
        return children
    if spec.type is dict and all(map(is_written_exactly, spec.context)):
        return dict(zip(spec.context, children, strict=True))
    if spec.type is collections.namedtuple:
        return call(spec.context, tuple(children)) if in_mapping else spec.context(*children)
    return NotImplemented
