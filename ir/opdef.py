"""What is known of each operator: its schema, and one row of facts beyond it.

Names are `aten.conv2d` for the overload `default` and `aten.add.Tensor` for any other. A definition is made from the
schema in `torch.ops` when a name is first asked for, so every PyTorch or custom operator has one; the rows of
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
from ir.spelling import nearest
from ir.types import Type


class Trait(enum.Flag):
    """Facts about an operator that rules quantify over."""

    NONE = 0
    """No fact at all."""
    PURE = enum.auto()
    """No effect, and the same result for the same operands (unless the op is in training, see `OpDef.training`)."""
    ELEMENTWISE = enum.auto()
    """Each result element depends on the operand elements at its (broadcast) place only."""
    COMMUTATIVE = enum.auto()
    """The first two operands may be swapped without any change of the result."""
    IDEMPOTENT = enum.auto()
    """f(f(x)) = f(x), bit for bit."""
    ACTIVATION = enum.auto()
    """Elementwise, one tensor in (PReLU: and its slope), same shape and dtype out."""
    VIEW = enum.auto()
    """The result may share storage with an operand."""
    RANDOM = enum.auto()
    """Draws random numbers (when training, if the op has a training flag)."""
    LAYOUT = enum.auto()
    """Moves elements and computes none: reshape, permute, slice."""
    CONV = enum.auto()
    """Forward convolution with operands (input, weight, bias)."""
    OPAQUE = enum.auto()
    """Meaning known to PyTorch only; never moved, merged or removed."""
    CAST = enum.auto()
    """Changes dtype, device or memory format of its first operand, and nothing else."""
    DROPOUT = enum.auto()
    """Drops values in training (flag `OpDef.training`, probability `p`), and returns its operand itself elsewhere."""
    NORMALIZES = enum.auto()
    """Reads the statistics `running_mean` and `running_var`, and writes them in training."""
    ASSERTION = enum.auto()
    """Fails or does nothing; capture has guards in its place."""
    COMPARES_OPERANDS = enum.auto()
    """Looks at whether two operands are one object, and then takes another path of equal meaning and other rounding."""
    UNINITIALIZED = enum.auto()
    """The result holds whatever was in memory."""
    OVERWRITES = enum.auto()
    """The result does not depend on the first operand's elements, though no derivative says so."""
    FOR_BACKWARD = enum.auto()
    """All results but the first are for the backward, and have other shapes where no gradient is wanted."""


class ParamKind(enum.Enum):
    """How an argument of the schema is held."""

    TENSOR = "tensor"
    OPTIONAL = "optional tensor"
    LIST = "list of tensors"
    ATTRIBUTE = "attribute"


ARGUMENTS = "arguments"
"""Type of an attribute that holds the arguments of a Python call, in which lists are no tuples."""


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
    """For `int[2]` and the like: a single int stands for this many."""
    extra: bool = False
    """An attribute that is ours and not the schema's; not passed to the kernel."""

    code: Any = attrs.field(init=False)
    """The class of an attribute that PyTorch holds as a number (`torch.dtype`, `torch.layout`, ...), or None."""

    @code.default
    def _code_of_type(self) -> Any:
        return _CODES.get(_required(self.type))

    def takes(self, value: Attribute) -> bool:
        """Return whether an attribute is what the schema says: a dtype, layout or memory format, or none of them.

        PyTorch takes one for the other, and each for an int, without a check: wrong numbers, or a crash.
        """
        if self.code is not None:
            return value is None or isinstance(value, self.code)
        if type(value) is tuple:
            return all(map(self.takes, value))
        return type(value) not in _CODE_TYPES


def _required(type_: str) -> str:
    """Return a schema's type without the `Optional` around it."""
    return type_.removeprefix("Optional[").removesuffix("]") if type_.startswith("Optional[") else type_


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
    """One row of the operator table: what is known of an operator beside its schema."""

    traits: Trait = Trait.NONE
    infer: InferRule | None = None
    """Fast type inference; None means the fake-tensor fallback."""
    evaluate: Callable[..., Any] | None = None
    """Called instead of the kernel for the reference meaning, with all attributes as keywords."""
    training: str | None = None
    """The bool attribute that puts the op in training mode (it is then random or writes its statistics)."""
    unit: int | float | None = None
    """The constant second operand u with op(x, u) = x up to type promotion and the sign of zero."""
    extra: tuple[Param, ...] = ()
    """Attributes that are ours and not the schema's."""
    layout: Layout | None = None
    """Where the elements of the results come from; None for what computes, or is not described."""
    storage: StorageRule | None = None
    """Whose storage the results lie in; None where the schema and the traits say it."""
    strides: StrideRule | None = None
    """What decides the strides of the result; None where nothing is known."""
    dims: Dims | None = None
    """What the attribute `dim` numbers; None where canonical programs leave it as it is written."""
    adds_dim: bool = False
    """Whether `dim` counts the dimensions of the result, which has one more than the operand."""
    shape: str | None = None
    """The attribute that is the shape of the result, of which sizes may be left out (-1)."""
    fill: int | float | str | None = None
    """The number that each element of the result is, or the attribute that holds it."""
    creates: bool = False
    """Whether the result depends on attributes alone."""
    synonym: str | None = None
    """The operator that PyTorch defines this one as another name of, with the same arguments."""
    spelled: str | None = None
    """The operator that canonical programs have in its place where shapes are known, with other arguments."""
    inverse: str | None = None
    """The operator that takes the result, alone, back to the operand."""
    functional: str | None = None
    """Of an in-place operator: the functional counterpart, where its name or its arguments do not tell."""


NO_FACTS = Facts()


@attrs.define(eq=False, slots=True)
class OpDef:
    """An operator: schema and facts. One object a name, compared by identity.

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
    """Its row, traits of the schema included."""
    in_place: str | None = None
    """Name of the functional counterpart, for an operator that writes its first operand."""
    is_region: bool = False
    operand_params: tuple[Param, ...] = attrs.field(init=False)
    attribute_params: tuple[Param, ...] = attrs.field(init=False)
    defaults: dict[str, Attribute] = attrs.field(init=False)
    operand_index: dict[str, int] = attrs.field(init=False)
    has_lists: bool = attrs.field(init=False)
    # asked of every operation in every pass, so kept beside the row
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
        """Whether the strides of the result do not depend on the strides of the operands."""
        return self.facts.strides in (StrideRule.FIXED, StrideRule.CONTIGUOUS)

    @property
    def follows_mode(self) -> bool:
        """Whether its attributes say whether the training flag follows the mode of its module (`follows_mode`)."""
        return "follows_mode" in self.defaults

    def group(self, operands: Sequence[Any], segments: Sequence[int] | None) -> tuple[Any, ...]:
        """Return one entry for each tensor parameter: what stands for its operand, or a tuple of these for a list."""
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
        """Return an item for each result as the kernel returns these: a list among several results is one of them."""
        if "list" not in self.results or len(self.results) == 1:
            return list(items)
        start = self.results.index("list")
        end = start + len(items) - len(self.results) + 1
        return [*items[:start], list(items[start:end]), *items[end:]]

    def has(self, trait: Trait) -> bool:
        """Return whether every flag of `trait` holds."""
        return trait in self.traits

    def __repr__(self) -> str:
        return f"OpDef({self.name})"


_ROWS: dict[str, Facts] = {}
_OPDEFS: dict[str, OpDef] = {}


def add_row(name: str, facts: Facts) -> None:
    """Record facts about an operator; called by the op table, before the first use of the operator.

    Raises:
        InputError: when the operator has a row already, or is in use.
    """
    if name in _ROWS or name in _OPDEFS:
        raise InputError(f"operator {name} already has a row")
    _ROWS[name] = facts


def operators_with(holds: Callable[[Facts], Any]) -> tuple[str, ...]:
    """Return the names of the operators whose rows in the table say something, in the order of the table.

    Args:
        holds: asked of each row.
    """
    return tuple([name for name, facts in _ROWS.items() if holds(facts)])


def register_opdef(opdef: OpDef) -> OpDef:
    """Add a definition that is not an operator of `torch.ops`.

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
            found = _from_torch(name, _resolve(name))
        _OPDEFS[name] = found
    return found


def nearest_operator(name: str) -> str:
    """Return the end of a message about an unknown operator: `; did you mean 'aten.clamp'?`, or the empty string."""
    namespace, _, rest = name.partition(".")
    known = {op.partition("::")[2] for op in torch._C._dispatch_get_all_op_names() if op.startswith(f"{namespace}::")}
    if "." not in rest:
        known = {op.partition(".")[0] for op in known}
    return "".join(f"; did you mean '{namespace}.{near}'?" for near in nearest(rest, known, 1))


def opdef_of_overload(overload: torch._ops.OpOverload) -> OpDef:
    """Return the definition of a `torch.ops` overload."""
    return get_opdef(name_of_overload(overload))


def name_of_overload(overload: torch._ops.OpOverload) -> str:
    """Return our name of a `torch.ops` overload: `aten.relu`, `aten.add.Tensor`."""
    namespace, _, packet = overload._schema.name.partition("::")
    suffix = "" if overload._overloadname == "default" else f".{overload._overloadname}"
    return f"{namespace}.{packet}{suffix}"


def _resolve(name: str) -> torch._ops.OpOverload:
    parts = name.split(".")
    if len(parts) in (2, 3) and all(parts):
        try:
            packet = getattr(getattr(torch.ops, parts[0]), parts[1])
            overload = getattr(packet, parts[2] if len(parts) == 3 else "default")
            if isinstance(overload, torch._ops.OpOverload):
                return overload
        except AttributeError:
            pass
    raise InputError(
        f"there is no operator named {name!r}",
        remedy="name it as in torch.ops (`aten.relu`, `aten.add.Tensor`), and import the library that registers it",
    )


_MADE_OF_A_SUM = frozenset({"aten::mvlgamma"})
"""Tagged pointwise in PyTorch; but the kernel sums along a new dimension, and its result is contiguous."""
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
        in_place=(row.functional or _functional_name(overload)) if schema.is_mutable else None,
    )


def _make_param(argument: Any) -> Param:
    text = str(argument.real_type)
    kind = _PARAM_KINDS.get(text, ParamKind.ATTRIBUTE)
    has_default = argument.has_default_value()
    default = None
    if has_default and kind is ParamKind.ATTRIBUTE:
        default = normalize_attribute(_schema_constant(argument.default_value, text))
    size = int(argument.N or 0) if "List[" in text else 0
    return Param(argument.name, kind, default, has_default, text, bool(argument.kwarg_only), size)


_PARAM_KINDS = {
    "Tensor": ParamKind.TENSOR,
    "Optional[Tensor]": ParamKind.OPTIONAL,
    "List[Tensor]": ParamKind.LIST,
    "List[Optional[Tensor]]": ParamKind.LIST,
}
_SCHEMA_CODES: dict[str, tuple[Any, ...]] = {
    # c10/core/MemoryFormat.h, c10/core/ScalarType.h
    "MemoryFormat": (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d),
    "ScalarType": (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32),
}


def _schema_constant(value: Any, text: str) -> Any:
    """Return a schema's default; the schema writes dtypes and memory formats as numbers."""
    codes = _SCHEMA_CODES.get(_required(text))
    return codes[value] if codes is not None and isinstance(value, int) else value


def _functional_name(overload: torch._ops.OpOverload) -> str | None:
    """Return the functional counterpart of an in-place operator: relu_ -> relu, pow_.Tensor -> pow.Tensor_Tensor."""
    namespace, _, packet = overload._schema.name.partition("::")
    if packet.startswith("__i") and packet.endswith("__"):
        name = f"__{packet[3:]}"  # `a |= b` is __ior__
    elif packet.endswith("_") and not packet.startswith("__"):
        name = packet[:-1]
    else:
        return None
    functional = getattr(getattr(torch.ops, namespace), name, None)
    if functional is None:
        return None
    own_name = overload._overloadname
    arguments = _arguments(overload)
    for name in sorted(functional.overloads(), key=lambda name: name != own_name):
        candidate = getattr(functional, name)
        found = _arguments(candidate)
        # the namesake may call its tensor `input`, or take it second; but `aten.ldexp` is Python's, on numbers
        is_alike = name == own_name and any(_tensors(found, by) == _tensors(arguments, by) for by in (0, 1))
        if not candidate._schema.is_mutable and (is_alike or found == arguments):
            return name_of_overload(candidate)
    return None


def _arguments(overload: torch._ops.OpOverload) -> list[tuple[str, int, str]]:
    """Return the name, the place and the type of each argument."""
    return [(a.name, i, str(a.real_type)) for i, a in enumerate(overload._schema.arguments)]


def _tensors(arguments: list[tuple[str, int, str]], by: int) -> dict[str | int, str]:
    """Return the types of those that are tensors, by name (0) or by place (1)."""
    return {argument[by]: argument[2] for argument in arguments if "Tensor" in argument[2]}
