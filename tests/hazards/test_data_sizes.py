"""Sizes that depend on data: equal for other sizes than the example's, 0 and 1 among them, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from compiler.driver import transform
from ir.compare import programs_equal
from ir.errors import CaptureError, EvaluationError
from ir.evaluate import evaluate
from ir.program import Program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.verify import verify

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
ALL, NONE, ONE, SOME = (
    torch.tensor(rows, dtype=torch.bool) for rows in ([1] * 5, [0] * 5, [0, 0, 1, 0, 0], [1, 0, 1, 1, 0])
)
MASKED = [(X, mask) for mask in (SOME, ALL, NONE, ONE)]


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


class Experts(nn.Module):
    """A mixture of experts that gathers the tokens of each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens, places = torch.where(chosen == number)
            result.index_add_(0, tokens, expert(x[tokens]) * weights[tokens, places, None])
        return result


class Head(nn.Module):
    """A detection head: boxes and scores above a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.score = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = self.score(x).squeeze(1).sigmoid()
        keep = scores > 0.5
        boxes, scores = self.box(x)[keep].relu(), scores[keep]
        best, order = scores.sort(descending=True)
        return boxes[order], best, torch.zeros(scores.shape[0] + 1)


def first_rows(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    rows = n.item()
    torch._check(rows >= 0)
    torch._check(rows <= x.shape[0])
    return x[:rows].sum(0)


def in_pairs(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    chosen = x[mask]
    torch._check(chosen.shape[0] % 2 == 0)
    return chosen.view(-1, 8)


def sizes(x: torch.Tensor, mask: torch.Tensor) -> tuple[Any, ...]:
    chosen = x.masked_select(x > mask[:, None])
    return chosen.shape[0] * 2, chosen.reshape(-1, 1), torch.zeros(chosen.shape[0] + 1)


def three(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    torch._check(n.item() == 3)
    return x[:3]


INTS = [(X, torch.tensor(n)) for n in (3, 0, 1, 5, 6, -1)]
CASES: dict[str, tuple[Callable[..., Any], Sequence[tuple[torch.Tensor, ...]]]] = {
    "a sum": (lambda x, mask: x[mask].sum(), MASKED),
    "nonzero": (lambda x, mask: torch.nonzero(x * mask[:, None]), MASKED),
    "one mask for several": (lambda x, mask: (x[mask], x.relu()[mask] * 2, mask.nonzero()), MASKED),
    "only the size": (lambda x, mask: x[mask].shape[0], MASKED),
    "sizes that are computed": (sizes, MASKED),
    "a part": (lambda x, mask: x[mask][1:].sum(1), MASKED),
    "a broadcast mask": (lambda x, mask: x.masked_select(mask[:, None]), [(X[0], mask) for _, mask in MASKED]),
    "two parts": (lambda x, mask: torch.cat([x[mask], x[~mask] + 1]), MASKED),
    "a softmax": (lambda x, mask: x[mask].softmax(0), MASKED),
    "a write": (lambda x, mask: x.clone().index_put_((mask,), x[mask] * 2), MASKED),
    "new tensors": (lambda x, mask: (torch.ones_like(x[mask]), torch.zeros(x[mask].shape[0], 2)), MASKED),
    "equal sizes": (lambda x, mask: x[mask] @ x[mask].T, MASKED),
    "padding": (lambda x, mask: nn.functional.pad(x[mask], (0, 0, 0, 5 - x[mask].shape[0])), MASKED),
    "unique": (lambda x, mask: torch.unique(mask.long(), return_inverse=True, return_counts=True), MASKED),
    "a checked relation": (in_pairs, [(X, torch.tensor([1, 1, 0, 0, 0], dtype=torch.bool)), *MASKED]),
    "a number that is a size": (first_rows, INTS),
    "a number that may be negative": (lambda x, n: (x[: n.item()], x * n.item()), INTS),
    "a number that is known": (three, INTS),
    "a float and a bool": (lambda x, mask: x * x.max().item() + (x.sum() > 0).item(), MASKED),
    "splits": (lambda x, n: x.split(n.tolist()), [(X, torch.tensor(n)) for n in ([2, 3], [0, 5], [1, 4], [1, 3])]),
}


def outcome(function: Callable[..., Any], *args: Any) -> list[Any] | type[Exception]:
    try:
        leaves: list[Any] = pytree.tree_leaves(function(*args))
    except (RuntimeError, IndexError, EvaluationError) as error:
        return type(error)
    return leaves


def same(expected: list[Any] | type[Exception], found: list[Any] | type[Exception]) -> bool:
    if isinstance(expected, type) or isinstance(found, type):
        return isinstance(expected, type) and isinstance(found, type)
    return len(expected) == len(found) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(expected, found, strict=True)
    )


def hold(model: nn.Module, calls: Sequence[tuple[torch.Tensor, ...]], **options: Any) -> Any:
    """Compile the model for the first call, and compare all calls: the module, the program, its text."""
    model.eval()
    result = transform(model, calls[0], validate="each", **options)
    program = result.program
    verify(program)
    assert programs_equal(parse_program(print_program(program)), program) is None
    assert any(not isinstance(outcome(model, *args), type) for args in calls)
    for args in calls:
        expected = outcome(model, *args)
        assert same(expected, outcome(result.model, *args)), args
        if all(leaf.value is not None for leaf in program.convention.outputs):
            assert same(expected, outcome(results, program, args)), args
    return result


def results(program: Program, args: Sequence[torch.Tensor]) -> list[Any]:
    outputs = evaluate(program, args)
    return [outputs[leaf.value] for leaf in program.convention.outputs if leaf.value is not None]


@pytest.mark.parametrize("name", CASES)
def test_other_sizes_than_in_the_example(name: str) -> None:
    function, calls = CASES[name]
    hold(Function(function), calls)


@pytest.mark.parametrize("model", [Experts, Head])
def test_models_that_select(model: type[nn.Module]) -> None:
    torch.manual_seed(1)
    result = hold(model(), [(X,), (X.abs() + 1,), (-X.abs() - 1,), (X * 0,)])
    again = transform(result.model, (X,))
    assert [op.name for op in again.program.graph.operations()] == [op.name for op in result.program.graph.operations()]


def test_dynamic_sizes_beside_sizes_that_depend_on_data() -> None:
    batch = Dim("batch", max=9)
    calls = [(X, SOME), (X[:3], SOME[:3]), (X[:1], SOME[:1]), (X[:2], NONE[:2])]
    dynamic = (({0: batch}, {0: batch}),)
    result = hold(Function(lambda x, mask: (x[mask].sum(0), x + 1)), calls, dynamic_shapes=dynamic)
    assert "symbol u0 in [0, 9]" in str(result.program)


def test_gradients_flow_through_a_selection() -> None:
    model = Experts()
    result = transform(model, (X,))
    inputs = [X.clone().requires_grad_() for _ in range(2)]
    for each, x in zip((model, result.model), inputs, strict=True):
        each(x).square().sum().backward()
    gradients = [x.grad for x in inputs]
    assert gradients[0] is not None and gradients[1] is not None and torch.equal(gradients[0], gradients[1])


def test_a_sum_of_selections_is_for_equal_sizes_only() -> None:
    """PyTorch captures it so. A size of 1 would broadcast in the original: that is refused, and not wrong."""
    result = transform(Function(lambda x, a, b: x[a] + x[b]), (X, SOME, SOME.clone()))
    assert torch.equal(result.model(X, ALL, ALL.clone()), X + X)
    with pytest.raises(RuntimeError, match="captured for `size 0 of index_1 == u0`"):
        result.model(X, ALL, ONE)


def refusal(function: Callable[..., Any], *args: torch.Tensor) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        transform(Function(function), args)
    assert caught.value.location is not None and caught.value.location.file == __file__
    assert caught.value.remedy is not None
    return caught.value


def test_what_differs_at_a_size_of_one_is_refused_and_the_remedy_works() -> None:
    def squeezed(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x[mask].squeeze()

    error = refusal(squeezed, X, SOME)
    assert "aten.squeeze gives a tensor of type f32[4] where a size that depends on data is 1" in error.message
    assert "squeeze(1)" in str(error.remedy) and "torch._check(n > 1)" in str(error.remedy)
    hold(Function(lambda x, mask: x[mask][:, :1].squeeze(1)), MASKED)


def test_arithmetic_with_a_number_that_may_be_negative_is_refused_and_the_remedy_works() -> None:
    def raised(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return x * (n.item() + 1)

    error = refusal(raised, X, torch.tensor(3))
    assert "may be negative" in error.message and "torch._check(n >= 0)" in str(error.remedy)

    def checked(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        number = n.item()
        torch._check(number >= 0)
        return x * (number + 1)

    hold(Function(checked), INTS)
