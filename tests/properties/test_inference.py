"""Each inference rule agrees with the operator on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.calls.generators import GENERATORS, generate_call
from fuzz.calls.source import FreshSource
from fuzz.calls.types import DTYPES, SYMBOLS, forgetful
from ir.attributes import map_leaves
from ir.builder import bind_arguments
from ir.errors import InferenceError
from ir.fake import infer_with_fakes
from ir.opdef import get_opdef
from ir.types import TensorType, Type, shapes_equal, simplify_dim, type_of_tensor
from tests.ir.ops.test_table import NAMES_WITH_RULE

# Each of several hundred operators gets a small part of what the profile grants one test.
SHARE = settings(max_examples=max(4, settings().max_examples // 20))

Types = tuple[Any, ...]
Attributes = dict[str, Any]


def types_equal(a: Type, b: Type) -> bool:
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        return shapes_equal(a.shape, b.shape) and a.dtype is b.dtype and a.device == b.device
    return a == b


def map_types(types: Types, function: Callable[[TensorType], TensorType]) -> Types:
    return tuple(map_types(t, function) if isinstance(t, tuple) else t if t is None else function(t) for t in types)


def outcome(infer: Callable[[], tuple[Type, ...]]) -> tuple[Type, ...] | None:
    """The result types, or None where the operands are refused."""
    try:
        return infer()
    except InferenceError:
        return None


def describe(name: str, types: Types, attributes: Attributes, want: Any, got: Any) -> str:
    def shown(results: Any) -> str:
        return "refused" if results is None else ", ".join(map(str, results))

    return f"{name}({', '.join(map(str, types))}) {attributes}: fallback {shown(want)}, rule {shown(got)}"


def check_equal(name: str, types: Types, attributes: Attributes) -> tuple[Type, ...] | None:
    """Rule and fallback both refuse, or give equal types; return the fallback's."""
    opdef = get_opdef(name)
    assert opdef.infer is not None
    rule = opdef.infer
    if name == "aten.index.Tensor" and any(i is not None and not i.shape for i in types[1]):
        return None  # fake tensors are wrong there: see test_indices_without_dimensions
    want = outcome(lambda: infer_with_fakes(opdef, types, attributes))
    got = outcome(lambda: rule(types, attributes))
    message = describe(name, types, attributes, want, got)
    assert (want is None) == (got is None), message
    if want is not None and got is not None:
        assert len(want) == len(got), message
        assert all(map(types_equal, want, got)), message
    return want


def agrees(known: Type, partial: Type) -> bool:
    """Whether what `partial` says is true of `known`."""
    if not isinstance(known, TensorType) or not isinstance(partial, TensorType):
        return known == partial
    if partial.dtype is not None and partial.dtype is not known.dtype:
        return False
    if partial.device is not None and partial.device != known.device:
        return False
    if partial.shape is None or known.shape is None:
        return partial.shape is None
    return len(partial.shape) == len(known.shape) and all(
        b is None or a == b for a, b in zip(known.shape, partial.shape, strict=True)
    )


# The number of results depends on the size.
COUNTING = {"aten.split.Tensor", "aten.chunk", "aten.unbind.int"}


def check_certain(name: str, partial: Types, attributes: Attributes, want: tuple[Type, ...]) -> None:
    """The results of the rule for types with unknown parts agree with `want`, those for the known types."""
    rule = get_opdef(name).infer
    assert rule is not None
    got = outcome(lambda: rule(partial, attributes))
    message = describe(name, partial, attributes, want, got)
    if got is None:
        assert name in COUNTING, message
    else:
        assert len(want) == len(got), message
        assert all(map(agrees, want, got)), message


def draw_call(draw: st.DrawFn, name: str, *, symbolic: bool = False) -> tuple[Types, Attributes]:
    source = FreshSource(draw, symbolic=symbolic)
    args, kwargs = generate_call(source, name)
    _, attributes, _, types = bind_arguments(get_opdef(name), args, kwargs)
    return types, attributes


@st.composite
def misfits(draw: st.DrawFn, type_: TensorType) -> TensorType:
    """The type with one thing changed: a size, the rank, or the dtype."""
    shape = type_.shape or ()
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return TensorType(shape, draw(st.sampled_from(DTYPES)))
    if kind == 1 or not shape:
        return TensorType((draw(st.integers(0, 3)), *shape), type_.dtype)
    place = draw(st.integers(0, len(shape) - 1))
    new = () if kind == 2 else (draw(st.integers(0, 4)),)
    return TensorType((*shape[:place], *new, *shape[place + 1 :]), type_.dtype)


def count_types(types: Types) -> int:
    return sum(count_types(t) if isinstance(t, tuple) else t is not None for t in types)


@pytest.mark.parametrize("name", NAMES_WITH_RULE)
@SHARE
@given(data=st.data())
def test_rule_equals_fallback(name: str, data: st.DataObject) -> None:
    """For operands that fit, that may not fit, and that are partly unknown."""
    types, attributes = draw_call(data.draw, name)
    want = check_equal(name, types, attributes)
    count = count_types(types)
    if count == 0:
        return
    changed = data.draw(st.integers(0, count - 1))
    places = iter(range(count))
    check_equal(name, map_types(types, lambda t: data.draw(misfits(t)) if next(places) == changed else t), attributes)
    if want is not None:
        check_certain(name, map_types(types, lambda t: data.draw(forgetful(t))), attributes, want)


@pytest.mark.parametrize("name", NAMES_WITH_RULE)
@SHARE
@given(data=st.data())
def test_rule_of_symbolic_sizes_holds_for_all_sizes(name: str, data: st.DataObject) -> None:
    """A symbolic result is that of the operator for all numbers in place of the symbols."""
    types, attributes = draw_call(data.draw, name, symbolic=True)
    opdef = get_opdef(name)
    assert opdef.infer is not None
    try:
        got = opdef.infer(types, attributes)
    except InferenceError:
        # Rules refuse nothing themselves; the fallback may refuse what holds for some sizes only.
        return
    for numbers in ((12, 20), (9, 7)):
        values = dict(zip(SYMBOLS, numbers, strict=True))

        def substitute(leaf: Any, values: dict[Any, int] = values) -> Any:
            return simplify_dim(leaf.xreplace(values)) if isinstance(leaf, sympy.Expr) else leaf

        def at(type_: TensorType, substitute: Callable[[Any], Any] = substitute) -> TensorType:
            return TensorType(tuple(map(substitute, type_.shape or ())), type_.dtype, type_.device)

        static = map_types(types, at)
        fixed = {key: map_leaves(value, substitute) for key, value in attributes.items()}
        want = outcome(lambda static=static, fixed=fixed: infer_with_fakes(opdef, static, fixed))  # type: ignore[misc]
        if want is None:
            continue  # too small for a kernel
        substituted = tuple(at(t) if isinstance(t, TensorType) else t for t in got)
        message = describe(name, types, attributes, want, got) + f" at {values}"
        assert len(want) == len(got), message
        assert all(map(types_equal, want, substituted)), message


def test_every_rule_has_a_generator() -> None:
    assert set(NAMES_WITH_RULE) <= set(GENERATORS)


def test_indices_without_dimensions() -> None:
    """The rule agrees with the kernel, where fake tensors treat such an index as a number."""
    opdef = get_opdef("aten.index.Tensor")
    assert opdef.infer is not None
    x, one, none = torch.zeros(2, 3, 4), torch.tensor([1]), torch.tensor(0)
    for indices in ([one, None, none], [none], [None, none], [none, None, none], [none, one]):
        types = (type_of_tensor(x), tuple(None if i is None else type_of_tensor(i) for i in indices))
        assert opdef.infer(types, {}) == (type_of_tensor(torch.ops.aten.index.Tensor(x, indices)),)
