from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ir.builder import Builder
from ir.core import Graph, Operation
from ir.errors import EvaluationError, InputError
from ir.evaluate import bind_symbols, evaluate, evaluate_graph
from ir.locations import Location
from ir.opdef import OpDef, Param, ParamKind, get_opdef
from ir.program import Program, Weight, WeightKind
from ir.text.parser import parse_program
from ir.types import ScalarType, TensorType, make_symbol
from ir.verify import verify
from tests.ir.programs import conv_net, f32, program_of


class ConvNet(nn.Module):
    """The module that `conv_net()` is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5, bias=False)
        self.bn.running_mean = torch.randn(4)
        self.bn.running_var = torch.rand(4) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)))
        result: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


def with_weights(training: bool = False) -> tuple[Program, ConvNet]:
    program, model = conv_net(), ConvNet().train(training)
    tensors: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, weight in program.weights.items():
        weight.data = tensors[name]
    if training:
        (bn,) = (op for op in program.graph.operations() if op.name == "aten.batch_norm")
        bn.set_attribute("training", True)
    verify(program)
    return program, model


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_network_equals_its_module(batch: int) -> None:
    program, model = with_weights()
    x = torch.randn(batch, 3, 8, 8)
    (result,) = evaluate(program, [x])
    torch.testing.assert_close(result, model.eval()(x), rtol=0, atol=0)


def test_gradients_flow_to_arguments_and_weights() -> None:
    program, model = with_weights(training=True)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    evaluate(program, [x])[0].square().sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(twin).square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, twin.grad)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, found[name]), name


def test_training_writes_copies() -> None:
    program, model = with_weights(training=True)
    x = torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    written: dict[str, torch.Tensor] = {}
    (result,) = evaluate(program, [x], written=written)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(result, model(x))
    assert torch.equal(written["bn.running_mean"], model.bn.running_mean)
    assert torch.equal(written["bn.running_var"], model.bn.running_var)
    assert not torch.equal(written["bn.running_var"], before["bn.running_var"])


def test_training_in_a_region_and_through_views_writes_copies() -> None:
    program = parse_program(
        """
        program "p" {
          buffer %stats : f32[2, 3] mutated
          graph(%x : f32[4, 3], %var : f32[3]) {
            %mean = aten.select.int(%stats) {dim=0, index=0}
            %y = fused.norm(%x, %mean, %var) {kind="norm"}
              body(%input : f32[4, 3], %mean : f32[3], %var : f32[3]) {
                %y = aten.batch_norm(%input, None, None, %mean, %var)
                  {training=True, momentum=0.1, eps=1e-05, cudnn_enabled=True}
                return %y
              }
            return %y
          }
        }
        """
    )
    verify(program)
    stats, x, var = torch.zeros(2, 3), torch.randn(4, 3), torch.ones(3)
    (y,) = evaluate(program, [x, var], {"stats": stats})
    assert torch.equal(stats, torch.zeros(2, 3))
    assert torch.equal(var, torch.ones(3))
    assert torch.equal(y, F.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_without_momentum(training: bool) -> None:
    program, model = with_weights(training)
    (bn,) = (op for op in program.graph.operations() if op.name == "aten.batch_norm")
    bn.set_attribute("momentum", None)
    model.bn.momentum = None
    x = torch.randn(2, 3, 8, 8)
    (result,) = evaluate(program, [x])
    assert torch.equal(result, model(x))


def test_given_weights_stand_for_the_data() -> None:
    program, _ = with_weights()
    x = torch.randn(1, 3, 8, 8)
    (result,) = evaluate(program, [x], {"fc.weight": torch.zeros(5, 4)})
    assert torch.equal(result, torch.zeros(1, 5))


def test_float64_programs() -> None:
    program, model = with_weights()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = model.double().eval()
    (result,) = evaluate(program, [x], dict(model.state_dict()))
    assert result.dtype == torch.float64
    assert torch.equal(result, model(x))


def test_weights_without_data_are_refused_unless_unused() -> None:
    program = conv_net()
    with pytest.raises(InputError, match=r"weight 'conv\.weight' has no data"):
        evaluate(program, [torch.randn(1, 3, 8, 8)])
    graph = Graph([("x", f32(2))])
    graph.set_outputs(graph.inputs)
    unused = program_of(graph)
    unused.add_weight(Weight("w", WeightKind.BUFFER, f32(2)))
    assert len(evaluate(unused, [torch.zeros(2)])) == 1


def test_lists_several_results_and_keywords() -> None:
    program = parse_program(
        """
        program "p" {
          graph(%x : f32[4, 6], %i : i64[2]) {
            %a, %b, %c = aten.split_with_sizes(%x) {split_sizes=[1, 2, 3], dim=1}
            %cat = aten.cat([%c, %a, %b]) {dim=1}
            %rows = aten.index.Tensor(%cat, [%i, None])
            %values, %indices = aten.topk(%rows) {k=2}
            %ones = aten.full_like(%values) {fill_value=2.5, dtype=torch.float64}
            return %rows, %values, %indices, %ones, %x
          }
        }
        """
    )
    verify(program)
    x, i = torch.randn(4, 6), torch.tensor([2, 0])
    rows, values, indices, ones, same = evaluate(program, [x, i])
    a, b, c = x.split([1, 2, 3], 1)
    expected = torch.cat([c, a, b], 1)[i]
    assert torch.equal(rows, expected)
    assert torch.equal(values, expected.topk(2).values)
    assert torch.equal(indices, expected.topk(2).indices)
    assert torch.equal(ones, torch.full((2, 2), 2.5, dtype=torch.float64))
    assert same is x


def test_references_and_symbols_in_attributes() -> None:
    n, m = make_symbol("n"), make_symbol("m")
    graph = Graph([("x", f32(2 * n, 3)), ("count", ScalarType("int", m)), ("y", f32(n, m))])
    x, count, y = graph.inputs
    builder = Builder(graph)
    rows = builder.call("aten.sym_size.int", y, 0)
    graph.set_outputs([builder.reshape(x, [n, 6]), builder.repeat(x, [count, 1]), builder.full([rows, n + 1], 1.0)])
    program = program_of(graph)
    x_, y_ = torch.randn(8, 3), torch.randn(4, 5)
    flat, repeated, filled = evaluate(program, [x_, 5, y_])
    assert torch.equal(flat, x_.reshape(4, 6))
    assert torch.equal(repeated, x_.repeat(5, 1))
    assert filled.shape == (4, 5)


def test_random_operations_draw_as_in_eager_mode() -> None:
    program = parse_program(
        """
        program "p" {
          graph(%x : f32[50]) {
            %a = aten.dropout(%x) {p=0.5, train=True}
            %b = aten.rand_like(%a)
            return %a, %b
          }
        }
        """
    )
    x = torch.randn(50)
    torch.manual_seed(1)
    a, b = evaluate(program, [x])
    torch.manual_seed(1)
    assert torch.equal(a, F.dropout(x))
    assert torch.equal(b, torch.rand(50))


def shape_program(*shapes: tuple[object, ...]) -> Program:
    return program_of(Graph([(f"x{i}", f32(*shape)) for i, shape in enumerate(shapes)]))


def test_symbols_are_bound_from_shapes() -> None:
    a, b = make_symbol("a"), make_symbol("b")
    program = shape_program((2 * a + 1, 3), (a + b, b))
    bound = bind_symbols(program, [torch.zeros(7, 3), torch.zeros(8, 5)])
    assert bound == {a: 3, b: 5}


@pytest.mark.parametrize(
    ("shapes", "given", "message"),
    [
        ([(2, 3)], [(2, 4)], r"dimension 1 of argument 0 \(x0\) must be 3, not 4"),
        ([(2, 3)], [(2,)], r"must have type f32\[2, 3\], but has shape \(2,\)"),
        ([("a",), ("a",)], [(2,), (3,)], r"dimension 0 of argument 1 \(x1\) must be a = 2, not 3"),
        ([("2a",)], [(3,)], "must be 2\\*a, which cannot be 3"),
        ([("a+b",)], [(3,)], "does not tell what a, b stands for"),
        ([("a//2",)], [(3,)], "does not tell what a stands for"),
        ([("r",)], [(9,)], r"r is 9, which is not in its range \[1, 8\]"),
        ([("r",)], [(0,)], r"r is 0, which is not in its range \[1, 8\]"),
        ([(2,)], [], "takes 1 inputs, 0 given"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    shapes: list[tuple[Any, ...]], given: list[tuple[int, ...]], message: str
) -> None:
    a, b = make_symbol("a"), make_symbol("b")
    dims = {"a": a, "2a": 2 * a, "a+b": a + b, "a//2": parse_program_dim("(a//2)"), "r": make_symbol("r")}
    program = shape_program(*[tuple(dims.get(d, d) for d in shape) for shape in shapes])
    program.symbols = dict(parse_program('program "p" { symbol r in [1, 8] graph() { return } }').symbols)
    with pytest.raises(InputError, match=message):
        evaluate(program, [torch.zeros(shape) for shape in given])


def parse_program_dim(text: str) -> Any:
    (value,) = parse_program(f'program "p" {{ graph(%x : f32[{text}]) {{ return }} }}').graph.inputs
    assert isinstance(value.type, TensorType)
    assert value.type.shape is not None
    return value.type.shape[0]


def test_an_argument_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="must be a tensor of type"):
        evaluate(shape_program((2,)), [[1.0, 2.0]])


def test_failures_show_the_operation() -> None:
    program, _ = with_weights()
    conv = program.graph.first
    assert conv is not None
    conv.set_attribute("groups", 2)
    with pytest.raises(EvaluationError, match=r"aten\.conv2d failed on \(torch.float32 \(1, 3, 8, 8\)") as info:
        evaluate(program, [torch.randn(1, 3, 8, 8)])
    assert info.value.location == conv.location
    assert "> %conv = aten.conv2d" in info.value.__notes__[0]
    assert info.value.__cause__ is not None


def test_a_failure_in_a_body_is_shown_there_once() -> None:
    body = Graph([("input", f32(2))])
    op = Builder(body, location=Location("act")).op("aten.softmax.int", body.inputs[0], 0)
    op.set_attribute("dim", 3)
    body.set_outputs(op.results)
    graph = Graph([("x", f32(2))])
    fused = Operation(get_opdef("fused.f"), graph.inputs, {}, [f32(2)], body=body, location=Location("outer"))
    graph.append(fused)
    graph.set_outputs(fused.results)
    with pytest.raises(EvaluationError, match=r"^aten\.softmax\.int failed") as info:
        evaluate(program_of(graph), [torch.zeros(2)])
    assert info.value.location == Location("act")
    assert len(info.value.__notes__) == 1


def test_a_wrong_number_of_results_is_refused() -> None:
    pair = OpDef("test.pair", get_opdef("aten.relu").params, ("tensor",), target=lambda x: (x, x))
    graph = Graph([("x", f32(2))])
    op = Operation(pair, graph.inputs, {}, [f32(2)])
    graph.append(op)
    graph.set_outputs(op.results)
    with pytest.raises(EvaluationError, match="gave 2 results, not 1"):
        evaluate(program_of(graph), [torch.zeros(2)])


def test_values_are_freed_after_their_last_use() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def kernel(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        result = x + 1
        alive.append(weakref.ref(result))
        return result

    step = OpDef("test.step", (Param("x", ParamKind.TENSOR),), ("tensor",), target=kernel)
    graph = Graph([("x", f32(2))])
    value = graph.inputs[0]
    for _ in range(20):
        op = Operation(step, [value], {}, [f32(2)])
        graph.append(op)
        value = op.result
    graph.set_outputs([value])
    (result,) = evaluate(program_of(graph), [torch.zeros(2)])
    assert torch.equal(result, torch.full((2,), 20.0))
    assert most == 1


def test_a_graph_alone() -> None:
    graph = Graph([("x", f32(2)), ("y", f32(2))])
    graph.set_outputs([Builder(graph).sub(*graph.inputs)])
    x, y = torch.randn(2), torch.randn(2)
    assert torch.equal(evaluate_graph(graph, [x, y], {}, {})[0], x - y)
    with pytest.raises(InputError, match="takes 2 inputs, 1 given"):
        evaluate_graph(graph, [x], {}, {})


def test_lifting_leaves_the_gradients_of_other_users_alone():
    """The kernel of `lift_fresh` returns its operand, marked as having no derivative: for all who use it later."""
    program = parse_program("""
program "lifted" {
  argument "x" = input 0
  result = output 0
  graph(%x : f32[2]) {
    %before = aten.sin(%x) : f32[2]
    %lift = aten.lift_fresh(%x) : f32[2]
    %after = aten.sin(%x) : f32[2]
    %y = aten.add.Tensor(%before, %after) : f32[2]
    return %y
  }
}
""")
    x = torch.ones(2, requires_grad=True)
    (y,) = evaluate(program, [x])
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, 2 * x.detach().cos())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_group_norm_whose_input_has_none(memory_format: torch.memory_format) -> None:
    # PyTorch's kernel ends the process on a map in channels_last
    text = """
    program "norm" {
      parameter %w : f32[4] requires_grad
      parameter %b : f32[4] requires_grad
      argument "x" = input 0
      result = output 0
      graph(%x : f32[2, 4, 3, 3]) {
        %y = aten.group_norm(%x, %w, %b) {num_groups=2} : f32[2, 4, 3, 3]
        return %y
      }
    }
    """
    weights = {name: torch.randn(4, requires_grad=True) for name in ("w", "b")}
    x, direction = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    (result,) = evaluate(parse_program(text), [x.to(memory_format=memory_format)], weights)
    assert result.is_contiguous(memory_format=memory_format)
    expected = torch.group_norm(x, 2, weights["w"], weights["b"])
    slopes = [torch.autograd.grad(y, list(weights.values()), direction) for y in (result, expected)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)
