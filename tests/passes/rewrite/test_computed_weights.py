"""Expressions of weights that become weights: numbers, gradients, names, checkpoints both ways, and what stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphwright import InputError, Match, Pattern, PatternBuilder, Rewriter, transform
from graphwright.ir import Value
from tests.passes.compiled import Calls


def computing(compute: Callable[[Rewriter, Value], Value], **options: Any) -> type[Pattern]:
    """Return a rule that gives linear layers the weight `compute(b, w)`, which must be a right one."""

    class Computes(Pattern):
        """linear(x, w) = linear(x, compute(w))"""

        is_conversion = True

        def pattern(self, p: PatternBuilder) -> Any:
            return p.linear(p.any("x"), p.any("w"), None, name="linear")

        def check(self, m: Match) -> str | None:
            weight = m.w.owner
            return "done" if getattr(weight, "derivation", None) or not m.w.is_weight else None

        def rewrite(self, m: Match, b: Rewriter) -> Value:
            result: Value = b.linear(m.x, b.weight(compute(b, m.w), **options), None)
            return result

    return Computes


def turned_twice(b: Rewriter, w: Value) -> Value:
    turned: Value = b.permute(b.permute(w, (1, 0)), (1, 0))
    return turned


def halves_joined(b: Rewriter, w: Value) -> Value:
    (rows, _) = w.tensor_type.shape or (0, 0)
    upper, lower = b.op("aten.split_with_sizes", w, (1, int(rows or 0) - 1), 0).results
    joined: Value = b.cat([upper, lower], 0)
    return joined


def halved_and_doubled(b: Rewriter, w: Value) -> Value:
    doubled: Value = b.op("aten.mul.Scalar", b.op("aten.mul.Scalar", w, 0.5).result, 2.0).result
    return doubled


def linear(seed: int = 0, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4, bias=False, **options))


X = torch.randn(2, 3)


@pytest.mark.parametrize("compute", [turned_twice, halves_joined])
def test_what_moves_elements_is_trained(compute: Any) -> None:
    model = linear()
    result = transform(model, (X,), patterns=(computing(compute),), validate="final")
    assert dict(result.operations_after) == {"aten.linear": 1}
    (parameter,) = result.model.parameters()
    assert parameter.requires_grad and torch.equal(parameter, model[0].weight)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, result.model)]
    for _ in range(3):
        for module, optimizer in zip((model, result.model), optimizers, strict=True):
            optimizer.zero_grad()
            module(X).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(result.model(X), model(X))
    back = result.parameter_map.revert(result.model.state_dict())
    torch.testing.assert_close(back, dict(model.state_dict()))


def test_what_computes_is_not_trained_and_only_where_inference_is_asked_for() -> None:
    model = linear()
    kept = transform(model, (X,), patterns=(computing(halved_and_doubled),), validate="final")
    assert kept.operations_after["aten.mul.Scalar"] == 2
    assert any("would not train `0.weight`: it does more than move" in remark.message for remark in kept.remarks)

    result = transform(model, (X,), patterns=(computing(halved_and_doubled, inference=True),))
    assert dict(result.operations_after) == {"aten.linear": 1}
    assert not any(parameter.requires_grad for parameter in result.model.parameters())
    assert any("is computed from `0.weight`: 48 bytes" in remark.message for remark in result.remarks)
    frozen = transform(model.requires_grad_(False), (X,), patterns=(computing(halved_and_doubled),), validate="final")
    assert dict(frozen.operations_after) == {"aten.linear": 1}


@pytest.mark.parametrize("compute", [turned_twice, halves_joined, halved_and_doubled])
def test_checkpoints_convert_both_ways(compute: Any) -> None:
    result = transform(linear(), (X,), patterns=(computing(compute, inference=True),))
    other = linear(1)
    converted = result.parameter_map.convert(other.state_dict())
    result.model.load_state_dict(converted)
    torch.testing.assert_close(result.model(X), other(X))
    torch.testing.assert_close(result.parameter_map.revert(converted), dict(other.state_dict()))


def test_a_sum_is_not_taken_apart() -> None:
    def shifted(b: Rewriter, w: Value) -> Value:
        return b.sub(b.add(w, w), w)

    result = transform(linear(), (X,), patterns=(computing(shifted, inference=True),))
    with pytest.raises(InputError, match=r"cannot be converted back: aten.sub.Tensor .* from '0.weight'"):
        result.parameter_map.revert(result.model.state_dict())
    with pytest.raises(InputError, match=r"the checkpoint has no '0.*weight', which the emitted module has"):
        result.parameter_map.revert({})


def test_a_part_that_is_lost_is_named() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.w[::2])

    def joined(b: Rewriter, w: Value) -> Value:
        return b.cat([w], 0)

    class Takes(computing(joined, name="part")):  # type: ignore[misc]
        """linear(x, w) = linear(x, cat([w]))"""

        def check(self, m: Match) -> str | None:
            return "done" if m.w.is_weight or m.w.defining_op.name == "aten.cat" else None

    model = Part()
    result = transform(model, (X,), patterns=(Takes,), validate="final")
    assert list(result.model.state_dict()) == ["part"] and result.model.part.requires_grad
    with pytest.raises(InputError, match="9 elements of 'w' are in no tensor"):
        result.parameter_map.revert(result.model.state_dict())


def test_a_weight_that_something_else_reads_stays_one_parameter() -> None:
    model = Calls(lambda m, x: F.linear(x, m.fc.weight) + m.fc.weight.sum(), fc=nn.Linear(3, 4, bias=False))
    rule = computing(halves_joined)
    kept = transform(model, (X,), patterns=(rule,), validate="final")
    assert any("something else reads what it reads" in remark.message for remark in kept.remarks)
    assert list(kept.model.state_dict()) == ["fc.weight"]

    result = transform(model, (X,), patterns=(computing(halves_joined, inference=True),))
    assert sorted(result.model.state_dict()) == ["fc.weight", "fc.weight_folded"]
    other = copy.deepcopy(model)
    nn.init.normal_(other.fc.weight)
    converted = result.parameter_map.convert(other.state_dict())
    result.model.load_state_dict(converted)
    torch.testing.assert_close(result.model(X), other(X))
    assert result.parameter_map.revert(converted).keys() == other.state_dict().keys()


def test_parameters_in_one_memory_stay_apart() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach().t())
    result = transform(model, (X,), patterns=(computing(halves_joined),), validate="final")
    assert any("something else is in the same memory" in remark.message for remark in result.remarks)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m, x: x[:, :3, None].expand(2, 3, 3)[0], "it depends on the input `args_0`"),
        (lambda m, x: F.dropout(m.fc.weight, 0.5, m.training), "depends on the mode"),
        (lambda m, x: m.fc.weight + torch.rand(3), "draws random numbers"),
    ],
)
def test_what_is_no_expression_of_weights_stays(make: Any, reason: str) -> None:
    class Takes(computing(halved_and_doubled, inference=True)):  # type: ignore[misc]
        """linear(x, w) = linear(x, w * 0.5 * 2)"""

        def check(self, m: Match) -> str | None:
            made = m.w.defining_op
            return "done" if made is not None and made.name == "aten.mul.Scalar" else None

    model = Calls(lambda m, x: F.linear(x, make(m, x)), fc=nn.Linear(3, 3, bias=False))
    for mode in (False, True):
        result = transform(model.train(mode), (X,), patterns=(Takes,))
        assert result.operations_after["aten.mul.Scalar"] == 2
        assert any("stays in forward" in r.message and reason in r.message for r in result.remarks), mode


def test_weights_without_data_are_loaded_later() -> None:
    with torch.device("meta"):
        model = linear()
    result = transform(model, (X.to("meta"),), patterns=(computing(halved_and_doubled, inference=True),))
    other = linear(1)
    emitted = result.model.to_empty(device="cpu")
    emitted.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(emitted(X), other(X))
