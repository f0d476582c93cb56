"""Arguments by name: the order in which they are given, at compile time and at call time."""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from graphwright import GraphwrightError, InputError, transform
from ir.compare import programs_equal
from ir.text.parser import parse_program
from ir.text.printer import print_program

Call = tuple[tuple[Any, ...], dict[str, Any]]


def assert_calls_agree(model: nn.Module, example: Call, *calls: Call) -> Any:
    """Transform the model as called in the example, and compare other calls: of the result, its copies and exports."""
    result = transform(model, *example)
    emitted = result.model
    for args, kwargs in (example, *calls):
        expected = model(*args, **kwargs)
        for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
            assert torch.equal(module(*args, **kwargs), expected)
        exported = torch.export.export(emitted, args, kwargs)
        assert torch.equal(exported.module()(*args, **kwargs), expected)
        for again in (transform(emitted, args, kwargs), transform(exported)):
            assert torch.equal(again.model(*args, **kwargs), expected)
    return result


class Difference(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return a - 2 * b


class Kinds(nn.Module):
    def forward(self, a: Any, /, b: Any, *args: Any, c: Any, d: Any = 2.0, e: Any = None, **more: Any) -> Any:
        total = a + 2 * b + 3 * c * d
        for i, x in enumerate((*args, *([] if e is None else [e]), *more.values())):
            total = total * (i + 2) + x
        return total


class Features(nn.Module):
    def forward(self, x: Any, **features: Any) -> Any:
        for i, value in enumerate(features.values()):
            x = x * (i + 1) + value
        return x


def tensors(number: int) -> list[torch.Tensor]:
    return list(torch.randn(number, 2, 3))


def test_named_arguments_go_to_their_parameters_in_any_order() -> None:
    x, y = tensors(2)
    calls = [((), {"a": x, "b": y}), ((x,), {"b": y}), ((x, y), {})]
    assert_calls_agree(Difference(), ((), {"b": y, "a": x}), *calls)


@pytest.mark.parametrize("order", list(itertools.permutations("bcde")), ids="".join)
def test_parameters_of_every_kind(order: tuple[str, ...]) -> None:
    a, *others = tensors(5)
    values = dict(zip("bcde", others, strict=True))
    result = transform(Kinds(), (a,), {name: values[name] for name in order})
    expected = Kinds()(a, **values)
    assert str(inspect.signature(result.model.forward)) == "(a, /, b, *, c, d=2.0, e=None)"
    for names in itertools.permutations("bcde"):
        assert torch.equal(result.model(a, **{name: values[name] for name in names}), expected)
    assert torch.equal(result.model(a, others[0], **{name: values[name] for name in "edc"}), expected)


def test_variable_arguments_of_both_kinds() -> None:
    a, b, c, d, e = tensors(5)
    result = assert_calls_agree(
        Kinds(), ((a, b, c), {"e": d, "c": e, "q": a, "p": b}), ((a, b, c), {"c": e, "q": a, "e": d, "p": b})
    )
    assert str(inspect.signature(result.model.forward)) == "(a, /, b, args_0, *, c, d=2.0, e=None, **more)"
    assert_calls_agree(Kinds(), ((a, b), {"c": d, "more": c, "args_0": e}))


def test_the_order_of_variable_keywords_is_kept() -> None:
    x, a, b = tensors(3)
    result = assert_calls_agree(Features(), ((x,), {"b": b, "a": a}))
    assert str(inspect.signature(result.model.forward)) == "(x, **features)"
    for module in (result.model, copy.deepcopy(result.model)):
        with pytest.raises(InputError, match=r"in the order 'a', 'b', .* captured with 'b', 'a'"):
            module(x, a=a, b=b)
    with pytest.raises(InputError, match="captured with 'b', 'a'"):
        torch.export.export(result.model, (x,), {"a": a, "b": b})
    for wrong in ({"b": b}, {"b": b, "a": a, "c": a}, {}):
        with pytest.raises(InputError, match="captured with 'b', 'a'"):
            result.model(x, **wrong)
    other = transform(Features(), (x,), {"a": a, "b": b}).model
    assert torch.equal(other(x, a=a, b=b), Features()(x, a=a, b=b))


def test_the_order_of_variable_keywords_survives_compilation() -> None:
    x, a, b = tensors(3)
    compiled = torch.compile(transform(Features(), (x,), {"b": b, "a": a}).model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, b=b, a=a), Features()(x, b=b, a=a))


def test_an_exported_program_takes_its_arguments_by_name() -> None:
    x, y = tensors(2)
    for model, args, kwargs in ((Difference(), (), {"b": y, "a": x}), (Features(), (x,), {"b": y, "a": x})):
        exported = torch.export.export(model, args, kwargs)
        emitted = transform(exported).model
        for names in ("ab", "ba"):
            call = {name: kwargs[name] for name in names}
            assert torch.equal(emitted(*args, **call), exported.module()(*args, **call))


def test_a_graph_module_takes_its_arguments_by_name() -> None:
    """torch.export interprets one with the values of the keyword arguments alone, by position."""

    class Defaults(nn.Module):
        def forward(self, a: Any, b: Any = None, c: Any = 1.0, d: Any = 3.0) -> Any:
            return a - 2 * c if b is None else b * d

    traced = torch.fx.symbolic_trace(Defaults(), concrete_args={"b": None})
    graph = torch.fx.symbolic_trace(Difference())
    x, y = tensors(2)
    assert_calls_agree(graph, ((), {"b": y, "a": x}), ((), {"a": x, "b": y}))
    for kwargs in ({"c": y}, {"d": 2.0, "c": y}, {"c": y, "d": 2.0}):
        result = transform(traced, (x,), kwargs)
        assert torch.equal(result.model(x, **kwargs), traced(x, **kwargs))
    batch = Dim("batch", min=2)
    emitted = transform(graph, (), {"b": y, "a": x}, dynamic_shapes={"b": {0: batch}, "a": {0: batch}}).model
    assert emitted(b=torch.ones(5, 3), a=torch.ones(5, 3)).shape == (5, 3)

    class Starred(nn.Module):
        def forward(self, x: Any, *args: Any, y: Any = None) -> Any:
            return torch.stack(args).sum(0) - x

    with pytest.raises(InputError, match=r"\*args"):
        transform(torch.fx.symbolic_trace(Starred()), (x, y), {"y": y})


def test_dimensions_are_named_by_parameter() -> None:
    class Model(nn.Module):
        def forward(self, x: Any, *args: Any, d: Any = None, c: Any = None) -> Any:
            return x.sum() + sum(a.sum() for a in args) + d.sum(0) - 2 * c.sum(0)

    x, y, z = tensors(3)
    by_name = {"x": None, "args": (None, {0: Dim("n")}), "d": {0: Dim("rows")}, "c": {0: Dim("columns")}}
    for shapes in (by_name, (None, (None, {0: Dim("n")}), {0: Dim("rows")}, {0: Dim("columns")})):
        for names in ("cd", "dc"):
            values = {"c": y, "d": z}
            result = transform(Model(), (x, y, z), {n: values[n] for n in names}, dynamic_shapes=shapes)
            types = {value.name: str(value.type) for value in result.program.graph.inputs}
            assert types["args_1"] == "f32[n, 3]"
            assert types["d"] == "f32[rows, 3]"
            assert types["c"] == "f32[columns, 3]"


def test_a_transformer_encoder_with_its_mask_after_a_flag() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    source, mask = torch.randn(2, 4, 8), torch.full((4, 4), -1e9).triu(1)
    emitted = transform(encoder, (source,), {"is_causal": False, "mask": mask}).model
    for args, kwargs in (((source,), {"is_causal": False, "mask": mask}), ((source, mask), {"is_causal": False})):
        assert torch.allclose(emitted(*args, **kwargs), encoder(*args, **kwargs), atol=1e-6)


def test_what_does_not_fit_the_signature_is_refused() -> None:
    x, y = tensors(2)
    with pytest.raises(GraphwrightError, match=r"do not fit Difference\.forward"):
        transform(Difference(), (x,), {"b": y, "c": y})


# ---- mappings ----


class Batch:
    """An object with a mapping inside, which pytree takes apart."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors


pytree.register_pytree_node(
    Batch,
    lambda b: ([b.tensors], None),
    lambda xs, _: Batch(*xs),
    serialized_type_name="tests.test_arguments.Batch",
    flatten_with_keys_fn=lambda b: ([(pytree.GetAttrKey("tensors"), b.tensors)], None),
)


class Reading(nn.Module):
    """A forward that is given, of one argument or of keywords."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.read = read
        self.fc, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, batch: Any = None, **features: Any) -> Any:
        return self.drop(self.fc(self.read(batch or features)))


READERS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "by key": (lambda t: t["a"] - 2 * t["b"] + 3 * t["c"], False),
    "passed on": (lambda t: (lambda a, b, c: a - 2 * b + 3 * c)(**t), False),
    "a literal": (lambda t: t["a"] * torch.tensor([1.0, 2, 3]) - t["b"] + torch.zeros(3) - 2 * t["c"], False),
    "sorted": (lambda t: torch.stack([t[key] for key in sorted(t)]).sum(0), False),
    "sum": (lambda t: sum(t.values()), True),
    "stacked": (lambda t: torch.stack(list(t.values()))[1], True),
    "the first": (lambda t: next(iter(t.values())), True),
    "the second": (lambda t: list(t.values())[1] * 2, True),
    "the last key": (lambda t: t["a"] if list(t)[-1] == "c" else t["b"], True),
    "one before another": (lambda t: t["a"] - t["b"] if list(t).index("a") < list(t).index("b") else t["c"], True),
}


@pytest.mark.parametrize("kind", [dict, OrderedDict, "keywords"], ids=str)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_order_of_keys_is_guarded_where_it_matters(name: str, kind: Any, training: bool) -> None:
    read, matters = READERS[name]
    model = Reading(read).train(training)
    values = dict(zip("abc", tensors(3), strict=True))

    def call(names: Any) -> Call:
        mapping = {key: values[key] for key in names}
        return ((), mapping) if kind == "keywords" else ((kind(mapping),), {})

    result = transform(model, *call("abc"), patterns=())
    assert result.program.convention.keeps_order is matters
    text = print_program(result.program)
    assert ("keeps_order" in text) is matters
    assert programs_equal(parse_program(text), result.program) is None
    emitted, model = result.model.eval(), model.eval()
    for names in itertools.permutations("abc"):
        args, kwargs = call(names)
        if matters and names != tuple("abc"):
            with pytest.raises(InputError, match=f"in the order '{names[0]}', .* captured with 'a', 'b', 'c'"):
                emitted(*args, **kwargs)
        else:
            assert torch.equal(emitted(*args, **kwargs), model(*args, **kwargs))


def test_a_mapping_inside_of_an_object() -> None:
    x, y = tensors(2)

    class Model(nn.Module):
        def forward(self, batch: Batch) -> Any:
            return batch.tensors["a"] - 2 * batch.tensors["b"]

    emitted = transform(Model(), (Batch({"a": x, "b": y}),)).model
    assert torch.equal(emitted(Batch({"a": x, "b": y})), x - 2 * y)
    with pytest.raises(InputError, match="`batch` is a Batch of another structure"):
        emitted(Batch({"b": y, "a": x}))


def test_a_model_is_as_before_after_its_orders_were_tried() -> None:
    class Counting(nn.Module):
        steps: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))
            self.bn = nn.BatchNorm1d(3)

        def forward(self, **features: Any) -> Any:
            self.steps.add_(1)
            return self.bn(features["a"] - features["b"])

    model = Counting()
    before = copy.deepcopy(model.state_dict())
    x, y = tensors(2)
    transform(model, (), {"a": x, "b": y})
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training


@dataclasses.dataclass
class Pair:
    a: Any
    b: Any = None


def test_a_dataclass_is_refused_with_its_place_and_a_remedy_that_works() -> None:
    class Swapping(nn.Module):
        def forward(self, pair: Pair) -> Any:
            return Pair(pair.b * 2, pair.a)

    class Making(nn.Module):
        def forward(self, x: Any) -> Any:
            return {"pair": Pair(x, x * 2)}

    x, y = tensors(2)
    for model, argument in ((Swapping(), Pair(x, y)), (Making(), x)):
        with pytest.raises(GraphwrightError, match=r"Pair\n.*Making|Pair\n.*Swapping") as info:
            transform(model, (argument,))
        assert "test_arguments.py:" in str(info.value)
        assert "register_dataclass" in str(info.value)
    torch.export.register_dataclass(Pair, serialized_type_name="tests.test_arguments.Pair")
    swapped = transform(Swapping(), (Pair(x, y),)).model(Pair(x, y))
    assert type(swapped) is Pair
    assert torch.equal(swapped.a, y * 2)
    assert torch.equal(swapped.b, x)
    made = transform(Making(), (x,)).model(x)
    assert type(made["pair"]) is Pair
    assert torch.equal(made["pair"].b, x * 2)


@pytest.mark.parametrize("default", [(), [], {}, (1, 2), [1.5], {"a": None}], ids=repr)
def test_a_structured_default_stays_in_the_signature(default: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Any, sizes: Any = default, scale: Any = 2.0) -> Any:
            return x * scale + len(sizes)

    x = torch.randn(2)
    for args, kwargs in (((x,), {}), ((x, default), {}), ((x,), {"scale": 2.0, "sizes": default})):
        emitted = transform(Model(), args, kwargs).model
        assert str(inspect.signature(emitted.forward)) == f"(x, sizes={default!r}, scale=2.0)"
        for module in (emitted, copy.deepcopy(emitted), pickle.loads(pickle.dumps(emitted))):
            for again in ((x,), (x, default), (x, copy.deepcopy(default), 2.0)):
                assert torch.equal(module(*again), Model()(*again))
            with pytest.raises(InputError, match="sizes"):
                module(x, (1, 2, 3))
            assert torch.equal(torch.export.export(module, (x,)).module()(x), Model()(x))


class Mode(enum.Enum):
    ADD = 1
    SUBTRACT = 2


def test_a_member_of_an_enumeration_is_a_constant() -> None:
    class Model(nn.Module):
        def forward(self, x: Any, y: Any, mode: Mode = Mode.ADD) -> Any:
            return x + y if mode is Mode.ADD else x - y

    x, y = tensors(2)
    emitted = transform(Model(), (x, y, Mode.SUBTRACT)).model
    assert torch.equal(emitted(x, y, Mode.SUBTRACT), x - y)
    with pytest.raises(InputError, match="`mode` is"):
        emitted(x, y, Mode.ADD)
