"""The report and the measurement of errors."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from rich.console import Console
from torch import nn

from compiler.driver import TransformResult, transform
from compiler.equality.accuracy import MeasurementError, measure_accuracy
from compiler.report import KeptGroup, Report, RewriteCount, group_kept, make_report, print_remarks, print_report
from compiler.targets import STANDARD_PATTERNS
from ir.errors import InputError
from ir.locations import Location
from passes.rewrite.remarks import Remark
from tests.helpers import randomize_batch_norm


class Net(nn.Module):
    """Two convolutions that fuse, one that is used twice, a classifier to convert, and a cumsum that nothing takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x)).mean([2, 3])
        return torch.cumsum(self.head(y), 1)


@pytest.fixture(scope="module")
def net() -> Net:
    model = Net()
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result(net: Net, images: torch.Tensor) -> TransformResult:
    return transform(net, (images,))


def printed(report: Report, width: int = 120) -> str:
    file = io.StringIO()
    print_report(report, Console(width=width, file=file))
    return file.getvalue()


def test_rewrites_are_counted_by_pattern_and_operations(result: TransformResult) -> None:
    rewrites = make_report(result).rewrites
    conv_bn_act = ("aten.conv2d", "aten.batch_norm", "aten.relu")
    assert RewriteCount("ConvBNActPattern", "fusion", conv_bn_act, ("fused.conv_bn_act",), 2) in rewrites
    assert RewriteCount("ConvBNPattern", "fusion", ("aten.conv2d",), ("fused.conv_bn",), 1) in rewrites
    conversions = [entry for entry in rewrites if entry.kind == "conversion"]
    assert [entry.pattern for entry in conversions] == ["FlattenLinearToConv1x1Pattern"]
    assert sum(entry.count for entry in rewrites) == len(result.matches)


def test_operations_are_those_of_the_captured_and_the_final_program(result: TransformResult) -> None:
    report = make_report(result)
    before, after = dict(report.operations_before), dict(report.operations_after)
    assert (before["aten.conv2d"], before["aten.linear"], before["aten.cumsum"]) == (2, 1, 1)
    assert after["fused.conv_bn_act"] == 2 and "aten.conv2d" not in after
    assert sum(after.values()) == result.program.graph.num_operations


def test_what_is_kept_has_a_reason(result: TransformResult) -> None:
    (group,) = make_report(result).kept
    assert group.operation == "aten.cumsum"
    assert "no pattern" in group.reason


def test_kept_operations_are_grouped_by_reasons_that_differ_only_in_places_and_types() -> None:
    def kept(path: str, reason: str, kind: str = "kept") -> Remark:
        return Remark(kind, "fuse", Location(path), f"aten.add at `{path}` stays: {reason}", "aten.add", reason)

    groups = group_kept(
        [
            kept("c", "it is alone"),
            kept("a.0", "`a.1` uses f32[2, 4] too"),
            kept("a.2", "`a.3` uses f32[batch, 8]@cuda:0 too"),
            kept("b", "another `a.1`"),
            kept("x", "it is alone", "missed"),
        ]
    )
    assert groups == (
        KeptGroup("aten.add", "`…` uses … too", ("a.0", "a.2")),
        KeptGroup("aten.add", "it is alone", ("c",)),
        KeptGroup("aten.add", "another `a.1`", ("b",)),
    )


def test_many_places_that_differ_in_numbers_are_printed_as_one(result: TransformResult) -> None:
    remarks = [
        Remark("kept", "fuse", Location(path), "", "aten.add", "it is alone")
        for path in ("stem", "layers.0.add", "layers.0.add", "layers.1.add", "layers.12.add", "head.0", "head.0")
    ]
    (group,) = group_kept(remarks)
    assert len(group.places) == 7
    text = printed(attrs.evolve(make_report(result), kept=(group,)))
    assert "stem, layers.*.add (4 times), head.0 (2 times)" in text


def test_operations_of_the_root_are_placed_by_their_line() -> None:
    (group,) = group_kept(
        [Remark("kept", "fuse", Location("", "a.b.Net", "/x/net.py", 7), "", "aten.add", "it is alone")]
    )
    assert group.places == ("Net, net.py:7",)


def test_wrong_arguments_are_refused(result: TransformResult) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: make_report(3), "make_report was given 3"),
        (lambda: make_report(result, model=None), "make_report was given None"),
        (lambda: make_report(result, accuracy=1.0), "make_report was given 1.0"),
        (lambda: make_report(result, accuracy_note=1), "make_report was given 1"),
        (lambda: print_report(result), "print_report was given TransformResult"),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert caught.value.remedy


def test_the_report_is_plain_data(net: Net, images: torch.Tensor, result: TransformResult) -> None:
    report = make_report(result, model="net", accuracy=measure_accuracy(net, result.model, (images,)))
    data = report.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))
    assert data["model"] == "net"
    assert [entry["name"] for entry in data["stages"]] == [stage.name for stage in result.stages]
    assert [entry["pattern"] for entry in data["matches"]] == [match.pattern.__name__ for match in result.matches]
    assert data["accuracy"]["is_within_bound"] is True
    assert {remark["kind"] for remark in data["remarks"]} >= {"applied", "kept"}


def test_the_printed_report_says_all_of_it(net: Net, images: torch.Tensor, result: TransformResult) -> None:
    report = make_report(result, model="net", accuracy=measure_accuracy(net, result.model, (images,)))
    text = printed(report)
    for expected in (
        "ConvBNActPattern",
        "conv2d → batch_norm → relu",
        "FlattenLinearToConv1x1Pattern",
        "became reshape, conv2d, reshape",
        "aten.cumsum",
        "original in float32",
        "as exact as the original",
        "capture",
        "emit",
        f"{sum(result.operations_before.values())} operations → {result.program.graph.num_operations}",
    ):
        assert expected in text
    assert "NOT" not in text
    assert max(map(len, printed(report, width=80).splitlines())) <= 80


def test_names_are_not_broken_at_80_columns(result: TransformResult) -> None:
    operators = ("aten.scaled_dot_product_attention", "aten.linear", "aten.reshape", "aten.permute", "aten.mul.Tensor")
    names = [pattern.__name__ for pattern in STANDARD_PATTERNS]
    counts = tuple((f"fused.{kind}", 123) for kind in ("mha_in_projection", "scaled_dot_product_attention"))
    report = attrs.evolve(
        make_report(result),
        rewrites=tuple(RewriteCount(name, "conversion", operators * 3, operators, 123) for name in names),
        operations_after=counts,
        kept=tuple(KeptGroup(name, "what surrounds it is of another structure; " * 3, ("a.b",)) for name, _ in counts),
    )
    text = printed(report, width=80)
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    for name in (*names, *(name for name, _ in counts), "scaled_dot_product_attention"):
        assert name in words or f"{name}," in words, text
    # where there is no room for them, they are folded and nothing is lost
    narrow = printed(report, width=48)
    assert max(map(len, narrow.splitlines())) <= 48
    column = [line[11:30].split("  ")[0] for line in narrow.splitlines()]
    assert "StemConvBNActMaxPoolPattern" in "".join(map(str.strip, column))


def test_a_report_without_measurement_says_why(result: TransformResult) -> None:
    assert "error: not measured (no inputs)" in printed(make_report(result, accuracy_note="no inputs"))


def test_remarks_are_printed_one_a_line(result: TransformResult, capsys: pytest.CaptureFixture[str]) -> None:
    print_remarks(result.remarks, Console(width=40))
    assert capsys.readouterr().out.splitlines() == [str(remark) for remark in result.remarks]


# --- errors against float64 ------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """`inner` with its result changed by a function."""

    def __init__(self, inner: nn.Module, change: Any) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, *args: torch.Tensor) -> Any:
        return self.change(self.inner(*args))


def test_an_identical_module_is_as_exact(net: Net, images: torch.Tensor) -> None:
    (output,) = measure_accuracy(net, net, (images,)).outputs
    assert output.original_error == output.emitted_error
    assert 0 < output.original_error < 1e-4 * output.scale
    assert output.difference == 0
    assert output.is_within_bound


@pytest.mark.parametrize(
    ("factor", "exact"), [(1 + 1e-3, False), (1 + 1e-7, True), (float("nan"), False), (float("inf"), False)]
)
def test_a_module_with_another_result_is_not(net: Net, images: torch.Tensor, factor: float, exact: bool) -> None:
    accuracy = measure_accuracy(net, Scaled(net, lambda y: y * factor), (images,))
    assert accuracy.is_within_bound is exact
    worst = accuracy.worst
    assert worst is not None
    if math.isfinite(factor):
        assert worst.difference == pytest.approx(worst.scale * (factor - 1), rel=1e-6)
    else:
        assert not worst.same_nonfinite


def test_the_verdict_on_a_wrong_module_is_printed(net: Net, images: torch.Tensor, result: TransformResult) -> None:
    accuracy = measure_accuracy(net, Scaled(net, lambda y: y * 1.01), (images,))
    assert "NOT as exact as the original" in printed(make_report(result, accuracy=accuracy))


def test_nan_and_infinity_must_sit_in_the_same_places() -> None:
    x = torch.tensor([0.0, -1.0, 2.0])
    log = Scaled(nn.Identity(), torch.log)
    same = measure_accuracy(log, log, (x,))
    assert same.is_within_bound
    swapped = measure_accuracy(
        log, Scaled(nn.Identity(), lambda x: torch.log(x.flip(0)).flip(0).nan_to_num(posinf=3)), (x,)
    )
    assert not swapped.is_within_bound
    signs = measure_accuracy(log, Scaled(nn.Identity(), lambda x: torch.where(x == 0, torch.inf, torch.log(x))), (x,))
    assert not signs.is_within_bound


def test_the_worst_of_several_outputs_counts() -> None:
    pair = Scaled(nn.Identity(), lambda x: (torch.exp(x), torch.sin(x)))
    other = Scaled(nn.Identity(), lambda x: (torch.exp(x), 1.5 * torch.sin(x)))
    accuracy = measure_accuracy(pair, other, (torch.randn(8),))
    assert [output.is_within_bound for output in accuracy.outputs] == [True, False]
    assert accuracy.worst is accuracy.outputs[1]


def test_outputs_of_other_types_must_be_equal() -> None:
    index = Scaled(nn.Identity(), lambda x: (x, x.argmax()))
    x = torch.tensor([1.0, 3.0, 2.0])
    assert measure_accuracy(index, index, (x,)).is_within_bound
    wrong = measure_accuracy(index, Scaled(nn.Identity(), lambda x: (x, x.argmin())), (x,))
    assert not wrong.others_equal and not wrong.is_within_bound
    only = measure_accuracy(Scaled(nn.Identity(), torch.argmax), Scaled(nn.Identity(), torch.argmax), (x,))
    assert only.worst is None and only.is_within_bound


def test_measuring_leaves_no_trace() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    x = torch.randn(4, 3)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state, before = torch.get_rng_state(), x.clone()
    assert measure_accuracy(model, model, (x,)).is_within_bound
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model[0].weight.dtype is torch.float32


def test_what_names_float32_runs_in_float64_too() -> None:
    model = Scaled(nn.Identity(), lambda x: x @ torch.eye(3))
    assert measure_accuracy(model, model, (torch.randn(3, 3),)).is_within_bound


def test_what_cannot_run_in_float64_is_not_measured() -> None:
    model = Scaled(nn.Identity(), lambda x: x * math.sqrt(x.numpy().dtype.itemsize == 4 or -1))
    with pytest.raises(MeasurementError, match=r"the original does not run in float64: ValueError"):
        measure_accuracy(model, model, (torch.randn(3, 3),))


def test_other_shapes_and_other_numbers_of_outputs_are_errors(net: Net, images: torch.Tensor) -> None:
    with pytest.raises(MeasurementError, match="shape"):
        measure_accuracy(net, Scaled(net, lambda y: y[:, :2]), (images,))
    with pytest.raises(MeasurementError, match="returns 1 tensors, the emitted module 2"):
        measure_accuracy(net, Scaled(net, lambda y: (y, y)), (images,))


def test_an_exported_program_is_measured_as_its_module(net: Net, images: torch.Tensor) -> None:
    exported = torch.export.export(net, (images,))
    assert measure_accuracy(exported, net, (images,)).is_within_bound
