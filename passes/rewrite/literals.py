"""The canonical form of an attribute, in which literals of patterns are compared.

A dimension may be counted from the back, and a size left out: what that means depends on the types of the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sympy.logic.boolalg import BooleanAtom

from ir.attributes import Attribute, attributes_equal
from ir.builder import coerce_attribute
from ir.columns import Dims, Layout
from ir.core import Operation
from ir.errors import InputError, PatternError
from ir.opdef import OpDef
from ir.types import Dim, TensorType, dims_equal, wrap
from passes.rewrite.language.nodes import AttrCapture, AttrWhere

_DIMS = frozenset(
    {"dim", "dims", "dim0", "dim1", "dim2", "dims_self", "dims_other", "dimension", "start_dim", "end_dim"}
    | {"axis", "axis0", "axis1", "ch_axis", "source", "destination"}
)
"""Parameters of PyTorch's schemas that number dimensions."""


def has_value(op: Operation, name: str, literal: Attribute) -> bool:
    """Return whether an attribute has the value that a literal means for the operation.

    For a tensor of rank 3, softmax has `dim=-1` and `dim=2` alike; where the rank is unknown, it is taken verbatim.
    """
    value = op.attributes[name]
    if attributes_equal(value, literal):
        return True
    literal = _of_schema(op.opdef, name, literal)
    return attributes_equal(one_form(op, name, value), one_form(op, name, literal))


def one_form(op: Operation, name: str, value: Attribute) -> Attribute:
    """Return what canonicalization writes for `value` as an attribute of an operation, where the types tell it."""
    form: Attribute = None
    if name in _DIMS and op.name.startswith("aten.") and op.name != "aten.tile":  # its `dims` are counts
        form = dims_from_front(op, name, value)
    elif name == "index" and op.opdef.layout is Layout.SELECT:
        form = index_from_front(op, value)
    elif name == "stride" and value == ():
        form = op.attributes.get("kernel_size")
    elif op.opdef.facts.shape == name:
        form = _written_out(op, value)
    return value if form is None else form


def dims_from_front(op: Operation, name: str, given: Attribute) -> int | tuple[int, ...] | None:
    """Return dimensions counted from the front, those of a reduction sorted; None where that is not known."""
    rank = _rank(op, name)
    if rank is None:
        return None
    if not isinstance(given, tuple):
        return wrap(given, rank)
    dims = [wrap(d, rank) for d in given]
    if not dims or None in dims:
        return None
    counted = [d for d in dims if d is not None]
    return tuple(sorted(counted) if op.opdef.facts.dims is Dims.REDUCED else counted)


def index_from_front(op: Operation, index: Attribute) -> int | None:
    """Return the index of a selection counted from the front; None where the size or the index is not a number."""
    shape = op.operand_values[0].tensor_type.shape
    if not shape:
        return None
    dim = wrap(op.attributes["dim"], len(shape))
    size = None if dim is None else shape[dim]
    if type(size) is not int or type(index) is not int:
        return None
    return index + size if index < 0 else index


def _rank(op: Operation, name: str) -> int | None:
    if not op.operands:
        return None
    # an empty 1-d tensor may be concatenated with tensors of any rank
    several = op.name == "aten.cat"
    operands = op.operands if several else op.operands[1:2] if name == "dims_other" else op.operands[:1]
    ranks = {value.type.rank if value and isinstance(value.type, TensorType) else None for value in operands}
    rank = ranks.pop()
    if rank is None or ranks:
        return None
    if op.opdef.facts.adds_dim:
        rank += 1
    return rank


def _written_out(op: Operation, sizes: Attribute) -> tuple[Dim | None, ...] | None:
    """Return the shape of the result where it is what `sizes` asks for."""
    shape = op.result.tensor_type.shape
    if shape is None or not isinstance(sizes, tuple) or len(sizes) != len(shape):
        return None
    left_out = shape
    if op.opdef.layout is Layout.EXPAND:  # the size that the operand has; of a new dimension, it must be written
        given = op.operand_values[0].tensor_type.shape
        if given is None:
            return None
        left_out = (*(None,) * (len(shape) - len(given)), *given)
    for asked, size, known in zip(sizes, shape, left_out, strict=True):
        wanted = known if type(asked) is int and asked == -1 else asked
        if type(wanted) is bool or not isinstance(wanted, Dim) or not dims_equal(wanted, size):
            return None
    return shape


def _of_schema(opdef: OpDef, name: str, literal: Attribute) -> Attribute:
    """Return a literal as operations of an operator hold it: `dim=-1` of a list of dimensions is `(-1,)`."""
    param = next((p for p in opdef.params if p.name == name), None)
    try:
        return literal if param is None else coerce_attribute(opdef, param, literal)
    except InputError:
        return literal


def attribute_matcher(name: str, expected: Any) -> Callable[[Operation, Any], str | None]:
    """Return what says why an attribute of an operation does not match; its second argument has the `captures`."""
    if isinstance(expected, AttrCapture):
        capture = expected.name

        def bind(op: Operation, state: Any) -> str | None:
            value = op.attributes[name]
            if capture in state.captures:
                known = state.captures[capture]
                if not attributes_equal(known, value):
                    return f"{name} of {op.name} is {value}, elsewhere {known}"
            state.captures[capture] = value
            return None

        return bind
    if isinstance(expected, AttrWhere):
        predicate, text = expected.predicate, expected.text

        def satisfy(op: Operation, state: Any) -> str | None:
            value = op.attributes[name]
            answer = predicate(value)
            if not isinstance(answer, (bool, BooleanAtom)):  # sympy's, where a size is an expression
                raise PatternError(
                    f"the condition of the attribute {name} of {op.name} returned {answer!r}",
                    remedy="return True or False: the second argument of `attr_where` is the text",
                )
            return None if answer else f"{name} of {op.name} at `{op.location.where}` is {value}, not {text}"

        return satisfy

    def compare(op: Operation, state: Any) -> str | None:
        value = op.attributes[name]
        if value is expected or has_value(op, name, expected):
            return None
        return f"{name} of {op.name} at `{op.location.where}` is {value}, not {expected}"

    return compare
