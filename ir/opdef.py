"""Definitions of operators: the schema, and one row of facts beyond it.

Names are `aten.conv2d` for the overload `default` and `aten.add.Tensor` for any other. A definition is made from the
schema in `torch.ops` when a name is first used, so every PyTorch or custom operator has one. The rows of
`ir/ops/table.py` add traits, units and type inference.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from ir.attributes import Attribute, normalize_attribute
from ir.columns import Dims, Layout, StorageRule, StrideRule
from ir.errors import InputError
from ir.schemas import functional_name, name_of_overload, overload_named, schema_constant, without_optional
from ir.types import Dim, Type


class Trait(enum.Flag):
    """Facts about an operator that rules quantify over."""

    NONE = 0
    """No fact at all."""
    PURE = enum.auto()
    """No effect, and the same result for the same operands (unless the op is in training, see `OpDef.training`)."""
    ELEMENTWISE = enum.auto()
    """Each result element depends only on the operand elements at its (broadcast) place."""
    COMMUTATIVE = enum.auto()
    """Swapping the first two operands does not change the result."""
    IDEMPOTENT = enum.auto()
    """f(f(x)) = f(x), bit for bit."""
    ACTIVATION = enum.auto()
    """Elementwise, one tensor in (PReLU: and its slope), same shape and dtype out."""
    VIEW = enum.auto()
    """The result may alias an operand."""
    RANDOM = enum.auto()
    """Draws random numbers (when training, if the op has a training flag)."""
    LAYOUT = enum.auto()
    """Moves elements and computes none: reshape, permute, slice."""
    SELECTS = enum.auto()
    """Each element of the result is an element of an operand; which one, their places and order decide."""
    CONV = enum.auto()
    """Forward convolution with operands (input, weight, bias)."""
    CONV_TRANSPOSE = enum.auto()
    """Transposed convolution with operands (input, weight, bias); the weight is (in, out / groups, ...)."""
    OPAQUE = enum.auto()
    """Only PyTorch knows its meaning; never moved, merged or removed."""
    CAST = enum.auto()
    """Changes only dtype, device or memory format of its first operand."""
    DROPOUT = enum.auto()
    """Drops values in training (flag `OpDef.training`, probability `p`), else returns its operand."""
    NORMALIZES = enum.auto()
    """Reads the statistics `running_mean` and `running_var`, and updates them in training."""
    ASSERTION = enum.auto()
    """Only checks; capture replaces it by guards."""
    COMPARES_OPERANDS = enum.auto()
    """Takes a path of other rounding where two operands are one object."""
    UNINITIALIZED = enum.auto()
    """The result holds whatever was in memory."""
    OVERWRITES = enum.auto()
    """The result does not depend on the elements of the first operand, though no derivative says so."""
    COARSE_DERIVATIVE = enum.auto()
    """Its derivative has constants in float32, whatever the dtype."""
    FOR_BACKWARD = enum.auto()
    """All results but the first are for the backward, and change shape where no gradient is required."""


class ParamKind(enum.Enum):
    """How an argument of the schema is held."""

    TENSOR = "tensor"
    OPTIONAL = "optional tensor"
    LIST = "list of tensors"
    ATTRIBUTE = "attribute"


ARGUMENTS = "arguments"
"""Type of an attribute that holds the arguments of a Python call, which tells lists from tuples."""


@attrs.frozen(slots=True)
class Param:
    """One argument of an operator's schema."""

    name: str
    kind: ParamKind
    default: Attribute = None
    has_default: bool = False
    type: str = ""
    """The schema's type of an attribute: `int[]`, `Scalar`, `bool?`."""
    keyword_only: bool = False
    list_size: int = 0
    """For `int[2]` and the like: the length to which a single int is expanded."""
    extra: bool = False
    """An attribute of ours, not of the schema; not passed to the kernel."""

    code: Any = attrs.field(init=False)
    """The class of an attribute that PyTorch holds as a number (`torch.dtype`, `torch.layout`, ...), or None."""

    @code.default
    def _code_of_type(self) -> Any:
        return _CODES.get(without_optional(self.type))

    def takes(self, value: Attribute) -> bool:
        """Return whether an attribute is a dtype, layout or memory format exactly where the schema says so.

        PyTorch confuses these with each other and with ints without a check: wrong numbers, or a crash.
        """
        if self.type == ARGUMENTS:
            return True
        if self.code is not None:
            return isinstance(value, self.code) or (value is None and self.type != without_optional(self.type))
        if type(value) is tuple:
            return all(map(self.takes, value))
        return type(value) not in _CODE_TYPES


_CODES: dict[str, type] = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
}
_CODE_TYPES = frozenset(_CODES.values())
InferRule = Callable[[tuple[Any, ...], Mapping[str, Attribute]], tuple[Type, ...]]
"""(operand types in parameter order: Type, None, or a tuple of types for a list; attributes) -> result types."""


@attrs.frozen
class Facts:
    """One row of the operator table: facts about an operator beyond its schema."""

    traits: Trait = Trait.NONE
    infer: InferRule | None = None
    """Fast type inference; None means the fake-tensor fallback."""
    evaluate: Callable[..., Any] | None = None
    """Replaces the kernel in reference evaluation; takes all attributes as keywords."""
    training: str | None = None
    """The bool attribute for training mode, in which the op is random or updates its statistics."""
    unit: int | float | None = None
    """The constant second operand u with op(x, u) = x up to type promotion and the sign of zero."""
    extra: tuple[Param, ...] = ()
    """Attributes of ours, not of the schema."""
    layout: Layout | None = None
    """Where the elements of the results come from; None if the op computes, or is not described."""
    storage: StorageRule | None = None
    """Which storage the results are in; None where schema and traits say it."""
    strides: StrideRule | None = None
    """What the strides of the result depend on; None where nothing is known."""
    dims: Dims | None = None
    """What the attribute `dim` refers to; None where canonical programs do not rewrite it."""
    adds_dim: bool = False
    """Whether `dim` refers to the result, which has one dimension more than the operand."""
    shape: str | None = None
    """The attribute that is the shape of the result, with -1 for inferred sizes."""
    fill: int | float | str | None = None
    """The value of every element of the result, or the attribute that holds it."""
    creates: bool = False
    """Whether the result depends on attributes alone."""
    synonym: str | None = None
    """The operator that this one is an alias of in PyTorch, with the same arguments."""
    spelled: str | None = None
    """The operator that replaces it in canonical programs where shapes are known, with other arguments."""
    inverse: str | None = None
    """The unary operator that maps the result back to the operand."""
    most: Callable[[tuple[Any, ...]], Dim | None] | None = None
    """The most that a size which depends on data can be, given the types of the operands; None where unknown."""
    functional: str | None = None
    """The functional counterpart of an in-place operator, where name and arguments do not tell."""


NO_FACTS = Facts()


@attrs.define(eq=False, slots=True)
class OpDef:
    """An operator: schema and facts. There is one object for each name, compared by identity.

    Attributes:
        name: dialect, name and overload: `aten.add.Tensor`.
        params: the arguments of the schema in order, then those that are ours.
        is_region: whether it is a fused region, whose operations have a body.
        operand_params: the parameters that take values.
        attribute_params: the parameters that are held as attributes.
        defaults: default of each attribute that has one.
        operand_index: number of each operand parameter, by name.
        has_lists: whether a parameter takes a list of values.
        traits: what rules may rely on; from the row and the schema.
        infer: fast type inference, or None.
        training: the attribute that puts it in training mode, or None.
        layout: where the elements of the results come from, or None.
    """

    name: str
    params: tuple[Param, ...]
    results: tuple[str, ...]
    """Kind of each result: `tensor`, `list` (as many values as inference says), `int`, `float`, `bool`, `opaque`."""
    target: Callable[..., Any] | None = None
    """The kernel, called with the schema's arguments; None for regions and terminators."""
    facts: Facts = NO_FACTS
    """Its row, including the traits of the schema."""
    in_place: str | None = None
    """Name of the functional counterpart, for an operator that mutates its first operand."""
    is_region: bool = False
    operand_params: tuple[Param, ...] = attrs.field(init=False)
    attribute_params: tuple[Param, ...] = attrs.field(init=False)
    defaults: dict[str, Attribute] = attrs.field(init=False)
    operand_index: dict[str, int] = attrs.field(init=False)
    has_lists: bool = attrs.field(init=False)
    # copied from the row: every pass reads these of every operation
    traits: Trait = attrs.field(init=False)
    infer: InferRule | None = attrs.field(init=False)
    training: str | None = attrs.field(init=False)
    layout: Layout | None = attrs.field(init=False)
    is_pure: bool = attrs.field(init=False)
    """Whether the operator has the trait PURE."""

    def __attrs_post_init__(self) -> None:
        self.traits, self.infer, self.training = self.facts.traits, self.facts.infer, self.facts.training
        self.layout = self.facts.layout
        self.operand_params = tuple(p for p in self.params if p.kind is not ParamKind.ATTRIBUTE)
        self.attribute_params = tuple(p for p in self.params if p.kind is ParamKind.ATTRIBUTE)
        self.defaults = {p.name: p.default for p in self.attribute_params if p.has_default}
        self.operand_index = {p.name: i for i, p in enumerate(self.operand_params)}
        self.has_lists = any(p.kind is ParamKind.LIST for p in self.operand_params)
        self.is_pure = Trait.PURE in self.traits

    @property
    def short_name(self) -> str:
        """The operator's name without dialect and overload: `conv2d`."""
        return self.name.split(".")[1] if "." in self.name else self.name

    @property
    def fixes_strides(self) -> bool:
        """Whether the strides of the result are independent of those of the operands."""
        return self.facts.strides in (StrideRule.FIXED, StrideRule.CONTIGUOUS)

    @property
    def follows_mode(self) -> bool:
        """Whether it has the attribute `follows_mode`: whether the training flag follows the mode of its module."""
        return "follows_mode" in self.defaults

    def group(self, operands: Sequence[Any], segments: Sequence[int] | None) -> tuple[Any, ...]:
        """Return one entry for each tensor parameter: an item, or a tuple of items for a list."""
        if segments is None:
            return tuple(operands[: len(self.operand_params)])
        grouped: list[Any] = []
        start = 0
        for param, size in zip(self.operand_params, segments, strict=True):
            part = tuple(operands[start : start + size])
            grouped.append(part if param.kind is ParamKind.LIST else part[0])
            start += size
        return tuple(grouped)

    def nest(self, items: Sequence[Any]) -> list[Any]:
        """Return results nested as the kernel returns them: a list among several results is one item."""
        if "list" not in self.results or len(self.results) == 1:
            return list(items)
        start = self.results.index("list")
        end = start + len(items) - len(self.results) + 1
        return [*items[:start], list(items[start:end]), *items[end:]]

    def has(self, trait: Trait) -> bool:
        """Return whether all flags of `trait` are set."""
        return trait in self.traits

    def __deepcopy__(self, memo: dict[int, Any]) -> OpDef:
        return self

    def __repr__(self) -> str:
        return f"OpDef({self.name})"


_ROWS: dict[str, Facts] = {}
_OPDEFS: dict[str, OpDef] = {}


def add_row(name: str, facts: Facts) -> None:
    """Record the row of an operator, before its first use.

    Raises:
        InputError: when the operator has a row already, or is in use.
    """
    if name in _ROWS or name in _OPDEFS:
        raise InputError(f"operator {name} already has a row")
    _ROWS[name] = facts


def operators_with(holds: Callable[[Facts], Any]) -> tuple[str, ...]:
    """Return the names of the operators whose rows satisfy a predicate, in the order of the table.

    Args:
        holds: the predicate.
    """
    return tuple([name for name, facts in _ROWS.items() if holds(facts)])


def register_opdef(opdef: OpDef) -> OpDef:
    """Add the definition of an operator that is not in `torch.ops`.

    Raises:
        InputError: when the name is taken.
    """
    if opdef.name in _OPDEFS:
        raise InputError(f"operator {opdef.name} is already defined")
    _OPDEFS[opdef.name] = opdef
    return opdef


def get_opdef(name: str) -> OpDef:
    """Return the definition of the operator `name`.

    Raises:
        InputError: when neither graphwright nor `torch.ops` knows it.
    """
    found = _OPDEFS.get(name)
    if found is None:
        if name.startswith("fused."):
            found = OpDef(name, (), (), is_region=True)
        else:
            found = _from_torch(name, overload_named(name))
        _OPDEFS[name] = found
    return found


def opdef_of_overload(overload: torch._ops.OpOverload) -> OpDef:
    """Return the definition of a `torch.ops` overload.

    Raises:
        InputError: when the default of an argument is a dtype or the like that PyTorch does not have.
    """
    return get_opdef(name_of_overload(overload))


_MADE_OF_A_SUM = frozenset({"aten::mvlgamma"})
"""Tagged pointwise in PyTorch, but the kernel sums along a new dimension, and its result is contiguous."""
_RESULT_KINDS = {"Tensor": "tensor", "int": "int", "SymInt": "int", "float": "float", "bool": "bool", "number": "float"}


def _from_torch(name: str, overload: torch._ops.OpOverload) -> OpDef:
    schema = overload._schema
    row = _ROWS.get(name, NO_FACTS)
    params = tuple(_make_param(argument) for argument in schema.arguments) + row.extra
    results: list[str] = []
    aliases = False
    for ret in schema.returns:
        text = str(ret.type)
        results.append("list" if text == "List[Tensor]" else _RESULT_KINDS.get(text, "opaque"))
        aliases |= ret.alias_info is not None and not schema.is_mutable
    traits = row.traits
    if torch.Tag.pointwise in overload.tags and len(results) == 1 and schema.name not in _MADE_OF_A_SUM:
        traits |= Trait.ELEMENTWISE
    if aliases:
        traits |= Trait.VIEW
    if torch.Tag.maybe_aliasing_or_mutating in overload.tags:
        traits |= Trait.VIEW
    if torch.Tag.nondeterministic_seeded in overload.tags:
        traits |= Trait.RANDOM
    known = schema.name.startswith("aten::")
    if schema.is_mutable or (not known and Trait.PURE not in traits):
        traits |= Trait.OPAQUE
    elif Trait.RANDOM not in traits or row.training is not None:
        traits |= Trait.PURE
    return OpDef(
        name,
        params,
        tuple(results),
        target=overload,
        facts=attrs.evolve(row, traits=traits),
        in_place=(row.functional or functional_name(overload)) if schema.is_mutable else None,
    )


def _make_param(argument: Any) -> Param:
    text = str(argument.real_type)
    kind = _PARAM_KINDS.get(text, ParamKind.ATTRIBUTE)
    has_default = argument.has_default_value()
    default = None
    if has_default and kind is ParamKind.ATTRIBUTE:
        default = normalize_attribute(schema_constant(argument.default_value, text))
    size = int(argument.N or 0) if "List[" in text else 0
    return Param(argument.name, kind, default, has_default, text, bool(argument.kwarg_only), size)


_PARAM_KINDS = {
    "Tensor": ParamKind.TENSOR,
    "Optional[Tensor]": ParamKind.OPTIONAL,
    "List[Tensor]": ParamKind.LIST,
    "List[Optional[Tensor]]": ParamKind.LIST,
}
