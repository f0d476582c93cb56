"""Which quantizers share a scale and a zero point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ir.program import Program
from ir.quant.dialect import QUANTIZE
from ir.text.parser import parse_program
from ir.verify import verify
from passes.manager.manager import PassManager
from passes.quant.place import PlaceQuantizers
from passes.quant.tables import OPENVINO, Table
from passes.quant.unify import UnifyQuantizers, unify_quantizers
from tests.passes.compiled import Calls
from tests.passes.quant.nets import SIGNED, compiled, conv_bn, image, placed


def scales(program: Program) -> list[str]:
    """Return the name of the scale of each quantizer of the main graph."""
    return [op.input("scale").name for op in program.graph.operations() if op.opdef is QUANTIZE]


def pooled() -> Calls:
    return Calls(lambda m, x: m.fc(F.max_pool2d(m.a(x), 4).flatten(1)), a=conv_bn(), fc=nn.Linear(64, 8))


def joined() -> Calls:
    return Calls(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv_bn(), b=conv_bn(), c=conv_bn(32))


def test_pooling_and_layout_share_always() -> None:
    program, _ = placed(pooled(), image(), target="onnxruntime")
    found = unify_quantizers(program, "onnxruntime")
    assert found.names == {"fc.input_quantizer.scale": "a.0.output_quantizer.scale"}
    assert scales(program) == ["a.0.input_quantizer.scale", *["a.0.output_quantizer.scale"] * 2]
    assert not any(name.startswith("fc.input_quantizer") for name in program.weights)
    (region,) = [op for op in program.graph.operations() if op.name == "fused.linear"]
    assert region.operand("input_scale") is program.weights["a.0.output_quantizer.scale"].value
    verify(program)
    assert str(parse_program(str(program))) == str(program)
    again = unify_quantizers(program, "onnxruntime")
    assert (again.names, again.joins) == ({}, ())


def test_parts_of_a_split_share() -> None:
    def net(m: Calls, x: torch.Tensor) -> torch.Tensor:
        left, right = m.a(x).chunk(2, 1)
        return m.b(left) + m.c(right)

    program, _ = placed(Calls(net, a=conv_bn(32), b=conv_bn(16), c=conv_bn(16)), image(32), target="openvino")
    unify_quantizers(program, "openvino")
    assert scales(program).count("a.0.output_quantizer.scale") == 3


def test_a_residual_sum_never_shares() -> None:
    net = Calls(lambda m, x: torch.relu(m.a(x) + m.b(x)), a=conv_bn(), b=conv_bn())
    for target in ("tensorrt", "onnxruntime", "openvino"):
        program, _ = placed(net, image(), target=target)
        assert unify_quantizers(program, target).joins == ()


def test_a_concatenation_shares_where_the_target_wants_it() -> None:
    program, _ = placed(joined(), image(), target="openvino")
    found = unify_quantizers(program, "openvino")
    kept = "cat.input0_quantizer.scale"
    assert found.names == {"cat.input1_quantizer.scale": kept, "c.0.input_quantizer.scale": kept}
    assert {join.reason for join in found.joins} == {"operands of one scale are joined as integers"}
    assert scales(program) == ["args_0_quantizer.scale", kept, kept, kept]
    program, _ = placed(joined(), image(), target="onnxruntime")
    assert unify_quantizers(program, "onnxruntime").names == {}


def test_a_choice_may_be_refused() -> None:
    asked: list[tuple[Sequence[str], Sequence[str]]] = []

    def refuse(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
        asked.append((tuple(ours), tuple(theirs)))
        return "it would cost 4.1 dB" if "cat.input1_quantizer.scale" in theirs else None

    program, _ = placed(joined(), image(), target="openvino")
    found = unify_quantizers(program, "openvino", refuse)
    assert [(join.other, join.reason) for join in found.conflicts] == [
        ("cat.input1_quantizer.scale", "it would cost 4.1 dB")
    ]
    assert found.names == {"c.0.input_quantizer.scale": "cat.input0_quantizer.scale"}
    assert asked[0] == (("cat.input0_quantizer.scale",), ("cat.input1_quantizer.scale",))
    program, _ = placed(pooled(), image(), target="openvino")
    assert unify_quantizers(
        program, "openvino", lambda ours, theirs: "never"
    ).names  # not asked: the values are the same


def test_integers_of_different_types_stay_apart() -> None:
    net = Calls(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv_bn(act=nn.ReLU()), b=conv_bn(), c=conv_bn(32))
    program, _ = placed(net, image(), target="openvino", table=SIGNED)
    found = unify_quantizers(program, SIGNED)
    assert [str(join) for join in found.conflicts] == [
        "`cat.input1_quantizer.scale` is not `cat.input0_quantizer.scale`: their integers are of different types",
        "`c.0.input_quantizer.scale` is not `cat.input0_quantizer.scale`: their integers are of different types",
    ]


def test_the_pass_reports_joins_and_conflicts() -> None:
    net = Calls(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x), m.d(x)], 1)),
        a=conv_bn(act=nn.ReLU()),
        b=conv_bn(),
        c=conv_bn(48),
        d=conv_bn(act=nn.ReLU()),
    )
    pipeline = PassManager([PlaceQuantizers(SIGNED), UnifyQuantizers(SIGNED)])
    remarks = [
        each
        for each in pipeline(compiled(net, image(), target="openvino")).log.remarks
        if each.rule == "unify-quantizers"
    ]
    assert [each.kind for each in remarks] == ["apart", "unified", "apart"]


def test_sums_share_in_a_table_of_ones_own() -> None:
    table = Table("own", {**OPENVINO.rows, "aten.add.Tensor": OPENVINO.rows["aten.cat"]})
    net = Calls(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv_bn(), b=conv_bn(), c=conv_bn())
    program, _ = placed(net, image(), target="openvino")
    assert unify_quantizers(program, "openvino").names == {}
    kept = "add.input_quantizer.scale"
    assert unify_quantizers(program, table).names == {
        "add.other_quantizer.scale": kept,
        "c.0.input_quantizer.scale": kept,
    }
