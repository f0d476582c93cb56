"""Construction of operations: bind arguments to the schema, fill in defaults, infer result types."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch

from ir.attributes import Attribute, Ref, normalize_attribute
from ir.caches import cached
from ir.core import RETURN, Graph, Operation, Value
from ir.errors import GraphwrightError, InferenceError, InputError
from ir.fake import infer_with_fakes, strides_with_fakes
from ir.locations import UNKNOWN_LOCATION, Location
from ir.opdef import ARGUMENTS, OpDef, Param, ParamKind, get_opdef
from ir.schemas import nearest_operator
from ir.types import Dim, Type

# What `b.add` means where the schema's `default` overload is missing.
_PREFERRED_OVERLOADS = ("Tensor", "int", "dim", "using_ints", "self", "input", "dim_IntList", "Scalar", "dtype")


def infer_types(
    opdef: OpDef,
    types: tuple[Any, ...],
    attributes: Mapping[str, Attribute],
    extra: tuple[Type, ...] = (),
    body: Graph | None = None,
) -> tuple[Type, ...]:
    """Return the result types of an operation: the one function that creation and verification share.

    Args:
        opdef: the operator.
        types: for each tensor parameter a type, None, or a tuple of types.
        attributes: all attributes.
        extra: types of the values that attributes refer to.
        body: the body, for a fused region.

    Raises:
        InferenceError: when the operands do not fit.
    """
    if body is not None:
        return tuple(v.type for v in body.outputs if v is not None)
    try:
        for param in opdef.attribute_params:
            if not param.takes(value := attributes[param.name]):
                kind = f"a {param.code.__name__}" if param.code is not None else f"of type {param.type}"
                raise InferenceError(f"argument {param.name!r} of {opdef.name} must be {kind}, not {value!r}")
        rule = opdef.infer
        if rule is not None and not extra:
            return rule(types, attributes)
        return () if opdef is RETURN else infer_with_fakes(opdef, types, attributes, extra)
    except GraphwrightError:
        raise
    except Exception as error:  # rules rely on attributes of the schema's types, and text may have any
        shown = str(error) or type(error).__name__
        raise InferenceError(f"{opdef.name} does not take {dict(attributes)} on {types}: {shown}") from error


def infer_operation(op: Operation) -> tuple[Type, ...]:
    """Infer the result types of an existing operation again.

    Raises:
        InferenceError: when the operands do not fit.
    """
    return infer_types(op.opdef, *types_of(op), op.body)


def infer_strides(op: Operation, strides: Mapping[Value, Sequence[Dim]]) -> Sequence[Dim | None] | None:
    """Return the strides of an operation's only result, given those of its operands; None where they are not known."""

    def look_up(entry: Any) -> Any:
        return tuple(map(look_up, entry)) if isinstance(entry, tuple) else strides.get(entry)

    return strides_with_fakes(op.opdef, *types_of(op), look_up(op.grouped_operands()))


def types_of(op: Operation) -> tuple[tuple[Any, ...], Mapping[str, Attribute], tuple[Type, ...]]:
    """Return the types of the schema's operands, the attributes, and the types of the values that these refer to."""
    extra = tuple([v.type for v in op.operands[op.num_schema_operands :] if v is not None])
    return tuple(map(_types_of, op.grouped_operands())), op.attributes, extra


def _types_of(entry: Any) -> Any:
    if entry is None:
        return None
    if type(entry) is tuple:
        return tuple([_types_of(item) for item in entry])
    return entry.type


@attrs.frozen(eq=False)
class _Plan:
    """How a call of leading tensors alone is bound, computed once for each operator."""

    tensors: int
    """The number of leading required tensors."""
    absent: tuple[None, ...]
    """The optional tensors, all absent."""
    attributes: dict[str, Attribute]


@cached()
def _plan_of(opdef: OpDef) -> _Plan | None:
    """Return the plan of an operator; None where such a call does not fit its schema."""
    tensors = 0
    absent = 0
    attributes: dict[str, Attribute] = {}
    for i, param in enumerate(opdef.params):
        if param.kind is ParamKind.TENSOR and i == tensors:
            tensors += 1
        elif param.kind is ParamKind.OPTIONAL and param.default is None:
            absent += 1
        elif param.kind is ParamKind.ATTRIBUTE and param.has_default:
            attributes[param.name] = coerce_attribute(opdef, param, param.default)
        else:
            return None
    return _Plan(tensors, (None,) * absent, attributes)


def bind_arguments(
    opdef: OpDef, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Value | None], dict[str, Attribute], tuple[int, ...] | None, tuple[Any, ...]]:
    """Bind call arguments to a schema.

    Returns:
        operands, attributes (all of them, defaults filled in), segments, and the types of the schema's tensor
        parameters as `infer_types` takes them.

    Raises:
        InputError: when the arguments do not fit the schema.
    """
    if not kwargs:
        plan = _plan_of(opdef)
        if plan is not None and len(args) == plan.tensors:
            given_types = [value.type for value in args if type(value) is Value]
            if len(given_types) == len(args):
                return [*args, *plan.absent], plan.attributes.copy(), None, (*given_types, *plan.absent)
    params = opdef.params
    if len(args) > len(params):
        raise InputError(f"{opdef.name} takes at most {len(params)} arguments, {len(args)} given")
    operands: list[Value | None] = []
    attributes: dict[str, Attribute] = {}
    segments: list[int] = []
    types: list[Any] = []
    referring: list[tuple[Param, Any]] = []
    used = 0
    for i, param in enumerate(params):
        given: Any
        if i < len(args):
            given = args[i]
            if param.name in kwargs:
                raise InputError(f"{opdef.name} got argument {param.name!r} twice")
        elif param.name in kwargs:
            given = kwargs[param.name]
            used += 1
        elif param.has_default or param.kind is ParamKind.OPTIONAL:
            given = param.default
        else:
            _refuse_unknown(opdef, kwargs)
            raise InputError(f"{opdef.name} needs its argument {param.name!r}")
        kind = param.kind
        if kind is ParamKind.ATTRIBUTE:
            if isinstance(given, Value) or (isinstance(given, (list, tuple)) and _contains_value(given)):
                referring.append((param, given))
            else:
                attributes[param.name] = coerce_attribute(opdef, param, given)
        elif kind is ParamKind.LIST:
            if given is None:
                given = ()
            if not isinstance(given, (list, tuple)) or not all(v is None or isinstance(v, Value) for v in given):
                raise InputError(f"argument {param.name!r} of {opdef.name} must be a list of values, not {given!r}")
            operands.extend(given)
            segments.append(len(given))
            types.append(tuple([None if v is None else v.type for v in given]))
        elif given is None and kind is ParamKind.OPTIONAL:
            operands.append(None)
            segments.append(1)
            types.append(None)
        elif isinstance(given, Value):
            operands.append(given)
            segments.append(1)
            types.append(given.type)
        else:
            raise InputError(
                f"argument {param.name!r} of {opdef.name} must be a value, not {given!r}",
                remedy=_scalar_overload(opdef) if isinstance(given, (bool, int, float)) else None,
            )
    if used != len(kwargs):
        _refuse_unknown(opdef, kwargs)
    for param, given in referring:
        try:
            attributes[param.name] = _refer(given, operands)
        except TypeError as error:
            raise InputError(f"argument {param.name!r} of {opdef.name}: {error}") from None
    return operands, attributes, tuple(segments) if opdef.has_lists else None, tuple(types)


def _refuse_unknown(opdef: OpDef, kwargs: Mapping[str, Any]) -> None:
    """Raise if a keyword is not an argument of the operator."""
    names = [p.name for p in opdef.params]
    unknown = [name for name in kwargs if name not in names]
    if unknown:
        raise InputError(f"{opdef.name} has no argument {', '.join(unknown)}; it has {', '.join(names) or 'none'}")


def _scalar_overload(opdef: OpDef) -> str | None:
    """Return a remedy that names the overload for numbers: short names mean the one for tensors."""
    name = opdef.name.removesuffix(".Tensor") + ".Scalar"
    try:
        get_opdef(name)
    except GraphwrightError:
        return None
    return f"name the overload for numbers: `{name}`"


def _contains_value(given: Any) -> bool:
    if isinstance(given, (list, tuple)):
        return any(map(_contains_value, given))
    return isinstance(given, Value)


def _refer(given: Any, operands: list[Value | None]) -> Attribute:
    if isinstance(given, Value):
        operands.append(given)
        return Ref(len(operands) - 1)
    if isinstance(given, (list, tuple)):
        return tuple([_refer(item, operands) for item in given])
    return normalize_attribute(given)


def coerce_attribute(opdef: OpDef, param: Param, given: Any) -> Attribute:
    """Return an attribute in the canonical form of its schema type: tuples for lists, floats for floats.

    Raises:
        InputError: when it is not an attribute value.
    """
    if param.type == ARGUMENTS:
        return given
    try:
        value = normalize_attribute(given)
    except TypeError as error:
        raise InputError(f"argument {param.name!r} of {opdef.name}: {error}") from None
    if param.list_size and value is not None and not isinstance(value, tuple):
        return (value,) * param.list_size
    if param.list_size > 1 and isinstance(value, tuple) and len(value) == 1:
        return value * param.list_size
    if param.type in ("float", "Optional[float]") and type(value) is int:
        return float(value)
    return value


def make_operation(
    opdef: OpDef | str, *args: Any, location: Location = UNKNOWN_LOCATION, names: Sequence[str] = (), **kwargs: Any
) -> Operation:
    """Return a new, unattached operation with inferred result types.

    Raises:
        InputError: when the arguments do not fit the schema.
        InferenceError: when the operand types do not fit the operator.
    """
    if isinstance(opdef, str):
        opdef = get_opdef(opdef)
    operands, attributes, segments, types = bind_arguments(opdef, args, kwargs)
    count = len(types) if segments is None else sum(segments)
    extra = tuple([v.type for v in operands[count:] if v is not None]) if len(operands) > count else ()
    try:
        results = infer_types(opdef, types, attributes, extra)
    except InferenceError as error:
        if error.location is None and not location.is_unknown:
            raise InferenceError(error.message, location=location, remedy=error.remedy) from error
        raise
    return Operation(opdef, operands, attributes, results, location=location, segments=segments, names=names)


class Builder:
    """Creates operations at an insertion point: `b.relu(x)`, `b.call("aten.add.Tensor", x, y)`.

    There is a method for each operator, named without dialect and overload; it returns the result, or the tuple of
    results.

    Attributes:
        graph: where operations are inserted.
        anchor: the operation before which they are inserted.
        location: the location that they get.
    """

    def __init__(self, graph: Graph, before: Operation | None = None, *, location: Location = UNKNOWN_LOCATION) -> None:
        self.graph = graph
        self.anchor = before or graph.return_op
        self.location = location

    @contextmanager
    def at(self, before: Operation, location: Location | None = None) -> Iterator[Builder]:
        """Insert before `before` (and at `location`) inside the `with` block."""
        saved = self.anchor, self.location
        self.anchor = before
        if location is not None:
            self.location = location
        try:
            yield self
        finally:
            self.anchor, self.location = saved

    def insert(self, op: Operation) -> Operation:
        """Insert an existing operation."""
        self.graph.insert_before(self.anchor, op)
        return op

    def op(self, opdef: OpDef | str, /, *args: Any, location: Location | None = None, **kwargs: Any) -> Operation:
        """Make, insert and return an operation; `names` names its results.

        Raises:
            InputError: when the operator is unknown, or the arguments do not fit its schema.
            InferenceError: when the operand types do not fit the operator.
        """
        return self.insert(make_operation(opdef, *args, location=location or self.location, **kwargs))

    def call(self, opdef: OpDef | str, /, *args: Any, **kwargs: Any) -> Any:
        """Make and insert an operation; return its result, or the tuple of its results when there are several.

        Raises:
            InputError, InferenceError: as `op` does.
        """
        results = self.op(opdef, *args, **kwargs).results
        return results[0] if len(results) == 1 else results

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        # cached as an attribute, so that the next access skips this method
        method = self.__dict__[name] = functools.partial(self.call, short_opdef(name))
        return method


# Names whose `default` overload is TorchScript's.
_SHORT_NAMES = {"split": "aten.split.Tensor"}


@cached()
def short_opdef(name: str) -> OpDef:
    """Return the ATen operator of a short name: `relu`, `add` (`aten.add.Tensor`).

    Raises:
        InputError: when there is none.
    """
    if name in _SHORT_NAMES:
        return get_opdef(_SHORT_NAMES[name])
    for suffix in ("", *(f".{overload}" for overload in _PREFERRED_OVERLOADS)):
        try:
            found = get_opdef(f"aten.{name}{suffix}")
        except GraphwrightError:
            continue
        # skip TorchScript's operators on numbers and lists (`add(Scalar, Scalar)`)
        if torch.Tag.pt2_compliant_tag not in getattr(found.target, "tags", ()):
            continue
        if not found.operand_params and found.results != ("tensor",):
            continue
        return found
    raise InputError(
        f"there is no ATen operator named {name!r}{nearest_operator(f'aten.{name}')}",
        remedy="use `call` with its full name, such as `mylib.myop`",
    )
