"""Small nets with the places that are hard to quantize, and what was placed in them, as short texts."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import nn

from graphwright import transform
from ir.program import Program
from ir.text.parser import parse_program
from ir.verify import verify
from passes.quant.place import Place, Placement, place
from passes.quant.tables import OPENVINO, Table
from passes.quant.tables.row import UNSIGNED_IF_POSITIVE
from tests.compiler.drafts import randomize

SIGNED = Table(
    "signed",
    {
        kind: attrs.evolve(row, inputs=dict.fromkeys(row.inputs, UNSIGNED_IF_POSITIVE))
        for kind, row in OPENVINO.rows.items()
    },
)
"""OpenVINO's table with signed integers wherever a value may be negative."""


def conv_bn(channels: int = 16, act: nn.Module | None = None, **options: Any) -> nn.Sequential:
    layers = [nn.Conv2d(channels, channels, 3, padding=1, **options), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers, *([] if act is None else [act]))


def image(channels: int = 16) -> torch.Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def compiled(model: nn.Module, *args: torch.Tensor, target: str, **options: Any) -> Program:
    """Return the program of a net with random weights, for a target."""
    return transform(randomize(model).eval(), args, target=target, check=False, **options).program


def placed(
    model: nn.Module, *args: torch.Tensor, target: str, rules: Any = None, table: Table | None = None, **options: Any
) -> tuple[Program, Placement]:
    """Quantize a net for a target; the program holds all invariants, and its text is all of it."""
    program = compiled(model, *args, target=target, **options)
    placement = place(program, table or target, rules)
    verify(program)
    text = str(program)
    assert str(parse_program(text)) == text
    return program, placement


def short(place: Place) -> str:
    """Return `conv_bn.input u8` or `layer_norm float`."""
    role = "output" if place.role == "output" else place.operand
    return f"{place.site.kind}{'.' if role else ''}{role} {place.type or 'float'}"


def activations(placement: Placement) -> list[str]:
    """Return the places of values, without those of weights."""
    return [short(each) for each in placement.places if each.role != "weight"]


def reasons(placement: Placement) -> dict[str, str]:
    """Return the reason of each kind that stays in float."""
    return {each.site.kind: each.reason for each in placement.places if not each.is_placed}


def kinds(program: Program) -> list[str]:
    """Return the operations of a program: kinds of regions, and the short names of others."""
    return [
        str(op.attributes["kind"]) if op.body is not None else op.opdef.short_name for op in program.graph.operations()
    ]
