"""FreezeWeights: what is computed from weights alone is a weight, and what must stay stays with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fuzz.search.sound import assert_sound
from graphwright import InputError, PassManager, transform
from graphwright.passes import Canonicalize, FreezeWeights
from tests.fuzz.search.test_sound import QUICK
from tests.passes.compiled import Calls

X = torch.randn(2, 4)


def frozen(model: nn.Module, *inputs: torch.Tensor, validate: Any = "final", **options: Any) -> Any:
    pipeline = PassManager([Canonicalize(), FreezeWeights(**options)])
    return transform(model.eval(), inputs or (X,), pipeline=pipeline, validate=validate)


def missed(result: Any) -> str:
    return "\n".join(remark.message for remark in result.remarks if remark.kind == "missed")


def fc(forward: Any, **more: Any) -> nn.Module:
    return Calls(forward, fc=nn.Linear(4, 4), **more)


def joined(m: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, torch.cat([m.fc.weight, m.other.weight]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        lambda: fc(lambda m, x: x @ (m.fc.weight.t() * 0.5)),
        lambda: fc(lambda m, x: F.linear(x, m.fc.weight.to(torch.float64).float(), m.fc.bias * 2)),
        lambda: fc(joined, other=nn.Linear(4, 4)),
        lambda: fc(lambda m, x: x + m.fc.weight[0].relu() + m.fc.weight[1].relu()),
    ],
    ids=["weight-norm", "spectral-norm", "orthogonal", "transposed", "cast", "joined", "parts"],
)
def test_nothing_of_it_stays_in_forward_and_checkpoints_convert(make: Any) -> None:
    model, other = make(), make()
    result = frozen(model)
    plain = transform(model, (X,), pipeline=PassManager([Canonicalize()]))
    (first,) = [op for op in result.program.graph.operations() if any(v.is_input for v in op.operand_values)][:1]
    assert not list(result.program.graph.operations()).index(first)
    assert sum(result.operations_after.values()) < sum(plain.operations_after.values())
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(result.model(X), other.eval()(X))


def test_what_moves_only_is_trained_and_converts_back() -> None:
    model = fc(joined, other=nn.Linear(4, 4))
    result = frozen(model)
    (weight,) = [p for p in result.model.parameters() if p.shape == (8, 4)]
    assert weight.requires_grad and not result.parameter_map.untrained
    torch.testing.assert_close(result.parameter_map.revert(result.model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: x @ F.dropout(m.fc.weight, 0.5, m.training), "depends on the mode"),
        (lambda m, x: x @ (m.fc.weight * torch.rand(4)), ""),
        (lambda m, x: (x, m.fc.weight * 2), "each call returns or mutates a tensor of its own"),
        (lambda m, x: x + m.fc.bias.expand(2, 4), "a view of a weight, which costs nothing"),
        (lambda m, x: m.fc.weight.t() @ m.fc(x).t(), "a view of a weight, which costs nothing"),
        (lambda m, x: m.norm(x) + m.norm.running_var * 2, "reads what the model mutates"),
    ],
    ids=["mode", "random", "returned", "expansion", "tied view", "mutated"],
)
def test_what_stays(forward: Any, reason: str) -> None:
    model = fc(forward, norm=nn.BatchNorm1d(4))
    if "mutates" in reason:
        model.train()
        result = transform(model, (X,), pipeline=PassManager([Canonicalize(), FreezeWeights()]))
    else:
        result = frozen(model)
    assert reason in missed(result)
    assert not any("is computed from" in remark.message for remark in result.remarks)


def test_what_would_take_much_memory_is_frozen_as_far_as_it_does_not() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, m.fc.bias.exp()[:, None] * m.fc.bias.sigmoid())

    whole, part = frozen(fc(forward)), frozen(fc(forward), max_growth=20)
    assert dict(whole.operations_after) == {"aten.linear": 1}
    assert dict(part.operations_after) == {"aten.mul.Tensor": 1, "aten.linear": 1}
    assert "would add 48 bytes to `fc.bias`, more than max-growth=20" in missed(part)


def test_expressions_of_one_weight_are_weighed_together() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        upper, lower = m.fc.weight.chunk(2)
        return F.linear(x, upper * 2) + F.linear(x, lower * 3)

    result = frozen(fc(forward), max_growth=0)
    assert result.operations_after.keys() == {"aten.linear", "aten.add.Tensor"}


def test_a_frozen_model_trains_as_it_did() -> None:
    model = fc(lambda m, x: F.linear(x, m.fc.weight * 2)).requires_grad_(False)
    result = frozen(model)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(result.model(x).sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(slope, expected)


def test_a_part_of_a_table_is_in_the_checkpoint_and_does_not_come_back() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.register_buffer("ids", torch.arange(10), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table(self.ids[:2])  # type: ignore[index]

    model, other = Places(), Places()
    result = frozen(model)
    assert dict(result.operations_after) == {"aten.add.Tensor": 1}
    converted = result.parameter_map.convert(other.state_dict())
    result.model.load_state_dict(converted)
    torch.testing.assert_close(result.model(X), other(X))
    with pytest.raises(InputError, match=r"cannot be converted back: aten\.embedding"):
        result.parameter_map.revert(converted)


def test_what_is_left_out_of_the_scope_stays() -> None:
    model = nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2)))
    result = frozen(model, skip="1")
    operations = [(op.location.module_path.partition(".")[0], op.name) for op in result.program.graph.operations()]
    assert [name for place, name in operations if place == "0"] == ["aten.linear"]
    assert len([name for place, name in operations if place == "1"]) > 1


def test_it_is_sound_on_programs() -> None:
    assert assert_sound(FreezeWeights(16), settings=QUICK).changed > 5
