"""Tables as data: every row says why, and wrong ones are refused; a table of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.pipeline import parse_pipeline
from compiler.targets import TARGETS
from compiler.targets.target import Target
from graphwright import transform
from ir.core import Operation
from ir.errors import InputError, ParseError
from passes.fuse.kinds import KINDS
from passes.quant.place import place
from passes.quant.tables import Table, find_table, register_table, table_names
from passes.quant.tables.conditions import Decisions
from passes.rewrite.pattern import instantiate
from tests.compiler.drafts import randomize
from tests.passes.compiled import Calls
from tests.passes.quant.nets import SIGNED, activations, compiled, conv_bn, image, placed

ROW: Mapping[str, Any] = {"inputs": {"input": "s8"}, "reason": "because", "source": "here"}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kind_that_a_target_fuses_has_a_row_with_reason_and_source(target: str) -> None:
    table = TARGETS[target].table
    assert table is not None and table is find_table(target)
    kinds = {getattr(rule, "kind", "") for rule in instantiate(TARGETS[target].fusions)}
    assert kinds - set(table.rows) == set()
    assert set(table_names()) >= set(TARGETS)
    for kind, row in table.rows.items():
        assert row.kind == kind
        assert row.reason and row.source
        assert kind in KINDS or kind == "layout" or kind.startswith("aten.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {"input": "u9"}}, "the row 'conv_bn' has the type 'u9' in `inputs`"),
        ({"weights": "8"}, "the row 'conv_bn' has the type '8' in `weights`"),
        ({"when": "16 chanels"}, "condition '16 chanels'; did you mean '16 channels'"),
        ({"imputs": {}}, r"the row 'conv_bn' has 'imputs'\n.*did you mean inputs"),
        ({"reason": ""}, "the row 'conv_bn' has no reason"),
        ({"source": ""}, "the row 'conv_bn' has no source"),
        ({"inputs": "u8"}, r"the row 'conv_bn' has inputs='u8'\n.*\{\"input\": \"u8\"\}"),
        ({"weights": "u8"}, r"weights of type 'u8', and weights are symmetric\n.*'s8', 's7'"),
    ],
)
def test_wrong_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Table.of("own", {"conv_bn": {**ROW, **change}})


def test_a_row_is_the_fields_of_one_or_that_of_another_table() -> None:
    assert Table.of("own", {"conv_bn_act": find_table("openvino").rows["conv_bn"]}).rows["conv_bn_act"].weights == "s8"
    with pytest.raises(InputError, match="the row 'conv_bn' is 's8'"):
        Table.of("own", {"conv_bn": "s8"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"conv_bn_actt": ROW}, r"a row of 'conv_bn_actt', which is no kind\n.*did you mean conv_bn_act"),
        (
            {"conv_bn_act": {**ROW, "inputs": {"x": "s8"}}},
            r"conv_bn_act has no operand `x`\n.*its operands are input, ",
        ),
        (
            {"conv_bn_act": {**ROW, "when": lambda op, decisions: True}},
            r"the condition <lambda> of conv_bn_act returned True",
        ),
    ],
)
def test_rows_that_mean_nothing_of_a_program_are_refused(rows: Any, message: str) -> None:
    program = compiled(nn.Sequential(conv_bn(act=nn.ReLU())), image(), target="openvino")
    with pytest.raises(InputError, match=message):
        place(program, Table.of("own", rows))


def test_names_of_tables_are_unique() -> None:
    table = register_table(Table.of("own test", {"conv_bn": ROW}))
    assert register_table(Table.of("own test", {"conv_bn": ROW})) == table
    with pytest.raises(InputError, match="there is another table named 'own test'"):
        register_table(Table.of("own test", {}))
    with pytest.raises(InputError, match=r"there is no placement table 'open vino'\n.*did you mean openvino"):
        find_table("open vino")


def test_a_target_of_ones_own_is_a_dictionary_of_rows() -> None:
    def in_blocks(op: Operation, decisions: Decisions) -> str | None:
        return None if op.location.module_path.startswith("1") else "only the second block runs on the accelerator"

    table = Table.of(
        "array",
        {
            "conv_bn_act": {
                "inputs": {"input": "u8"},
                "outputs": "u8",
                "weights": "s7",
                "when": [in_blocks, "16 channels"],
                "reason": "its array multiplies 8 by 7 bits",
                "source": "data sheet, page 3",
            },
            "aten.tanh": {"inputs": {"*": "u8"}, "reason": "a lookup table", "source": "data sheet, page 4"},
        },
    )
    target = Target("array", fusions=TARGETS["tensorrt"].fusions, table=table)
    model = randomize(nn.Sequential(conv_bn(act=nn.ReLU()), conv_bn(act=nn.ReLU()), nn.Tanh())).eval()
    result = transform(model, (image(),), target=target, check=False)
    placement = place(result.program, table)
    assert activations(placement) == [
        "conv_bn_act float",
        "conv_bn_act.input u8",
        "conv_bn_act.output u8",
        "aten.tanh.input u8",
    ]
    assert placement.places[0].reason == "only the second block runs on the accelerator"
    assert "quant_min=-64, quant_max=63" in str(result.program)
    with pytest.raises(ParseError, match="there is no placement table 'array'"):
        parse_pipeline("place-quantizers{target=array}")


def test_processors_without_vnni_get_weights_of_seven_bits_and_unsigned_activations() -> None:
    table = SIGNED.without_vnni()
    row = table.rows["conv_bn"]
    assert (row.inputs, row.weights) == ({"input": "u8"}, "s7")
    assert all(row.is_float == SIGNED.rows[kind].is_float for kind, row in table.rows.items())
    symmetric = find_table("tensorrt").without_vnni().rows["conv_bn"]
    assert (symmetric.inputs, symmetric.weights) == ({"input": "s8"}, "s7")


def test_values_that_are_never_negative() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            positive = torch.sigmoid(x)
            return (
                self.a(positive.abs() * positive) + self.b(positive - 1) + self.c(torch.softmax(x, -1).T + positive.T)
            )

    assert types_of_inputs(Net(), torch.randn(4, 4)) == {"a": "u8", "b": "s8", "c": "u8"}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.pad(x.relu(), (1, 1)), "u8"),
        (lambda x: F.pad(x.relu(), (1, 1), value=0.5), "u8"),
        (lambda x: F.pad(x.relu(), (1, 1), value=-0.5), "s8"),
        (lambda x: F.pad(x, (1, 1)), "s8"),
        (lambda x: F.pad(x.relu(), (1, 1), mode="reflect"), "u8"),
        (lambda x: F.hardtanh(x, 0.0, 4.0), "u8"),
        (lambda x: F.hardtanh(x, -0.5, 4.0), "s8"),
        (lambda x: x.clamp(min=0.0), "u8"),
        (lambda x: x.clamp(0.0, -1.0), "s8"),
        (lambda x: x.clamp(max=1.0), "s8"),
    ],
)
def test_padding_and_clipping_may_leave_nothing_negative(
    function: Callable[[torch.Tensor], torch.Tensor], expected: str
) -> None:
    net = Calls(lambda m, x: m.a(function(x)), a=nn.Conv1d(4, 4, 3))
    assert types_of_inputs(net, torch.randn(2, 4, 8)) == {"a": expected}


def types_of_inputs(model: nn.Module, x: torch.Tensor) -> dict[str, str]:
    """Return path of a layer -> the type of its input, in a table of signed integers where they are needed."""
    _, placement = placed(model, x, target="openvino", table=SIGNED)
    return {each.location.module_path: each.type for each in placement.places if each.role == "input"}
