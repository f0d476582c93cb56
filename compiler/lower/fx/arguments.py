"""Kinds of arguments besides tensors that an FX graph accepts where types are unknown."""

from __future__ import annotations

import attrs

from ir.columns import Layout
from ir.core import Operation, Value
from ir.ops.nn_ops import decode_call
from ir.program import InputLeaf, Program
from ir.types import UNKNOWN_TENSOR

_INDEXING = (Layout.SELECT, Layout.SLICE)
_GETITEM = "_operator.getitem"


def with_kinds(program: Program, *, is_traced: bool) -> tuple[InputLeaf, ...]:
    """Return the arguments of a program with the kinds that those of unknown type accept, judged by their uses.

    Opaque functions take anything, and indexing works on sequences.

    Args:
        program: the program.
        is_traced: whether the graph is a trace of a module, whose code may have asked for the class of the argument:
            only a text as key then shows a mapping.
    """
    written = {mutation.input for mutation in program.convention.mutations}

    def with_kind(leaf: InputLeaf) -> InputLeaf:
        if leaf.value is None or leaf.value in written:
            return leaf
        value = program.graph.inputs[leaf.value]
        if value.type != UNKNOWN_TENSOR:
            return leaf
        users = [user for user in value.users if user is not program.graph.return_op]
        return attrs.evolve(leaf, accepts=(*leaf.accepts, *_kinds(value, users, is_traced)))

    return tuple(map(with_kind, program.convention.inputs))


def _kinds(value: Value, users: list[Operation], is_traced: bool) -> tuple[str, ...]:
    if is_traced:
        return ("mapping",) if users and all(_is_lookup(user, value) for user in users) else ()
    rest = [user for user in users if user.name != "nn.opaque"]
    if not rest:
        return ("any",)
    return ("sequence",) if all(user.opdef.layout in _INDEXING and user.attributes["dim"] == 0 for user in rest) else ()


def _is_lookup(op: Operation, owner: Value) -> bool:
    """Return whether an operation looks up a text key of `owner`."""
    if op.name != "nn.opaque" or op.attributes["callee"] != _GETITEM or op.operands != (owner,):
        return False
    args, _ = decode_call(op.attributes, op.operands, lambda leaf: leaf)
    return isinstance(args[1], str)
