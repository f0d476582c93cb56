from __future__ import annotations

import pytest
import torch

from ir.builder import Builder, make_operation
from ir.core import Graph, Operation
from ir.errors import VerificationError
from ir.types import TensorType
from tests.ir.programs import f32


def chain(count: int) -> tuple[Graph, list[Operation]]:
    """A graph of `count` relu operations, each on the result of the one before."""
    graph = Graph([("x", f32(2))])
    builder = Builder(graph)
    value = graph.inputs[0]
    ops = []
    for _ in range(count):
        ops.append(builder.op("aten.relu", value))
        value = ops[-1].result
    graph.set_outputs([value])
    return graph, ops


def names(graph: Graph) -> list[str]:
    return [op.opdef.short_name for op in graph.operations()]


def test_uses_count_every_operand() -> None:
    graph, (first, second) = chain(2)
    both = Builder(graph).op("aten.add.Tensor", first.result, first.result)
    assert first.result.users == (second, both)
    assert first.result.uses == ((second, 0), (both, 0), (both, 1))
    assert first.result.num_uses == 3
    assert not first.result.has_one_use()
    assert not both.result.has_one_use()
    assert both.result.is_unused
    assert graph.inputs[0].has_one_use()


def test_set_operand_moves_one_use() -> None:
    graph, (first, _) = chain(2)
    x = graph.inputs[0]
    both = Builder(graph).op("aten.add.Tensor", first.result, first.result)
    before = graph.revision
    both.set_operand(1, x)
    assert both.operands == (first.result, x)
    assert first.result.num_uses == 2
    assert x.uses == ((first, 0), (both, 1))
    assert graph.revision > before
    before = graph.revision
    both.set_operand(1, x)
    assert graph.revision == before


def test_replace_all_uses_keeps_counts() -> None:
    graph, (first, second) = chain(2)
    both = Builder(graph).op("aten.add.Tensor", first.result, first.result)
    users = graph.replace_all_uses(first.result, graph.inputs[0])
    assert users == (second, both)
    assert first.result.is_unused
    assert graph.inputs[0].num_uses == 4
    assert both.operands == (graph.inputs[0], graph.inputs[0])


def test_replace_all_uses_reaches_the_return() -> None:
    graph, (first, second) = chain(2)
    graph.replace_all_uses(second.result, first.result)
    assert graph.outputs == (first.result,)


def test_replacing_nothing_is_no_change() -> None:
    graph, (first, second) = chain(2)
    graph.set_outputs([first.result])
    before = graph.revision
    assert graph.replace_all_uses(second.result, first.result) == ()
    assert graph.replace_all_uses(first.result, first.result) == ()
    assert graph.revision == before


def test_erase_drops_uses_and_links() -> None:
    graph, (first, second, third) = chain(3)
    graph.replace_all_uses(second.result, first.result)
    graph.erase(second)
    assert list(graph.operations()) == [first, third]
    assert graph.num_operations == 2
    assert first.result.users == (third,)
    assert not second.is_attached
    assert third.prev is first
    assert first.next is third


def test_erase_refuses_a_used_result() -> None:
    graph, (first, _) = chain(2)
    with pytest.raises(VerificationError, match=r"still used by aten\.relu"):
        graph.erase(first)


def test_erase_refuses_the_terminator_and_strangers() -> None:
    graph, _ = chain(1)
    other, _ = chain(1)
    with pytest.raises(VerificationError, match="not an operation of this graph"):
        graph.erase(graph.return_op)
    with pytest.raises(VerificationError, match="not an operation of this graph"):
        graph.erase(other.first or other.return_op)


def test_insert_refuses_an_operation_of_a_graph() -> None:
    graph, (first, _) = chain(2)
    with pytest.raises(VerificationError, match="cannot insert"):
        graph.append(first)
    stray = make_operation("aten.neg", graph.inputs[0])
    with pytest.raises(VerificationError, match="cannot insert"):
        chain(1)[0].insert_before(first, stray)


def test_erasing_the_current_operation_while_iterating() -> None:
    graph, ops = chain(4)
    visited = []
    for op in graph.operations():
        visited.append(op)
        if op in ops[1:3]:
            graph.replace_all_uses(op.result, graph.inputs[0])
            graph.erase(op)
    assert visited == ops
    assert list(graph.operations()) == [ops[0], ops[3]]


def test_erasing_what_follows_while_iterating() -> None:
    graph, ops = chain(4)
    visited = []
    for op in graph.operations():
        visited.append(op)
        if op is ops[0]:
            for gone in ops[1:3]:
                graph.replace_all_uses(gone.result, op.result)
                graph.erase(gone)
    assert visited == [ops[0], ops[3]]


def test_erasing_the_current_operation_and_what_follows_it() -> None:
    graph, ops = chain(4)
    visited = []
    for op in graph.operations():
        visited.append(op)
        if op is ops[0]:
            for gone in ops[:3]:
                graph.replace_all_uses(gone.result, graph.inputs[0])
                graph.erase(gone)
    assert visited == [ops[0], ops[3]]


def test_insertions_while_iterating() -> None:
    graph, ops = chain(2)
    visited = []
    for op in graph.operations():
        visited.append(op.opdef.short_name)
        if op is ops[0]:
            graph.insert_before(op, make_operation("aten.neg", graph.inputs[0]))
            graph.insert_before(ops[1], make_operation("aten.abs", graph.inputs[0]))
    assert visited == ["relu", "abs", "relu"]
    assert names(graph) == ["neg", "relu", "abs", "relu"]


def test_is_before_follows_insertions_anywhere() -> None:
    graph, ops = chain(3)
    order = list(ops)
    for i in range(100):
        # always at one place: the numbers between two neighbours run out, and all are renumbered
        op = graph.insert_before(order[1 + i % 2], make_operation("aten.neg", graph.inputs[0]))
        order.insert(1 + i % 2, op)
        assert order[0].is_before(op)
        assert op.is_before(order[-1])
    assert list(graph.operations()) == order
    for i, op in enumerate(order):
        assert [op.is_before(other) for other in order] == [i < j for j in range(len(order))]
    assert order[-1].is_before(graph.return_op)


def test_is_before_needs_one_graph() -> None:
    _, (first,) = chain(1)
    _, (other,) = chain(1)
    with pytest.raises(VerificationError, match="not in one graph"):
        first.is_before(other)


def test_operands_by_name() -> None:
    graph = Graph([("x", f32(1, 3, 4, 4)), ("w", f32(2, 3, 1, 1))])
    x, w = graph.inputs
    conv = Builder(graph).op("aten.conv2d", x, w)
    assert conv.operand("weight") is w
    assert conv.operand("bias") is None
    assert conv.input("input") is x
    with pytest.raises(VerificationError, match=r"'bias' of aten\.conv2d is absent"):
        conv.input("bias")
    with pytest.raises(VerificationError, match="no single operand 'scale'"):
        conv.operand("scale")


def test_lists_of_operands() -> None:
    graph = Graph([("x", f32(2)), ("i", TensorType((3,), torch.int64))])
    x, i = graph.inputs
    cat = Builder(graph).op("aten.cat", [x, x, x])
    assert cat.operand_list("tensors") == (x, x, x)
    assert cat.grouped_operands() == ((x, x, x),)
    assert x.num_uses == 3
    index = Builder(graph).op("aten.index.Tensor", x, [i])
    assert index.grouped_operands() == (x, (i,))
    with pytest.raises(VerificationError, match="no operand list 'self'"):
        index.operand_list("self")


def test_an_erased_operation_is_not_inserted_again() -> None:
    graph, (first, second) = chain(2)
    graph.set_outputs([first.result])
    graph.erase(second)
    before = graph.revision
    with pytest.raises(VerificationError, match=r"cannot insert .*aten\.relu.*it was erased"):
        graph.append(second)
    with pytest.raises(VerificationError, match="it was erased"):
        Builder(graph).insert(second)
    assert names(graph) == ["relu"] and graph.revision == before
    assert first.result.users == (graph.return_op,)
