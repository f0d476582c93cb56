from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ir.attributes import attributes_equal
from ir.builder import Builder, make_operation
from ir.compare import programs_equal
from ir.core import Graph, Value
from ir.errors import EvaluationError, InferenceError, InputError, ParseError
from ir.evaluate import evaluate
from ir.fake import infer_with_fakes
from ir.ops.nn_ops import MULTIHEAD_ATTENTION, decode_call, encode_call, format_call, parse_call
from ir.program import Program, Weight, WeightKind
from ir.text.parser import parse_program
from ir.types import UNKNOWN_TENSOR, OpaqueType, TensorType, make_symbol, type_of_tensor
from ir.verify import verify
from tests.ir.programs import f32, program_of


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weights", ["none", "average", "heads"])
@pytest.mark.parametrize(
    ("separate", "extra", "masks"), [(False, False, False), (True, True, True), (False, True, True)]
)
def test_types_of_attention_are_those_of_its_kernel(rank, batch_first, weights, separate, extra, masks, monkeypatch):
    layer = nn.MultiheadAttention(
        4, 2, kdim=3 if separate else None, vdim=5 if separate else None, add_bias_kv=extra, add_zero_attn=extra
    )
    batch = (3,) if rank == 3 else ()

    def tokens(count, width):
        return f32(*batch, count, width) if batch_first or rank == 2 else f32(count, *batch, width)

    given = [getattr(layer, n) for n in ("in_proj_weight", "in_proj_bias")]
    given += [layer.out_proj.weight, layer.out_proj.bias]
    given += [getattr(layer, n) for n in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v")]
    types = (
        tokens(2, 4),
        tokens(6, 3 if separate else 4),
        tokens(6, 5 if separate else 4),
        *(None if weight is None else type_of_tensor(weight) for weight in given),
        f32(*batch, 6) if masks else None,
        f32(2, 6) if masks else None,
    )
    attributes = {
        **{p.name: p.default for p in MULTIHEAD_ATTENTION.attribute_params},
        "num_heads": 2,
        "embed_dim": 4,
        "batch_first": batch_first,
        "add_zero_attn": extra,
        "need_weights": weights != "none",
        "average_attn_weights": weights == "average",
    }
    expected = infer_with_fakes(MULTIHEAD_ATTENTION, types, attributes)
    with monkeypatch.context() as m:
        m.setattr("ir.ops.inference.support.infer_with_fakes", None)  # the rule alone decides
        assert MULTIHEAD_ATTENTION.infer is not None
        assert MULTIHEAD_ATTENTION.infer(types, attributes) == expected


def attention_program(model: nn.MultiheadAttention, call: dict[str, Any], *, same: bool) -> Program:
    """The program of one call of an attention module; `same` passes one value as query, key and value."""
    tensors = {name: x for name, x in call.items() if isinstance(x, Tensor)}
    graph = Graph([(name, type_of_tensor(x)) for name, x in tensors.items()])
    inputs: dict[str, Value | None] = {value.name: value for value in graph.inputs}
    if same:
        inputs |= {"key": inputs["query"], "value": inputs["query"]}
    program = program_of(graph)

    def weight(name: str) -> Value | None:
        data = dict(model.named_parameters()).get(name)
        if data is None:
            return None
        return program.add_weight(Weight(name, WeightKind.PARAMETER, type_of_tensor(data), data))

    op = Builder(graph).op(
        "nn.multihead_attention",
        inputs["query"],
        inputs["key"],
        inputs["value"],
        weight("in_proj_weight"),
        weight("in_proj_bias"),
        weight("out_proj.weight"),
        weight("out_proj.bias"),
        weight("q_proj_weight"),
        weight("k_proj_weight"),
        weight("v_proj_weight"),
        weight("bias_k"),
        weight("bias_v"),
        inputs.get("key_padding_mask"),
        inputs.get("attn_mask"),
        model.num_heads,
        model.embed_dim,
        model.dropout,
        model.batch_first,
        model.add_zero_attn,
        call.get("need_weights", True),
        call.get("average_attn_weights", True),
        call.get("is_causal", False),
        model.training,
    )
    graph.set_outputs(op.results if call.get("need_weights", True) else op.results[:1])
    verify(program)
    return program


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True, "add_zero_attn": True},
    "other_sizes": {"kdim": 6, "vdim": 10, "batch_first": True},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_attention_equals_the_module(name: str, batched: bool, training: bool) -> None:
    options = MODELS[name]
    model = nn.MultiheadAttention(8, 2, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    # the fast path computes the same, but in another order
    model.train()
    model.training = training

    def tensor(length: int, size: int) -> Tensor:
        shape = [length, size]
        if batched:
            shape.insert(0 if options.get("batch_first") else 1, 3)
        return torch.randn(shape)

    call = {"query": tensor(5, 8), "key": tensor(4, options.get("kdim", 8)), "value": tensor(4, options.get("vdim", 8))}
    program = attention_program(model, call, same=False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = model(**call)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    found = evaluate(program, list(call.values()))
    for x, y, type_ in zip(found, expected, program.graph.outputs, strict=True):
        assert torch.equal(x, y)
        assert type_ is not None
        assert type_.type == type_of_tensor(y)


@pytest.mark.parametrize(
    "call",
    [
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True, "need_weights": False},
        {"attn_mask": torch.randn(5, 5)},
        {"key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3)},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention_with_masks_equals_the_module(call: dict[str, Any], batch_first: bool) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first).train()
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    program = attention_program(model, {"query": x, **call}, same=True)
    expected = model(x, x, x, **call)
    found = evaluate(program, [x, *(t for t in call.values() if isinstance(t, Tensor))])
    assert len(found) == (2 if call.get("need_weights", True) else 1)
    for y, z in zip(found, expected, strict=False):
        assert torch.equal(y, z)


def test_attention_in_training_drops_out() -> None:
    model = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).train()
    x = torch.randn(2, 5, 8)
    program = attention_program(model, {"query": x}, same=True)
    (op,) = program.graph.operations()
    assert op.in_training
    assert op.is_random
    assert not op.is_pure
    torch.manual_seed(3)
    found = evaluate(program, [x])[0]
    torch.manual_seed(3)
    assert torch.equal(found, model(x, x, x)[0])


def test_attention_infers_symbolic_and_unknown_types() -> None:
    batch = make_symbol("batch")
    known = [f32(batch, 5, 8), f32(24, 8), f32(24), f32(8, 8), f32(8)]
    unknown = [UNKNOWN_TENSOR, *known[1:]]
    for types, expected in (
        (known, (f32(batch, 5, 8), f32(batch, 5, 5))),
        (unknown, (UNKNOWN_TENSOR, OpaqueType())),
    ):
        graph = Graph([(str(i), type_) for i, type_ in enumerate(types)])
        x, *weights = graph.inputs
        op = make_operation("nn.multihead_attention", x, x, x, *weights, num_heads=2, embed_dim=8, batch_first=True)
        assert tuple(value.type for value in op.results) == expected


def test_attention_that_does_not_fit_is_refused() -> None:
    graph = Graph([("x", f32(2, 5, 8)), ("w", f32(24, 8)), ("o", f32(8, 8))])
    x, w, o = graph.inputs
    with pytest.raises(InferenceError, match="was expecting embedding dimension of 6"):
        make_operation("nn.multihead_attention", x, x, x, w, None, o, num_heads=2, embed_dim=6)


class Counter(nn.Module):
    """Mutates a buffer in each call, and reads arguments of many kinds."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, pair: tuple[Tensor, int], *, scale: float, names: dict[str, Any]) -> Any:
        self.count.add_(1)
        assert names == {"mode": "sum", "dims": [0, None], "part": slice(1, None), "dtype": torch.float64}
        return {"a": x * self.weight * scale, "b": [pair[0] + pair[1], x[names["part"]]]}


def opaque_program() -> Program:
    n = make_symbol("n")
    graph = Graph([("x", f32(3)), ("y", f32(n))])
    positional, keywords, operands = encode_call(
        [graph.inputs[0], (graph.inputs[1], n)],
        {"scale": 0.5, "names": {"mode": "sum", "dims": [0, None], "part": slice(1, None), "dtype": torch.float64}},
        lambda leaf: isinstance(leaf, Value),
    )
    op = Builder(graph).op("nn.opaque", operands, "counter", positional, keywords, True, ("f32[3]", "f32[n]", "?"))
    graph.set_outputs(op.results)
    program = program_of(graph)
    program.symbols = dict(parse_program('program "p" { symbol n in [0, inf] graph() { return } }').symbols)
    program.opaques["counter"] = Counter()
    verify(program)
    return program


def test_opaque_calls() -> None:
    program = opaque_program()
    counter = program.opaques["counter"]
    x, y = torch.randn(3), torch.randn(4)
    a, b, c = evaluate(program, [x, y])
    assert torch.equal(a, x * 2 * 0.5)
    assert torch.equal(b, y + 4)
    assert torch.equal(c, x[1:])
    assert counter.count == 0  # the call mutated a copy
    a.sum().backward()
    assert torch.equal(counter.weight.grad, 0.5 * x.sum())


def test_opaque_calls_infer_what_was_recorded() -> None:
    (op,) = opaque_program().graph.operations()
    assert [str(value.type) for value in op.results] == ["f32[3]", "f32[n]", "?"]
    assert not op.is_pure
    with pytest.raises(InferenceError, match=r"the result types of nn\.opaque are ill-formed"):
        make_operation("nn.opaque", [], "f", (), {}, False, ("f33[2]",))


def test_opaque_functions_and_missing_ones() -> None:
    program = opaque_program()
    program.opaques["counter"] = lambda x, pair, *, scale, names: [x, pair[0], None]
    x, y = torch.randn(3), torch.randn(4)
    assert evaluate(program, [x, y])[1] is not None
    program = parse_program(str(opaque_program()))
    with pytest.raises(EvaluationError, match="there is no callable for 'counter'"):
        evaluate(program, [x, y])


def test_arguments_of_opaque_calls_round_trip() -> None:
    args = ["text", True, None, 3, -0.0, (1, (2.5,)), [], {"k": [torch.float16]}, slice(None, 4, [object]), object]
    positional, keywords, operands = encode_call(args[:-1], {"key": args[-1]}, lambda leaf: leaf is object)
    assert operands == [object, object]
    attributes = {"positional": positional, "keywords": keywords}
    decoded, kwargs = decode_call(attributes, [object, "given"], lambda leaf: leaf)
    assert repr(decoded) == repr(tuple(args[:-1]))
    assert kwargs == {"key": "given"}
    text = format_call(positional, keywords)
    assert text == (
        '[["text", True, None, 3, -0.0, [1, [2.5]], list(), {"k": list(torch.float16)}, '
        'slice(None, 4, list(%0))], {"key": %1}]'
    )
    assert attributes_equal(parse_call(text), (positional, keywords))


def test_other_arguments_of_opaque_calls_are_refused() -> None:
    for item in ({1, 2}, torch.return_types.max((1, 2)), object()):
        with pytest.raises(InputError, match="cannot take an argument of class "):
            encode_call([item], {}, lambda leaf: False)
    with pytest.raises(InputError, match="cannot take a dict with a key of class bytes"):
        encode_call([{b"k": 2}], {}, lambda leaf: False)


def test_arguments_of_opaque_calls_in_text() -> None:
    program = opaque_program()
    text = str(program)
    assert (
        '%opaque, %opaque_1, %opaque_2 = nn.opaque([%x, %y]) {callee="counter", positional=[%x, [%y, n]], '
        'keywords={"scale": 0.5, "names": {"mode": "sum", "dims": list(0, None), "part": slice(1, None, None), '
        '"dtype": torch.float64}}, training=True, result_types=["f32[3]", "f32[n]", "?"]}'
    ) in text
    parsed = parse_program(text)
    assert programs_equal(program, parsed) is None
    assert str(parsed) == text
    for old, new in (
        ("positional=[%x, [%y, n]]", "positional=[%y, [%x, n]]"),
        ("[%y, n]]", "list(%y, n)]"),
        ("list(0, None)", "[0, None]"),
        ("slice(1, None, None)", "slice(1, 2, None)"),
        ('"scale": 0.5, ', ""),
        ("scale", "factor"),
    ):
        difference = programs_equal(program, parse_program(text.replace(old, new)))
        assert difference is not None
        assert "attribute positional" in str(difference) or "attribute keywords" in str(difference)
    for wrong in ("slice(1)", "{%x: 1}", "{list(1): 1}", "%z"):
        with pytest.raises(ParseError, match="line "):
            parse_program(text.replace("[%y, n]]", f"{wrong}]"))


def test_an_operand_that_is_passed_twice_reads_back() -> None:
    graph = Graph([("x", f32(3))])
    (x,) = graph.inputs
    positional, keywords, operands = encode_call([x, [x]], {}, lambda leaf: isinstance(leaf, Value))
    op = Builder(graph).op("nn.opaque", operands, "f", positional, keywords, False, ("?",))
    graph.set_outputs(op.results)
    program = program_of(graph)
    program.opaques["f"] = lambda a, b: a + b[0]
    parsed = parse_program(str(program))
    assert programs_equal(program, parsed) is None
    parsed.opaques.update(program.opaques)
    verify(parsed)
    assert torch.equal(evaluate(parsed, [torch.ones(3)])[0], torch.full((3,), 2.0))


def test_unknown_result_kinds_of_attention_are_compatible() -> None:
    graph = Graph([("x", TensorType(None, None, None)), ("w", f32(24, 8)), ("o", f32(8, 8))])
    x, w, o = graph.inputs
    op = Builder(graph).op("nn.multihead_attention", x, x, x, w, None, o, num_heads=2, embed_dim=8)
    op.results[0].type = f32(2, 5, 8)
    graph.set_outputs(op.results[:1])
    verify(program_of(graph))
