"""`validate=`: equal models are equal whatever they cast, and what differs is found in whichever call it shows."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.driver import transform
from compiler.equality.accuracy import measure_accuracy
from compiler.equality.validate import validate_result
from compiler.equality.widened import Widened
from fuzz.modules.observation import snapshot
from ir.core import Value
from ir.errors import InputError, ValidationError
from passes.canonicalize import Canonicalize
from passes.fold.batch_norm import FoldBatchNorm
from passes.manager.manager import PassManager
from passes.rewrite.pattern import Match, Node, Pattern, PatternBuilder
from passes.rewrite.rewriter import Rewriter
from tests.helpers import randomize_batch_norm

X = torch.randn(3, 4)
FOLDING = PassManager([Canonicalize(), FoldBatchNorm()])


class Does(nn.Module):
    """Calls a function with itself and its inputs; has layers and buffers."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.table = torch.randn(4, 4)
        self.register_buffer("frequencies", torch.rand(4) + 0.1, persistent=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *args: Any) -> Any:
        """Call it."""
        return self.function(self, *args)


def rms_norm(m: Any, x: torch.Tensor) -> torch.Tensor:
    kind = x.dtype
    x = x.to(torch.float32)
    return m.linear((x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(kind))


def filled(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    out[:, 0] = x[:, 1] * 0.3
    out[:, 1:3].add_(m.linear(x)[:, 1:3])
    return out @ torch.eye(4)


def positions(m: Any, x: torch.Tensor) -> torch.Tensor:
    angles = torch.arange(4, dtype=torch.float32).unsqueeze(1) / 7 * math.pi @ m.frequencies.float().unsqueeze(0)
    constant = torch.sin(torch.arange(4) / 3) * torch.tensor([0.1, 0.2, 0.3, 0.4]) * 0.7
    return m.linear(x) @ torch.cos(angles).to(x.dtype) + constant


def masked(m: Any, x: torch.Tensor) -> torch.Tensor:
    scores = m.linear(x).float() @ x.float().t()
    mask = torch.triu(torch.full((3, 3), torch.finfo(scores.dtype).min), 1)
    return F.softmax(scores + mask + mask, dim=-1, dtype=torch.float32).type_as(x)


def typed(m: Any, x: torch.Tensor) -> Any:
    assert x.dtype == torch.float32
    y = x.float()  # the very input: writing to it is seen
    y.add_(0.1)
    return m.linear(y.type(torch.float32)).type_as(x), x * 2


def rounded(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.linear(m.linear(x).to(torch.bfloat16).float())


def mixed(m: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x.half(), m.linear.weight.half()).float() @ m.table


@pytest.mark.parametrize("function", [rms_norm, filled, positions, masked, typed, rounded, mixed])
@pytest.mark.parametrize("training", [False, True])
def test_casts_to_float32_are_no_difference(function: Any, training: bool) -> None:
    model = Does(function).train(training)
    transform(model, (X,), validate="final")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_widened_too(dtype: torch.dtype) -> None:
    model = Does(rms_norm).to(dtype)
    result = transform(model, (X.to(dtype),), validate="final")
    (output,) = measure_accuracy(model, result.model, (X.to(dtype),), parameter_map=result.parameter_map).outputs
    assert output.difference <= 1e-9 * output.scale and output.original_error > 1e-4 * output.scale


def test_weights_that_were_computed_are_computed_in_float64() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4, bias=False))
    randomize_batch_norm(model, torch.Generator().manual_seed(1))
    x = torch.randn(2, 4, 4, 4)
    result = transform(model.eval(), (x,), pipeline=FOLDING, validate="final", check=False)
    (output,) = measure_accuracy(model, result.model, (x,), parameter_map=result.parameter_map).outputs
    assert output.difference < 1e-12 * output.scale
    # what the weights are is still seen, in their own precision
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        next(wrong.parameters()).mul_(1.001)
    with pytest.raises(ValidationError, match="values, first call"):
        validate_result(model, wrong, (x,), parameter_map=result.parameter_map)


def test_a_wrong_cast_is_found_in_float32() -> None:
    model = Does(lambda m, x: (x * 1e5).half().float())
    with pytest.raises(ValidationError, match="NaN and infinity in place: False"):
        validate_result(model, Does(lambda m, x: x * 1e5), (X,))


def test_an_overflow_of_the_original_allows_no_error_elsewhere() -> None:
    def overflowing(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x * 1e30 * 1e30])

    def wrong(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x + 1e-3, x * 1e30 * 1e30])

    (output,) = measure_accuracy(Does(overflowing), Does(overflowing), (X,)).outputs
    assert output.is_within_bound and math.isfinite(output.allowed) and output.scale == float(X.abs().max())
    assert not measure_accuracy(Does(overflowing), Does(wrong), (X,)).is_within_bound
    with pytest.raises(ValidationError, match="values, first call"):
        validate_result(Does(overflowing), Does(wrong), (X,))


def counting(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.count += 1
    return x * m.count


def dropping(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.drop(m.linear(x))


@pytest.mark.parametrize(
    ("original", "other", "found"),
    [
        (rms_norm, lambda m, x: rms_norm(m, x) * (1 + 1e-7), "values, first call, in float64"),
        (counting, lambda m, x: x * 1, "state, first call"),
        (counting, lambda m, x: (m.count.fill_(1), x * m.count)[1], "values, second call"),
        (dropping, lambda m, x: m.linear(x), r"values, put into training mode"),
        (lambda m, x: x * 2, lambda m, x: (x * 2).double(), "types, first call"),
        (lambda m, x: x * 2, lambda m, x: [x * 2], "structure, first call"),
        (lambda m, x: (x * 2, 1), lambda m, x: (x * 2, 2), "values, first call"),
        (lambda m, x: x * 2, lambda m, x: x.mul_(2) * 1, "inputs, first call"),
        (lambda m, x: x * 2, lambda m, x: (x * 2).t().contiguous().t(), "strides, first call"),
        (lambda m, x: x[:2], lambda m, x: x[:2] * 1, "sharing, first call"),
        (dropping, lambda m, x: dropping(m, x) + 0 * torch.rand(3, 1), "random numbers, first call"),
        (lambda m, x: x * 2, lambda m, x: m.nothing, "errors, first call"),
        (lambda m, x: x * 2 if m.training else m.nothing, lambda m, x: x * 2, "errors"),
    ],
)
def test_each_call_and_property_is_looked_at(original: Any, other: Any, found: str) -> None:
    model, emitted = Does(original).eval(), Does(other).eval()
    emitted.load_state_dict(model.state_dict())
    emitted.frequencies, emitted.table = model.frequencies, model.table
    with pytest.raises(ValidationError, match=found):
        validate_result(model, emitted, (X,))
    validate_result(model, copy.deepcopy(model), (X,))


def test_what_the_mode_undoes_is_found_after_it_was_put_back() -> None:
    class Once(Does):
        """Its norm is in eval mode until the model is switched."""

        def train(self, mode: bool = True) -> Once:
            """Switch for good."""
            self.function = lambda m, x: x * 3
            return super().train(mode)

    def model() -> Once:
        made = Once(lambda m, x: x * 2)
        made.training = False
        return made

    plain = Does(lambda m, x: x * 2).eval()
    validate_result(model(), model(), (X,))
    with pytest.raises(ValidationError, match="put into training mode"):
        validate_result(model(), plain, (X,))


def test_modules_are_switched_as_a_user_does() -> None:
    class Uncertain(Does):
        """Its dropout stays on in eval mode (Monte Carlo dropout)."""

        def eval(self) -> Uncertain:
            """Put all but the dropout into eval mode."""
            super().eval()
            self.drop.train()
            return self

    transform(Uncertain(dropping).eval(), (X,), validate="final")
    uncertain, plain = Uncertain(dropping), Does(dropping)
    plain.load_state_dict(uncertain.state_dict())
    with pytest.raises(ValidationError, match="put into eval mode"):
        validate_result(uncertain, plain, (X,))


def test_both_modules_are_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    result = transform(model, (X,))
    before = snapshot(model), snapshot(result.model), X.clone(), torch.get_rng_state()
    validate_result(model, result.model, (X,), parameter_map=result.parameter_map)
    after = snapshot(model), snapshot(result.model), X.clone(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert all(map(torch.equal, before[2:], after[2:]))


def test_a_mode_that_the_result_has_not_is_not_asked_for() -> None:
    def branching(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.linear(x) if m.training else m.linear(x).item()

    model = Does(branching)
    result = transform(model, (X,), validate="final")
    with pytest.raises(InputError):
        result.model.eval()


def test_a_model_that_computes_gradients_is_validated() -> None:
    def forces(m: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(m.linear(x).square().sum(), x)
        return -slope

    model = Does(forces)
    validate_result(model, copy.deepcopy(model), (X,))
    with pytest.raises(ValidationError, match="values, first call"):
        validate_result(model, Does(forces), (X,))


def test_a_copy_of_a_model_in_the_mode_of_a_precision_looks_at_each_tensor_once() -> None:
    class Counting(Widened):
        looked_at = 0

        def _wide(self, leaf: Any) -> Any:
            self.looked_at += 1
            return super()._wide(leaf)

    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(20)))
    with Counting(frozenset({torch.float32})) as mode:
        twin = copy.deepcopy(model)
    tensors = [*twin.parameters(), *twin.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float64}
    assert mode.looked_at < 20 * len(tensors)  # the copies of all others are among the arguments of each copy


def test_what_runs_in_no_other_precision_is_judged_in_its_own() -> None:
    def only_float32(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_halved(x.detach().numpy())) + m.linear(x) * 0

    model = Does(only_float32)
    validate_result(model, copy.deepcopy(model), (X,))
    with pytest.raises(ValidationError, match="values, first call"):
        validate_result(model, Does(lambda m, x: x), (X,))


def _halved(array: Any) -> Any:
    if array.dtype != "float32":
        raise TypeError("this kernel takes float32")
    return array / 2


# ---- each rewrite ----


class MergeFactors(Pattern):
    """(float(x)·0.1)·0.7 = float(x)·0.07"""

    factor: ClassVar[float] = 0.1 * 0.7

    def pattern(self, p: PatternBuilder) -> Node:
        """Match two factors behind a cast."""
        cast = p.op("aten.to.dtype", p.any("x"), name="cast")
        return p.op("aten.mul.Scalar", p.op("aten.mul.Scalar", cast, other=0.1), other=0.7)

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Cast and multiply once."""
        cast = b.call("aten.to.dtype", m.x, m.cast.attributes["dtype"])
        return b.call("aten.mul.Scalar", cast, self.factor)


class MergeWrongly(MergeFactors):
    """(float(x)·0.1)·0.7 = float(x)·0.0700001"""

    factor = 0.1 * 0.7 * (1 + 1e-6)


class OtherDim(Pattern):
    """softmax(x, 1) = softmax(x, 0): wrong, and set in place"""

    exact = True

    def pattern(self, p: PatternBuilder) -> Node:
        """Match a softmax."""
        return p.op("aten.softmax.int", dim=1)

    def rewrite(self, m: Match, b: Rewriter) -> None:
        """Set the dimension."""
        b.set_attribute(m.root, "dim", 0)


class Reacosh(Pattern):
    """acosh(x) = acosh(x·1)"""

    def pattern(self, p: PatternBuilder) -> Node:
        """Match one whose operand is no product."""
        return p.op("aten.acosh", p.op("aten.neg", p.any("x")))

    def rewrite(self, m: Match, b: Rewriter) -> Value:
        """Take the operand of the negation with a factor."""
        return b.call("aten.acosh", b.call("aten.mul.Scalar", m.x, -1))


def validated(function: Any, *args: torch.Tensor, patterns: Any = (), **options: Any) -> list[str]:
    """Validate each rewrite and return what the result says of it."""
    result = transform(Does(function).eval(), args, patterns=patterns, validate="each", **options)
    assert result.matches or not patterns
    return [remark.message for remark in result.remarks if remark.rule == "validate"]


def test_a_region_that_casts_to_float32_is_widened() -> None:
    def cast(m: Any, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float32) * 0.1 * 0.7

    messages = validated(cast, X.double(), patterns=(MergeFactors,))
    assert len(messages) == 1 and "rewrites were compared" in messages[0]
    with pytest.raises(ValidationError, match="MergeWrongly changes the result"):
        validated(cast, X.double(), patterns=(MergeWrongly,))


def test_a_region_that_rounds_on_purpose_is_judged_by_its_rounding() -> None:
    def cast(m: Any, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16) * 0.1 * 0.7

    assert len(validated(cast, X, patterns=(MergeFactors,))) == 1


def test_what_a_rule_sets_in_place_is_compared() -> None:
    messages = validated(lambda m, x: x.softmax(-1), X)
    assert messages == ["1 of 1 rewrites were compared with what they replaced"]
    with pytest.raises(ValidationError, match="OtherDim changes the result"):
        validated(lambda m, x: x.softmax(1), X, patterns=(OtherDim,))


def test_what_was_not_compared_is_said() -> None:
    first, second = validated(lambda m, x: torch.acosh(-x), torch.randn(1), patterns=(Reacosh,))
    assert first.endswith("rewrites were compared with what they replaced") and first[0] != first[5]
    assert second.startswith("Reacosh at") and second.endswith("its results are NaN or infinite throughout")
