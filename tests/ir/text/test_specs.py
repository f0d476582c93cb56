"""Tree specifications as text, both ways."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from ir.errors import ParseError
from ir.text.lexer import END, Lexer
from ir.text.literals import Literals
from ir.text.specs import format_spec, read_spec

Pair = namedtuple("Pair", "x y")
HERE = __name__


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Output:
    logits: Any
    loss: Any = None


@dataclasses.dataclass
class Empty:
    pass


class Sized:
    def __init__(self, children: Any, size: Any) -> None:
        self.children, self.size = children, size


class Coded(Sized):
    """Its context is written and read by functions of its own."""


class Named(Sized):
    """It is registered under a name that Python would not take."""


class Nameless(Sized):
    """It is registered without a name."""


def register(class_: type[Sized], **options: Any) -> None:
    pytree.register_pytree_node(class_, lambda s: (s.children, s.size), class_, **options)


pytree.register_dataclass(Output, serialized_type_name=f"{HERE}.Output")
pytree.register_dataclass(Empty, serialized_type_name=f"{HERE}.Empty")
register(Sized, serialized_type_name="sizes.Sized")
register(Named, serialized_type_name="named: it")
register(Nameless)
register(
    Coded,
    serialized_type_name="sizes.Coded",
    to_dumpable_context=lambda size: {"size": list(size)},
    from_dumpable_context=lambda data: tuple(data["size"]),
)


def read(text: str) -> pytree.TreeSpec:
    lexer = Lexer(text)
    spec = read_spec(Literals(lexer))
    assert lexer.kind == END
    return spec


TREES: list[tuple[Any, str]] = [
    (0, "*"),
    (None, "*"),
    ((), "()"),
    ((0,), "(*,)"),
    ([], "[]"),
    ({}, "{}"),
    (((0, [0, {"a": 0}]), {}), '((*, [*, {"a": *}]), {})'),
    ((((((0,),),),),), "(((((*,),),),),)"),
    ({"b": 0, "a": [0]}, '{"b": *, "a": [*]}'),
    (
        {1: 0, 1.5: 0, None: 0, (1, "a"): 0, torch.int8: 0, -1: 0, True and 'ä\n"': 0},
        r'{1: *, 1.5: *, None: *, [1, "a"]: *, torch.int8: *, -1: *, "\u00e4\n\"": *}',
    ),
    ({True: 0, Color.RED: 0}, f"{{True: *, {HERE}.Color.RED: *}}"),
    (OrderedDict(b=0, a=0), 'collections.OrderedDict{"b": *, "a": *}'),
    (defaultdict(list, a=0), 'collections.defaultdict{"a": *} with builtins.list'),
    (defaultdict(None, a=0), 'collections.defaultdict{"a": *}'),
    (deque([0, 0]), "collections.deque(*, *)"),
    (deque([0], maxlen=4), "collections.deque(*) with 4"),
    (immutable_list([0]), "torch.fx.immutable_collections.immutable_list(*)"),
    (immutable_dict({"a": 0}), 'torch.fx.immutable_collections.immutable_dict{"a": *}'),
    (Pair(0, (0,)), f"{HERE}.Pair(*, (*,))"),
    (torch.return_types.max((0, 0)), "torch.return_types.max(*, *)"),
    (Output(0), f"{HERE}.Output(logits=*, loss=None)"),
    (Output(None, [0]), f"{HERE}.Output(loss=[*], logits=None)"),
    (Output(0, 0), f"{HERE}.Output(logits=*, loss=*)"),
    (Empty(), f"{HERE}.Empty() with list(list(), list())"),
    (Sized([0, 0], None), "sizes.Sized(*, *)"),
    (Sized([0, 0], (1, 2)), "sizes.Sized(*, *) with [1, 2]"),
    ((Sized([0], {"a": [1]}), 0), '(sizes.Sized(*) with {"a": list(1)}, *)'),
    (Sized([], Color.RED), f"sizes.Sized() with {HERE}.Color.RED"),
    (Sized([], []), "sizes.Sized{}"),
    (Sized([0], ["key"]), 'sizes.Sized{"key": *}'),
    (Coded([0], (1, 2)), 'sizes.Coded(*) with {"size": list(1, 2)}'),
    (Named([0], None), '"named: it"(*)'),
    (Nameless([0], None), f"{HERE}.Nameless(*)"),
]


@pytest.mark.parametrize(("tree", "text"), TREES, ids=[text[:30] for _, text in TREES])
def test_what_is_written_is_read_back(tree: Any, text: str) -> None:
    spec = pytree.tree_structure(tree)
    assert format_spec(spec) == text
    again = read(text)
    assert again == spec
    assert again.num_leaves == spec.num_leaves
    assert type(again.unflatten([0] * spec.num_leaves)) is type(spec.unflatten([0] * spec.num_leaves))


def test_the_order_of_keys_counts() -> None:
    assert read('{"a": *, "b": *}') != read('{"b": *, "a": *}')
    assert read('collections.OrderedDict{"a": *}') != read('{"a": *}')


def test_a_comma_may_follow_the_last() -> None:
    assert read("(*, [*,],)") == read("(*, [*])")
    assert read('{"a": *,}') == read('{"a": *}')


def test_what_no_text_stands_for_is_named() -> None:
    class Local(Sized):
        pass

    register(Local)
    try:
        for tree in (Local([0], None), Sized([], object()), Sized([], float("nan")), Sized([], torch.ones(2))):
            text = format_spec(pytree.tree_structure((tree, 0)))
            assert text.startswith('unserializable "TreeSpec(tuple')
            json.loads(text.removeprefix("unserializable "))
            with pytest.raises(ParseError, match="cannot be written as text") as caught:
                read(text)
            assert "register" in str(caught.value.remedy)
            assert "0x" not in text
    finally:
        pytree._deregister_pytree_node(Local)


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("", "expected a tree specification, found the end", 1),
        ("(*, 1)", "expected a tree specification, found '1'", 5),
        ("(*)", "a tuple of one is written with a comma", 2),
        ("(* *)", "expected ','", 4),
        ("[,]", "expected a tree specification", 2),
        ("{*: *}", "expected a number or an expression", 2),
        ('{"a" *}', "expected ':'", 6),
        ('{"a": *, "a": *}', "a key stands twice", 2),
        ("{1: *, True: *}", "a key stands twice", 2),
        ("{list(1): *}", "not the keys of a dict", 2),
        ('no.such.Type{"a": *}', "no class 'no.such.Type' is registered", 1),
        ("builtins.int()", "no class 'builtins.int' is registered", 1),
        ("builtins.eval(*)", "no class 'builtins.eval' is registered", 1),
        ("collections.namedtuple(*)", "no class 'collections.namedtuple' is registered", 1),
        ('"not a class"(*)', "no class 'not a class' is registered", 1),
        ("NO_SERIALIZED_TYPE_NAME_FOUND(*)", "is registered", 1),
        (f"{HERE}.Pair", "expected '('", len(f"{HERE}.Pair") + 1),
        (f"{{{HERE}.Color.BLUE: *}}", "has no member 'BLUE'", 2),
        (f"{HERE}.Output(logits=*, *)", "expected the name of a field", len(f"{HERE}.Output(logits=*, ") + 1),
        ("collections.defaultdict{} with no.such.Type", "there is no class 'no.such.Type'", 32),
        ("sizes.Coded(*)", "Coded does not read this", 15),
        ('sizes.Coded(*) with {"size": 1}', "Coded does not read this", 16),
        ("builtins.tuple(*)", "a tuple is written as `(*, *)`, without its name", 1),
        ("builtins.list(*) with 3", "a list is written as `[*, *]`, without its name", 1),
        ('builtins.dict{"a": *}', "a dict is written as", 1),
        ("torch.return_types.max(*)", "max has 2 fields, not 1", 1),
        (f"{HERE}.Pair(*, *, *)", "Pair has 2 fields, not 3", 1),
        ("collections.OrderedDict(*) with 3", "expected the keys of the OrderedDict in braces", 24),
        ("collections.defaultdict(*)", "expected the keys of the defaultdict in braces", 24),
        ('collections.deque{"a": *}', "expected '('", 18),
        ('collections.deque(*) with "x"', "a deque is written with the most that it holds", 27),
        ("collections.deque(*) with -3", "a deque is written with the most that it holds", 27),
        ("[" * 200, "nested more than 100 deep", 101),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_specification_is_refused(text: str, message: str, column: int) -> None:
    with pytest.raises(ParseError) as caught:
        read(text)
    assert message in caught.value.message
    assert caught.value.column == column


def test_a_class_that_is_not_registered_has_a_remedy() -> None:
    with pytest.raises(ParseError) as caught:
        read("user.Output(logits=*)")
    assert "import the module that registers it" in str(caught.value.remedy)
