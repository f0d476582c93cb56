"""The text of tree specifications, the structure of arguments and results: `((*, [*]), {"scale": *})`.

`*` is a leaf. Tuples, lists and dicts are written as in Python, other classes with their name:
`collections.OrderedDict{"a": *}`, `user.Pair(*, *)`. A dataclass has its fields, with None for those without a value:
`user.Output(logits=*, loss=None)`. Other context of a node follows it: `collections.deque(*, *) with 4`.
"""

from __future__ import annotations

import enum
import json
import re
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch.utils import _pytree as pytree

from ir.errors import ParseError
from ir.text.lexer import END, Lexer
from ir.text.literals import Literals, format_attribute

_REMEDY = (
    "import the module that registers it, or register it: torch.export.register_dataclass, register_pytree_node of "
    "torch.utils._pytree"
)
ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.ASCII | re.IGNORECASE)
"""The address of an object in its `repr`, which is another one in each process."""
_UNSERIALIZABLE = "unserializable"
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
"""Names of classes that are written without quotes."""


_PLAIN = {tuple: "`(*, *)`", list: "`[*, *]`", dict: '`{"a": *}`'}


def format_spec(spec: pytree.TreeSpec) -> str:
    """Return the text of a tree specification; one that could not be read back is only named."""
    try:
        text = _format(spec)
        if spec.is_leaf() or (spec.type is tuple and all(child.is_leaf() for child in spec.children())):
            return text  # the usual results of a model can be read back
        lexer = Lexer(text)
        if read_spec(Literals(lexer)) == spec and lexer.kind == END:
            return text
    except (ParseError, NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError):
        pass  # unregistered classes, and contexts without a literal
    return f"{_UNSERIALIZABLE} {json.dumps(' '.join(ADDRESS.sub('', str(spec)).split()))}"


def _format(spec: pytree.TreeSpec) -> str:
    if spec.is_leaf():
        return "*"
    children = [_format(child) for child in spec.children()]
    class_, context = spec.type, spec.context
    if class_ is tuple:
        return f"({children[0]},)" if len(children) == 1 else f"({', '.join(children)})"
    if class_ is list:
        return f"[{', '.join(children)}]"
    if class_ is dict:
        return _braces(context, children)
    if class_ is namedtuple:
        return f"{_format_name(context)}({', '.join(children)})"
    name = _format_name(class_)
    if class_ is defaultdict:
        factory, keys = context
        return name + _braces(keys, children) + ("" if factory is None else f" with {_format_name(factory)}")
    registered = pytree.SUPPORTED_SERIALIZED_TYPES.get(class_)
    if registered is not None and registered.to_dumpable_context is not None:
        dumped = registered.to_dumpable_context(context)
        return f"{name}({', '.join(children)}) with {_format_constant(dumped)}"
    if _is_of_dataclass(context, len(children)):
        fields = [f"{field}={child}" for field, child in zip(context[0], children, strict=True)]
        return f"{name}({', '.join(fields + [f'{field}=None' for field in context[1]])})"
    if type(context) is list and len(context) == len(children):
        return name + _braces(context, children)
    return f"{name}({', '.join(children)})" + ("" if context is None else f" with {_format_constant(context)}")


def _braces(keys: list[Any], children: list[str]) -> str:
    return f"{{{', '.join(f'{_format_constant(key)}: {child}' for key, child in zip(keys, children, strict=True))}}}"


def _is_of_dataclass(context: Any, count: int) -> bool:
    """Return whether a context is that of a dataclass: the fields that are children, and those that are None."""
    if type(context) is not list or len(context) != 2 or not all(type(part) is list for part in context):
        return False
    fields = [*context[0], *context[1]]
    return len(context[0]) == count and bool(fields) and all(type(f) is str and f.isidentifier() for f in fields)


def _format_constant(value: Any) -> str:
    return f"{_format_name(type(value))}.{value.name}" if isinstance(value, enum.Enum) else format_attribute(value)


def _format_name(class_: type) -> str:
    name = _name_of(class_)
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _name_of(class_: type) -> str:
    """Return the registered name of a class, or else its own."""
    registered = pytree.SUPPORTED_SERIALIZED_TYPES.get(class_)
    if registered is None or registered.serialized_type_name == pytree.NO_SERIALIZED_TYPE_NAME_FOUND:
        return f"{class_.__module__}.{class_.__qualname__}"
    return str(registered.serialized_type_name)


def read_spec(literals: Literals) -> pytree.TreeSpec:
    """Return the tree specification that starts at the next token.

    Raises:
        ParseError: when there is none, or it names a class that is not registered or not imported. Text never causes
            an import: that would run code of its choice.
    """
    lexer = literals.lexer
    if lexer.at(_UNSERIALIZABLE):
        raise lexer.error(
            "the structure holds a class that cannot be written as text",
            remedy="register the class with torch.export.register_dataclass or register_pytree_node, "
            "with a serialized_type_name; what it says of itself, and keys, are texts, numbers or members of enums",
        )
    lexer.enter()
    spec = _Reader(literals).node()
    lexer.leave()
    return spec


class _Reader:
    def __init__(self, literals: Literals) -> None:
        self.literals = literals
        self.lexer = literals.lexer

    def node(self) -> pytree.TreeSpec:
        lexer = self.lexer
        if lexer.accept("*"):
            return pytree.treespec_leaf()
        if lexer.accept("["):
            return pytree.TreeSpec(list, None, self._list("]"))
        if lexer.accept("{"):
            keys, children = self._items()
            return pytree.TreeSpec(dict, keys, children)
        if lexer.accept("("):
            place = lexer.index
            children = self._list(")")
            if len(children) == 1 and lexer.texts[lexer.index - 2] != ",":
                raise lexer.error("a tuple of one is written with a comma: `(*,)`", index=place)
            return pytree.TreeSpec(tuple, None, children)
        if lexer.kind not in ("name", "string"):
            raise lexer.error(
                f"expected a tree specification, found {lexer.describe()}",
                remedy='write it as `((*, *), {"scale": *})`, with `*` for each leaf',
            )
        return self._of_class()

    def _list(self, end: str, element: Callable[[], Any] | None = None) -> list[Any]:
        """Return the elements up to the mark `end`, nodes by default; the last may have a comma."""
        read = element or (lambda: read_spec(self.literals))
        return [read() for _ in self.lexer.items(end)]

    def _items(self) -> tuple[list[Any], list[pytree.TreeSpec]]:
        """Return the keys and children up to the closing brace."""
        place = self.lexer.index
        items = self._list("}", self._item)
        keys = [key for key, _ in items]
        try:
            distinct = len(set(keys)) == len(keys)
        except TypeError as error:
            raise self.lexer.error(f"not the keys of a dict: {error}", index=place) from error
        if not distinct:
            raise self.lexer.error("a key stands twice", index=place)
        return keys, [child for _, child in items]

    def _item(self) -> tuple[Any, pytree.TreeSpec]:
        key = self._constant()
        self.lexer.expect(":")
        return key, read_spec(self.literals)

    def _constant(self) -> Any:
        lexer = self.lexer
        class_name, _, member = lexer.text.rpartition(".")
        class_ = _find(class_name) if lexer.kind == "name" else None
        if class_ is None or not issubclass(class_, enum.Enum):
            return self.literals.constant()
        if member not in class_.__members__:
            raise lexer.error(f"{class_name} has no member {member!r}")
        lexer.next()
        return class_.__members__[member]

    def _of_class(self) -> pytree.TreeSpec:
        lexer = self.lexer
        first = lexer.index
        class_ = self._class()
        if class_ in _PLAIN:
            raise lexer.error(f"a {class_.__name__} is written as {_PLAIN[class_]}, without its name", index=first)
        if pytree.is_namedtuple_class(class_):
            lexer.expect("(")
            children = self._list(")")
            self._check_fields(class_, len(children), first)
            return pytree.TreeSpec(namedtuple, class_, children)
        if class_ in (OrderedDict, defaultdict) and not lexer.at("{"):
            raise lexer.error(f"expected the keys of the {class_.__name__} in braces, found {lexer.describe()}")
        if class_ is not deque and lexer.accept("{"):
            keys, children = self._items()
            return pytree.TreeSpec(class_, [self._factory(), keys] if class_ is defaultdict else keys, children)
        lexer.expect("(")
        if lexer.kind == "name" and lexer.texts[lexer.index + 1] == "=":
            return self._of_dataclass(class_)
        children = self._list(")")
        self._check_fields(class_, len(children), first)
        place = lexer.index
        context: Any = self._constant() if lexer.accept("with") else None
        if class_ is deque and context is not None and (type(context) is not int or context < len(children)):
            raise lexer.error("a deque is written with the most that it holds", index=place + 1)
        registered = pytree.SUPPORTED_SERIALIZED_TYPES.get(class_)
        if registered is not None and registered.from_dumpable_context is not None:
            try:
                context = registered.from_dumpable_context(context)
            except Exception as error:  # code of the author of the class, and text may hand it anything
                raise lexer.error(f"{class_.__qualname__} does not read this: {error}", index=place) from error
        return pytree.TreeSpec(class_, context, children)

    def _check_fields(self, class_: type, given: int, index: int) -> None:
        """Check that a named tuple, one of PyTorch's `return_types` for instance, has a child for each field."""
        fields = getattr(class_, "_fields", ())
        count = getattr(class_, "n_sequence_fields", len(fields) if pytree.is_namedtuple_class(class_) else given)
        if count != given:
            raise self.lexer.error(f"{class_.__name__} has {count} fields, not {given}", index=index)

    def _class(self) -> type:
        lexer = self.lexer
        place = lexer.index
        name = lexer.expect_string("the name of a class") if lexer.kind == "string" else lexer.next()
        class_ = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
        if not isinstance(class_, type) or _name_of(class_) != name:
            class_ = _find(name)
        if class_ is None or not (class_ in pytree.SUPPORTED_NODES or pytree.is_namedtuple_class(class_)):
            raise lexer.error(f"no class {name!r} is registered for tree specifications", index=place, remedy=_REMEDY)
        return class_

    def _of_dataclass(self, class_: type) -> pytree.TreeSpec:
        fields = self._list(")", self._field)
        present = [(name, child) for name, child in fields if child is not None]
        context = [[name for name, _ in present], [name for name, child in fields if child is None]]
        return pytree.TreeSpec(class_, context, [child for _, child in present])

    def _field(self) -> tuple[str, pytree.TreeSpec | None]:
        name = self.lexer.expect_kind("name", "the name of a field")
        self.lexer.expect("=")
        return name, None if self.lexer.accept("None") else read_spec(self.literals)

    def _factory(self) -> type | None:
        lexer = self.lexer
        if not lexer.accept("with"):
            return None
        place = lexer.index
        name = lexer.expect_kind("name", "the class of missing values")
        class_ = _find(name)
        if class_ is None:
            raise lexer.error(f"there is no class {name!r} in an imported module", index=place)
        return class_


def _find(name: str) -> type | None:
    """Return the class of a qualified name in a module that is already imported."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:count]))
        for part in parts[count:]:
            # not getattr, which may import
            found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
        if isinstance(found, type):
            return found
    return None
