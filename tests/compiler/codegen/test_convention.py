"""The emitter: arguments, results, symbolic sizes, the guard and writes to buffers."""

from __future__ import annotations

import copy
import enum
import inspect
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import einsum, fx, nn
from torch.utils import _pytree as pytree

from compiler.driver import transform
from compiler.emitted.guard import InputGuard
from ir.errors import CaptureError, InputError
from ir.parameters import parameters_of_signature
from ir.program import (
    CallingConvention,
    Mutation,
    OutputLeaf,
    SymbolRange,
)
from ir.types import TensorType, make_symbol
from tests.compiler.drafts import Draft, Out, f32, flat_convention


def test_keyword_nested_and_constant_arguments() -> None:
    d = Draft(None, a=f32(2), b=f32(2), c=f32(2), e=f32(2))
    args: tuple[Any, ...] = (torch.zeros(2), [torch.zeros(2), {"k": torch.zeros(2)}], 3)
    kwargs = {"mask": torch.zeros(2), "flag": None}
    d.program.convention = flat_convention(
        args, kwargs, {"sum": Out(0), "n": 5, "pair": (Out(1), None)}, ("x", "cache", "n")
    )
    total = d.b.add(d.b.add(d["a"], d["b"]), d["c"])
    emitted = d.emit(total, d.b.mul(d["e"], d["a"])).module
    x, b, c, m = torch.randn(4, 2)
    result = emitted(x, [b, {"k": c}], 3, mask=m, flag=None)
    assert list(result) == ["sum", "n", "pair"]
    assert torch.equal(result["sum"], x + b + c)
    assert result["n"] == 5
    assert torch.equal(result["pair"][0], m * x)
    assert result["pair"][1] is None
    assert "cache[1]" in emitted.code
    assert "['k']" in emitted.code
    assert emitted(x=x, cache=[b, {"k": c}], n=3, mask=m, flag=None)["n"] == 5
    with pytest.raises(InputError, match=r"`n` is 4, but .* for 3"):
        emitted(x, [b, {"k": c}], 4, mask=m, flag=None)
    with pytest.raises(InputError, match=r"cache\[1\]\['k'\]"):
        emitted(x, [b, {"z": c}], 3, mask=m, flag=None)
    with pytest.raises(InputError, match="`cache` has 3 entries"):
        emitted(x, [b, {"k": c}, c], 3, mask=m, flag=None)
    with pytest.raises(TypeError):
        emitted(x, [b, {"k": c}], 3, m, flag=None)


class Color(enum.Enum):
    RED = 1
    BLUE = 2

    def __repr__(self) -> str:
        return "'color'"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Word(str):
    __slots__ = ()


KEYS = [
    Color.RED,
    (Color.BLUE, 1),
    Permission.READ | Permission.WRITE,
    Word("word"),
    int,
    (str, 2),
    complex(-0.0, 1.0),
    complex(0.0, float("inf")),
    float("-inf"),
    torch.float16,
]


class Looks(nn.Module):
    def __init__(self, key: Any) -> None:
        super().__init__()
        self.key = key

    def forward(self, table: dict[Any, torch.Tensor]) -> dict[Any, Any]:
        return {"nested": [{self.key: table[self.key] - table["other"]}], self.key: table["other"] + 1}


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_any_object_may_be_a_key(key: Any) -> None:
    model, table = Looks(key), {"other": torch.randn(2), key: torch.randn(2)}
    emitted = transform(model, (table,)).model
    expected = model(table)
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
        result = module(table)
        assert [type(each) for each in result] == [str, type(key)]
        assert torch.equal(result[key], expected[key])
        assert torch.equal(result["nested"][0][key], expected["nested"][0][key])


def test_the_original_signature_gives_names_order_and_defaults() -> None:
    def forward(x: Any, scale: float = 2.0, mask: Any = None, *, flag: bool = False) -> None: ...

    d = Draft(None, a=f32(2), m=f32(2))
    d.program.convention = flat_convention((torch.zeros(2),), {"mask": torch.zeros(2)}, Out(0), ("x", "mask"))
    d.program.convention.parameters = parameters_of_signature(inspect.signature(forward))
    emitted = d.emit(d.b.add(d["a"], d["m"])).module
    assert str(inspect.signature(emitted.forward)) == "(x, scale=2.0, mask=None, *, flag=False)"
    a, m = torch.randn(2, 2)
    for result in (emitted(a, mask=m), emitted(a, 2.0, m), emitted(a, mask=m, flag=False)):
        assert torch.equal(result, a + m)
    exported = torch.export.export(emitted, (a,), {"mask": m})
    assert torch.equal(exported.module()(a, mask=m), a + m)
    with pytest.raises(InputError, match=r"`scale` is 3\.0"):
        emitted(a, 3.0, m)
    with pytest.raises(InputError, match="`mask` is a NoneType"):
        emitted(a)


class Point:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


pytree.register_pytree_node(
    Point, lambda p: ([p.x, p.y], None), lambda xs, _: Point(*xs), serialized_type_name="tests.test_codegen.Point"
)


def test_objects_that_pytree_knows_go_in_and_come_out() -> None:
    d = Draft(None, a=f32(2), b=f32(2))
    d.program.convention = flat_convention((Point(torch.zeros(2), torch.zeros(2)),), {}, [Point(Out(0), 1)], ("p",))
    emitted = d.emit(d.b.sub(d["a"], d["b"])).module
    a, b = torch.randn(2, 2)
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
        (result,) = module(Point(a, b))
        assert torch.equal(result.x, a - b)
        assert result.y == 1


def test_several_results_and_inputs_as_results() -> None:
    d = Draft(None, x=f32(6))
    parts = d.b.call("aten.split.Tensor", d["x"], 2)
    emitted = d.emit(parts[0], parts[2], d["x"]).module
    x = torch.randn(6)
    a, c, same = emitted(x)
    assert torch.equal(a, x[:2])
    assert torch.equal(c, x[4:])
    assert same is x
    assert "[1]" not in emitted.code


# ---- mutations ----


def test_buffers_and_inputs_are_written_at_the_end() -> None:
    model = nn.Module()
    model.register_buffer("count", torch.zeros(2))
    d = Draft(model, x=f32(2))
    count = d.b.call("aten.add.Scalar", d["count"], 1)
    doubled = d.b.call("aten.mul.Scalar", d["x"], 2)
    view = d.b.reshape(d["count"], (2, 1))
    d.program.convention = CallingConvention(
        None,
        pytree.tree_structure((0, 0)),
        outputs=(OutputLeaf(0), OutputLeaf(1)),
        mutations=(Mutation(2, buffer="count"), Mutation(3, input=0)),
    )
    emitted = d.emit(d.b.add(doubled, count), view, count, doubled).module
    for step in range(2):
        x = torch.tensor([1.0, 2.0])
        y, old = emitted(x)
        assert y.tolist() == [3.0 + step, 5.0 + step]
        assert x.tolist() == [2.0, 4.0]
        assert old.flatten().tolist() == [step, step]
    assert emitted.count.tolist() == [2.0, 2.0]
    emitted.graph.eliminate_dead_code()
    assert sum(n.target is torch.ops.aten.copy_.default for n in emitted.graph.nodes) == 2


# ---- symbolic sizes ----


def test_symbolic_sizes_are_read_once_and_guarded() -> None:
    batch, seq = make_symbol("batch"), make_symbol("seq")
    d = Draft(None, x=f32(batch, 2 * seq), y=f32(batch, seq))
    d.program.symbols = {batch: SymbolRange(1, 8), seq: SymbolRange(2, None)}
    a = d.b.reshape(d["x"], (batch, 2, seq))
    c = d.b.reshape(d["y"], (batch, 1, seq))
    out = d.b.reshape(d.b.add(a, c), (2 * batch * seq,))
    emitted = d.emit(out).module
    assert emitted.code.count("x.size(0)") == 1
    assert emitted.code.count(".size(") == 2
    for n, s in ((1, 2), (3, 5)):
        x, y = torch.randn(n, 2 * s), torch.randn(n, s)
        assert torch.equal(emitted(x, y), (x.view(n, 2, s) + y.view(n, 1, s)).flatten())
    with pytest.raises(InputError, match=r"`y` has shape \[2, 3\].*batch=3"):
        emitted(torch.zeros(3, 6), torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"`x` has shape \[3, 7\]"):
        emitted(torch.zeros(3, 7), torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"`batch` of the inputs is 9.*\[1, 8\]"):
        emitted(torch.zeros(9, 6), torch.zeros(9, 3))
    with pytest.raises(InputError, match=r"`seq` of the inputs is 1.*at least 2"):
        emitted(torch.zeros(3, 2), torch.zeros(3, 1))
    exported = torch.export.export(
        emitted,
        (torch.zeros(3, 6), torch.zeros(3, 3)),
        dynamic_shapes={
            "x": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim.AUTO},
            "y": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim.AUTO},
        },
    )
    x, y = torch.randn(2, 8), torch.randn(2, 4)
    assert torch.equal(exported.module()(x, y), emitted(x, y))


def test_the_guard_names_the_input_and_what_was_expected() -> None:
    d = Draft(None, x=f32(2, 3))
    emitted = d.emit(d.b.relu(d["x"])).module
    with pytest.raises(InputError, match=r"`x` has shape \[2, 4\].*f32\[2, 3\]") as info:
        emitted(torch.zeros(2, 4))
    assert "dynamic_shapes" in str(info.value)
    with pytest.raises(InputError, match=r"dtype torch.int64"):
        emitted(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="is a list"):
        emitted([1.0])
    emitted(torch.zeros(2, 3, dtype=torch.float64))
    assert "x: f32[2, 3]" in repr(emitted)


def test_a_tensor_in_the_place_of_none_is_named_by_its_type_and_shape() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return x if mask is None else x * mask

    emitted = transform(Net().eval(), (torch.ones(2, 3),)).model
    with pytest.raises(InputError, match=r"`mask` is a tensor of torch\.float32 with shape \[2, 3\], .* for None"):
        emitted(torch.ones(2, 3), torch.ones(2, 3))


def test_unknown_parts_are_not_checked() -> None:
    d = Draft(None, x=TensorType((None, 3), None, None))
    emitted = d.emit(d.b.relu(d["x"])).module
    assert emitted(torch.ones(5, 3, dtype=torch.int64)).shape == (5, 3)
    with pytest.raises(InputError, match=r"shape \[5, 4\]"):
        emitted(torch.ones(5, 4))


def test_dead_code_elimination_keeps_the_guard() -> None:
    d = Draft(None, x=f32(2, 3))
    emitted = d.emit(d.b.relu(d["x"])).module
    emitted.graph.eliminate_dead_code()
    emitted.recompile()
    with pytest.raises(InputError):
        emitted(torch.zeros(1, 3))
    assert isinstance(emitted._guard, InputGuard)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_that_passes_numbers_as_tensors_is_checked_too() -> None:
    """As torch.onnx.export(dynamo=False) passes the defaults of a forward."""
    d = Draft(None, x=f32(2, 3))
    d.program.convention = flat_convention((torch.zeros(2, 3), 2.0), {}, Out(0), ("x", "scale"))
    emitted = d.emit(d.b.relu(d["x"])).module
    x, scale = torch.randn(2, 3), torch.tensor(2.0, dtype=torch.float64)
    traced = torch.jit.trace(emitted, (x, scale), check_trace=False)
    assert torch.equal(traced(x, scale), x.relu())
    with pytest.raises(InputError, match=r"`scale` is 3.0"):
        torch.jit.trace(emitted, (x, scale + 1), check_trace=False)
    with pytest.raises(InputError, match=r"`scale` is tensor"):
        emitted(x, scale)


class Shadowing(nn.Module):
    """Its parameters have the names of globals; one of them is also in a string."""

    def forward(self, x: torch.Tensor, id: torch.Tensor, torch: torch.Tensor) -> Any:  # noqa: A002 - that is the point
        return einsum("ij,id->jd", x, id) + torch


def test_a_string_is_not_renamed_where_a_parameter_shadows_a_global() -> None:
    args = torch.randn(2, 3), torch.randn(2, 4), torch.randn(4)
    emitted = transform(fx.symbolic_trace(Shadowing())).model
    assert "_global_torch.einsum('ij,id->jd'" in emitted.code
    assert torch.equal(emitted(*args), Shadowing()(*args))


class Pair(NamedTuple):
    first: Any


class AsksForTheClass(nn.Module):
    def forward(self, x: torch.Tensor, given: Any) -> torch.Tensor:
        return x * sum(map(ord, type(given).__name__))


@pytest.mark.parametrize(
    "containers",
    [
        lambda x: ([x], (x,), Pair(x)),
        lambda x: ({"a": x}, OrderedDict(a=x), defaultdict(int, a=x)),
        lambda x: ([[x]], [(x,)]),
    ],
)
def test_arguments_in_a_container_of_another_class_are_refused(containers: Callable[[Any], tuple[Any, ...]]) -> None:
    x, model = torch.randn(2), AsksForTheClass()
    for example in containers(x):
        emitted = transform(model, (x, example)).model
        assert torch.equal(pickle.loads(pickle.dumps(emitted))(x, example), model(x, example))
        for other in containers(x):
            if other is example or (type(other) is type(example) and type(other) is not list):
                assert torch.equal(emitted(x, other), model(x, other))
            elif type(other) is not type(example):
                with pytest.raises(InputError, match=r"argument `given` is a .*, but the program was compiled for a"):
                    emitted(x, other)
    # the remedy
    assert torch.equal(transform(model, (x, Pair(x))).model(x, Pair(x)), model(x, Pair(x)))


def test_sizes_may_be_given_as_a_tuple() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
            return nn.functional.interpolate(x, size)

    x = torch.randn(1, 2, 3, 3)
    emitted = transform(Scaled(), (x, torch.Size([6, 6]))).model
    assert torch.equal(emitted(x, (6, 6)), emitted(x, torch.Size([6, 6])))


def test_a_named_tuple_inside_of_a_dict_is_returned() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"pair": Pair(x + 1), "more": [{"pair": Pair((x, x))}]}

    x = torch.randn(3)
    found = transform(Net().eval(), (x,)).model(x)
    assert type(found["pair"]) is Pair and torch.equal(found["pair"].first, x + 1)
    assert type(found["more"][0]["pair"]) is Pair and torch.equal(found["more"][0]["pair"].first[1], x)


class OfBuiltins(nn.Module):
    def forward(
        self,
        input: torch.Tensor,  # noqa: A002
        input_1: torch.Tensor,
        max: torch.Tensor,  # noqa: A002
        max_1: torch.Tensor,
    ) -> torch.Tensor:
        return torch.relu(input) + 2 * input_1 - 3 * max + 5 * max_1


def test_parameters_that_are_called_like_builtins_and_like_what_fx_makes_of_them() -> None:
    tensors = tuple(torch.randn(4, 3))
    expected = OfBuiltins()(*tensors)
    emitted = transform(OfBuiltins(), tensors, patterns=()).model
    for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted)), transform(OfBuiltins()).model):
        assert torch.equal(module(*tensors), expected)
        assert torch.equal(module(max_1=tensors[3], max=tensors[2], input_1=tensors[1], input=tensors[0]), expected)


def test_a_graph_that_loses_a_parameter_in_its_own_code_is_refused() -> None:
    traced = fx.symbolic_trace(OfBuiltins())
    with pytest.raises(CaptureError, match="loses its parameter `input_1`"):
        transform(traced)
