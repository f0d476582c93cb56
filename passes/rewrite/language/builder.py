"""The vocabulary in which patterns are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ir.attributes import Attribute, normalize_attribute
from ir.builder import short_opdef
from ir.core import Operation, Value
from ir.errors import GraphwrightError, PatternError
from ir.opdef import OpDef, ParamKind, Trait, get_opdef
from ir.schemas import name_of_overload, nearest_operator
from passes.rewrite.language.associations import Part, associations
from passes.rewrite.language.nodes import (
    AnyOf,
    AnyValue,
    AttrCapture,
    AttrWhere,
    Chain,
    Node,
    OpNode,
    Roots,
    Siblings,
)

Ops = str | Trait | Sequence[str]


def _opdefs(ops: Ops) -> tuple[OpDef, ...] | Trait:
    if isinstance(ops, Trait):
        return ops
    names = (ops,) if isinstance(ops, str) else tuple(ops) if isinstance(ops, Sequence) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise PatternError(
            f"{ops!r} names no operators",
            remedy='write a name, a tuple of names or a trait: `p.op("aten.relu", x)`, `p.op(Trait.ACTIVATION, x)`',
        )
    return tuple(map(_opdef, names))


def _opdef(name: str) -> OpDef:
    is_full = "." in name
    try:
        opdef = get_opdef(name) if is_full else short_opdef(name)
        if not (name.startswith("aten.") and name.count(".") == 1):
            return opdef
        usual = short_opdef(opdef.short_name)  # raises where PyTorch's `default` is TorchScript's and there is no other
        if usual is opdef:
            return opdef
    except GraphwrightError as error:
        raise PatternError(
            error.message + (nearest_operator(name) if is_full else ""),
            remedy='an operator outside of ATen, or a certain overload, is written `p.op("mylib.myop", ...)` in a '
            'pattern and `b.call("mylib.myop", ...)` in a rewrite; import the library that registers it first',
        ) from error

    raise PatternError(f"{name} is TorchScript's overload, which no program holds", remedy=f"write `{usual.name}`")


def _is_node(given: Any) -> bool:
    return isinstance(given, (AnyValue, OpNode, AnyOf, Chain))


def _check_nodes(what: str, nodes: Sequence[Any]) -> None:
    for node in nodes:
        if node is not None and not _is_node(node):
            raise _no_pattern(node, what)


def _no_pattern(given: Any, what: str) -> PatternError:
    return PatternError(
        f"{given!r} as {what} is not a pattern",
        remedy='an operand is `p.any("x")`, an operation such as `p.relu(...)`, or None where it must be absent; an '
        "attribute is given by keyword, or at its place in the schema",
    )


def _attribute_at(opdefs: tuple[OpDef, ...] | Trait, place: int, given: Any) -> str | None:
    """Return the name of the attribute that a positional argument is; None where it is an operand.

    Nodes and None are operands, and so are lists of them; attributes are what they are as arguments of the operator.

    Raises:
        PatternError: when it can be neither.
    """
    if given is None or _is_node(given):
        return None
    several = isinstance(given, (list, tuple))
    if several and given and any(each is None or _is_node(each) for each in given):
        return None
    if isinstance(opdefs, Trait):
        raise PatternError(
            f"{given!r} is no operand of an operator with {opdefs}",
            remedy="attributes of a pattern over a trait are given by keyword",
        )
    params = [opdef.params[place] if place < len(opdef.params) else None for opdef in opdefs]
    if several and all(param is not None and param.kind is ParamKind.LIST for param in params):
        return None
    fit = all(
        param is not None and param.kind is ParamKind.ATTRIBUTE and not (param.keyword_only or param.extra)
        for param in params
    )
    names = {param.name for param in params if param is not None}
    if not fit or len(names) != 1:
        if any(param is not None and param.kind is ParamKind.ATTRIBUTE for param in params):
            others = " or ".join(f'`p.op("{name}", ...)`' for name in _overloads_with(opdefs, place, given))
            raise PatternError(
                f"{given!r} is argument {place + 1} of {' and '.join(opdef.name for opdef in opdefs)}, which is no "
                "attribute that is given by position",
                remedy=f"an overload that has it there is written {others}"
                if others
                else f"give it by keyword: {', '.join(f'{name}=...' for name in sorted(names))}",
            )
        raise _no_pattern(given, f"an operand of {opdefs[0].name}")
    return names.pop()


def _overloads_with(opdefs: tuple[OpDef, ...], place: int, given: Any) -> list[str]:
    """Return the overloads of an operator in which an argument that is given by position is an attribute."""
    found = []
    for opdef in _overloads_beside(opdefs[0]) if len(opdefs) == 1 else ():
        param = opdef.params[place] if place < len(opdef.params) else None
        if param is None or param.kind is not ParamKind.ATTRIBUTE or param.keyword_only or param.extra:
            continue
        if param.takes(given):
            found.append(opdef.name)
    return found


def overloads_with_keyword(opdef: OpDef, name: str) -> list[str]:
    """Return the other overloads of an operator that have an attribute of a name."""
    return [
        other.name
        for other in _overloads_beside(opdef)
        if any(param.name == name and param.kind is ParamKind.ATTRIBUTE for param in other.params)
    ]


def _overloads_beside(opdef: OpDef) -> Iterator[OpDef]:
    """Yield the other overloads of an operator that a program may hold: those that take tensors and write to none."""
    packet = getattr(opdef.target, "overloadpacket", None)
    for overload in () if packet is None else packet.overloads():
        other = get_opdef(name_of_overload(getattr(packet, overload)))
        is_written = getattr(packet, overload)._schema.is_mutable
        by_name = any("Dimname" in param.type for param in other.params)
        if other.operand_params and not is_written and not by_name and other is not opdef:
            yield other


class PatternBuilder:
    """The vocabulary of `Pattern.pattern`; an attribute access is an operator: `p.relu(x)`, `p.softmax(x, dim=-1)`.

    Operand patterns are given by position or parameter name; what is not given matches anything. `None` matches an
    absent operand only. Attributes take a literal, `p.attr(name)`, or `p.attr_where(f, text)`; they are given by
    keyword, or at their place in the schema: `p.permute(x, (1, 0))`.
    """

    def any(self, name: str = "", *, where: Callable[[Value], bool] | None = None, optional: bool = False) -> AnyValue:
        """Match any value (with `optional`, an absent one too) of which `where` is true, and capture it as `name`."""
        return AnyValue(name, where, optional)

    def attr(self, name: str) -> AttrCapture:
        """Match any attribute value and capture it as `name`."""
        return AttrCapture(name)

    def attr_where(self, predicate: Callable[[Attribute], bool], text: str) -> AttrWhere:
        """Match attribute values that `predicate` accepts; `text` completes "must be ..." in messages."""
        return AttrWhere(predicate, text)

    def op(
        self,
        ops: Ops,
        *arguments: Node | Sequence[Node] | AttrCapture | AttrWhere | Attribute,
        name: str = "",
        result: int = 0,
        context: bool = False,
        where: Callable[[Operation], str | None] | None = None,
        **keywords: Any,
    ) -> OpNode:
        """Match an operation by operator names (alternatives) or by a trait that its operator has.

        Args:
            ops: the names, or the trait.
            arguments: patterns of operands, numbered among themselves, and attributes at their places in the schema.
            name: captures the operation.
            result: the number of the result that is meant.
            context: whether it is only looked at, and not part of what the rewrite replaces.
            where: a condition; it returns the reason why it does not hold.
            keywords: operands and attributes by name.

        Raises:
            PatternError: when an operator is unknown, an operand is not a pattern, or an attribute is given twice.
        """
        opdefs = _opdefs(ops)
        what = f"an operand of {ops if isinstance(opdefs, Trait) else opdefs[0].name}"
        entries: list[tuple[int | str, Any]] = []
        attributes: list[tuple[str, Any]] = []
        for place, given in enumerate(arguments):
            attribute = _attribute_at(opdefs, place, given)
            if attribute is None:
                _check_nodes(what, given if isinstance(given, (list, tuple)) else (given,))
                entries.append((len(entries), tuple(given) if isinstance(given, (list, tuple)) else given))
            elif attribute in keywords:
                raise PatternError(f"the attribute {attribute!r} is given twice: by position and by keyword")
            else:
                keywords[attribute] = given
        for key, given in keywords.items():
            if isinstance(given, (AnyValue, OpNode, AnyOf, Chain)):
                entries.append((key, given))
            elif given is None and not isinstance(opdefs, Trait) and key in opdefs[0].operand_index:
                entries.append((key, None))
            elif isinstance(given, (AttrCapture, AttrWhere)):
                attributes.append((key, given))
            else:
                attributes.append((key, normalize_attribute(given)))
        return OpNode(opdefs, tuple(entries), tuple(attributes), name, result, context, where)

    def one_of(self, *alternatives: Node, **named: Node) -> AnyOf:
        """Match the first alternative that matches; names are shown in remarks, and are in `m.alternatives`.

        Raises:
            PatternError: when there is none, or one is not a pattern.
        """
        given = (*alternatives, *named.values())
        if not given or None in given:
            raise PatternError("`p.one_of` needs one pattern or more, and none of them is None")
        _check_nodes("an alternative", given)
        return AnyOf(given, ("",) * len(alternatives) + tuple(named) if named else ())

    def sum_of(self, *terms: Node | float, name: str = "") -> Node:
        """Match the sum of some values and numbers, in whatever order and with whatever brackets it is written.

        Another order rounds otherwise, so a rule that uses it is not exact. `name` captures the last addition.

        Raises:
            PatternError: when there are less than two terms or more than four values, or one is neither.
        """
        return self._associated("aten.add.Tensor", "aten.add.Scalar", terms, name, alpha=1)

    def product_of(self, *factors: Node | float, name: str = "") -> Node:
        """Match the product of some values and numbers, in whatever order and with whatever brackets it is written.

        Another order rounds otherwise, so a rule that uses it is not exact. `name` captures the last multiplication.

        Raises:
            PatternError: when there are less than two factors or more than four values, or one is neither.
        """
        return self._associated("aten.mul.Tensor", "aten.mul.Scalar", factors, name)

    def _associated(self, joined: str, scaled: str, parts: Sequence[Any], name: str, **literals: int) -> Node:
        for part in parts:
            if not _is_node(part) and not isinstance(part, AttrCapture) and type(part) not in (int, float):
                raise PatternError(
                    f"{part!r} is neither a pattern nor a number",
                    remedy='a part of a sum or product is `p.any("x")`, an operation, a number, or `p.attr("n")`',
                )

        def join(left: Part, right: Part, name: str) -> Node:
            if _is_node(right):
                return self.op(joined, left, right, name=name, **literals)  # type: ignore[arg-type]
            return self.op(scaled, left, other=right, name=name, **literals)  # type: ignore[arg-type]

        return associations(parts, join, _is_node, name)

    def siblings(
        self,
        tree: Node,
        of: AnyValue,
        name: str = "siblings",
        *,
        minimum: int = 2,
        alike: Callable[[Any, Any], str | None] | None = None,
    ) -> Roots:
        """Match all operations that match `tree` and read one value, and let the rewrite replace them together.

        It is the whole pattern: `return p.siblings(p.linear(x, w, name="linear"), x)`. What the tree captures is other
        in each sibling, but for the value that they share: `m.siblings` has a match of each, in the order of the graph.

        Args:
            tree: the pattern of one; operations of which its conditions do not hold are none.
            of: the value that they read, a placeholder of the tree with a name.
            name: captures their matches.
            minimum: how many there are at least, 2 or more.
            alike: given the matches of the first and of another one, the reason why that does not go with it, or None.

        Raises:
            PatternError: when `tree` is no operation, or does not read `of`.
        """
        if not isinstance(tree, (OpNode, AnyOf)):
            raise _no_pattern(tree, "the tree of siblings")
        if not isinstance(of, AnyValue) or not of.name:
            raise PatternError(
                f"{of!r} is not a value that siblings read",
                remedy='give it a name: `x = p.any("x")`, `p.siblings(..., x)`',
            )
        if type(minimum) is not int or minimum < 2:
            raise PatternError(f"{minimum!r} siblings are none", remedy="`minimum` is 2 or more")
        return Roots((tree,), Siblings(of, name, minimum, alike))

    def optional(self, outer: Callable[[Node], Node], inner: Node) -> AnyOf:
        """Match `outer(inner)`, or else `inner` alone: an operation that may be absent."""
        return AnyOf((outer(inner), inner))

    def chain(
        self,
        ops: Sequence[str | Trait],
        inner: Node,
        name: str = "",
        *,
        minimum: int = 0,
        maximum: int = 64,
        where: Callable[[Operation], str | None] | None = None,
    ) -> Chain:
        """Match `inner` behind `minimum` to `maximum` unary operations of the given operators or traits.

        Raises:
            PatternError: when an operator is unknown.
        """
        flat: list[OpDef | Trait] = []
        for entry in ops:
            found = _opdefs(entry)
            flat.extend([found] if isinstance(found, Trait) else found)
        return Chain(tuple(flat), inner, name, minimum, maximum, where)

    def __getattr__(self, name: str) -> Callable[..., OpNode]:
        if name.startswith("_"):
            raise AttributeError(name)

        def make(*arguments: Any, **keywords: Any) -> OpNode:
            return self.op((_opdef(name).name,), *arguments, **keywords)

        return make
