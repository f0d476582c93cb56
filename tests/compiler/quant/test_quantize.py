from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch
from torch import nn

from graphwright import InputError, transform
from graphwright.quant import CalibrationError, Int8, Quantized, quantize
from ir.evaluate import evaluate
from ir.program import weight_of
from tests.passes.compiled import Calls


class Net(nn.Module):
    """A residual block, a concatenation, a pool and a classifier; 16 channels, so that all targets take them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.block = nn.Conv2d(16, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, 20)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.block(x) + x)
        y = torch.cat([y, torch.relu(self.narrow(x))], 1)
        y = torch.relu(self.last(nn.functional.max_pool2d(y, 2)))
        return self.head(y.mean((2, 3)))


TARGETS = ("tensorrt", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 16, 8, 8))  # statistics
    return model.eval()


@pytest.fixture(scope="module")
def results(net):
    sizes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    return {name: transform(net, (torch.randn(2, 16, 8, 8),), target=name, dynamic_shapes=sizes) for name in TARGETS}


def data(count: int = 6, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 16, 8, 8, generator=generator) for _ in range(count)]


def quick(result, **options) -> Quantized:
    options = {"observer": "minmax", "bias_correction": None, "progress": False} | options
    return quantize(result, options.pop("calibration", data()), **options)


def sqnr(q: Quantized, net: nn.Module, seed: int = 5) -> float:
    (x,) = data(1, seed)
    with torch.no_grad():
        expected, got = net(x), q.model(x)
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


@pytest.mark.parametrize("target", TARGETS)
def test_a_quantized_net_is_near_the_net_and_equal_to_its_program(net, results, target):
    q = quantize(results[target], data(), progress=False)
    assert sqnr(q, net) > 28 and q.sqnr > 28
    (x,) = data(1, 5)
    with torch.no_grad():
        assert torch.equal(q.model(x), evaluate(q.program, [x])[0])
    assert q.source is results[target]


def test_the_present_weights_of_the_module_are_quantized(net):
    result = transform(net, (torch.randn(4, 16, 8, 8),), target="onnxruntime", check=False)
    generator = torch.Generator().manual_seed(7)
    other = {
        key: torch.rand(value.shape, generator=generator) - 0.3 if value.is_floating_point() else value
        for key, value in result.model.state_dict().items()
    }
    other = {key: value.abs() + 0.5 if key.endswith("running_var") else value for key, value in other.items()}
    result.model.load_state_dict(other, assign=True)
    program = dict(result.program.weights)
    q = quick(result)
    assert sqnr(q, result.model) > 30
    assert dict(result.program.weights) == program
    result.model.double()
    with pytest.raises(InputError, match=r"was converted to torch\.float64 after the model was transformed"):
        quick(result)


def test_the_result_in_float_stays_as_it_is(net, results):
    before = str(results["onnxruntime"].program), [w.data for w in results["onnxruntime"].program.weights.values()]
    quantize(results["onnxruntime"], data(), progress=False)
    after = str(results["onnxruntime"].program), [w.data for w in results["onnxruntime"].program.weights.values()]
    assert before[0] == after[0] and all(a is b for a, b in zip(before[1], after[1], strict=True))


def test_the_same_arguments_give_the_same_result(results):
    one, two = (quantize(results["openvino"], data(), progress=False) for _ in range(2))
    assert str(one.program) == str(two.program) and str(one) == str(two)
    states = one.model.state_dict(), two.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_values_that_are_concatenated_share_parameters_unless_one_would_lose(net, results):
    apart = [r.message for r in quick(results["openvino"]).remarks if r.kind == "apart"]
    assert len(apart) == 1 and " would lose " in apart[0] and "dB, more than 3, on common parameters" in apart[0]
    (told,) = {place.reason for place in quick(results["openvino"]).placement.placed if place.site.kind == "aten.cat"}
    assert told.startswith("in integers, which are not all of one scale: ") and told.partition(": ")[2] in apart[0]
    wide = copy.deepcopy(net)
    with torch.no_grad():
        wide.narrow.weight *= 2.5
    q = quick(transform(wide, (torch.randn(4, 16, 8, 8),), target="openvino"))
    assert {remark.kind for remark in q.remarks} == {"unified"}
    assert len({place.scale for place in q.report().places if place.region == "aten.cat" and place.is_placed}) == 1


def test_rules_take_places_out_and_give_others_fewer_bits(net, results):
    all_of_them = quick(results["openvino"])
    rules = {"*": Int8(weight_bits=4), "stem": None, nn.Linear: None, "block": Int8(observer="mse")}
    q = quick(results["openvino"], rules=rules)
    kept = {place.module for place in q.placement.places if not place.is_placed}
    assert {"stem", "head"} <= kept
    types = {place.module: place.type for place in q.report().places if place.role == "weight"}
    assert types == {"block": "s8", "narrow": "s4", "last": "s4"}
    quantized = {op.attributes["quant_max"] for op in weight_quantizations(q)}
    assert quantized == {None, 7}
    assert sqnr(q, net) < sqnr(all_of_them, net)


def weight_quantizations(q: Quantized):
    return [
        op
        for region in q.program.graph.operations()
        for op in ([] if region.body is None else region.body.operations())
        if op.name == "quant.quantize" and weight_of(region.operands[op.operands[0].index]) is not None
    ]


def test_a_format_for_what_stays_in_float_is_refused(results):
    message = (
        r"the rule 'aten.cat' gives a format to what stays in float in the table of tensorrt: aten.cat at `.*since "
    )
    with pytest.raises(InputError, match=message):
        quick(results["tensorrt"], rules={"aten.cat": Int8()})
    rules = {"head": Int8(weight_bits=4), nn.Linear: None}  # the last decides
    assert "head" in [each.module for each in quick(results["tensorrt"], rules=rules).placement.places]


def test_the_quantized_model_has_weights_of_its_own(net, results):
    q = quick(results["openvino"])
    storages = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    assert not storages & {tensor.data_ptr() for tensor in (*q.model.parameters(), *q.model.buffers())}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    q.model.train()
    optimizer = torch.optim.SGD(q.model.parameters(), lr=0.1)
    q.model(data(1)[0]).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_outputs_that_are_integers_are_right_or_wrong():
    torch.manual_seed(0)
    model = Calls(lambda m, x: m.head(x).argmax(-1), head=nn.Linear(8, 16)).eval()
    calls = [torch.randn(100, 8) for _ in range(4)]
    result = transform(model, (calls[0],), target="onnxruntime", check=False)
    q = quick(result, calibration=calls, default=Int8(weight_bits=3))
    wrong = sum(float((q.model(x) != model(x)).sum()) for x in calls)
    assert wrong and q.sqnr == pytest.approx(10 * math.log10(400 / wrong))
    assert min(q.sensitivity().values()) < 20


def test_the_default_format_is_for_places_that_no_rule_means(results):
    q = quick(results["openvino"], default=Int8(weight_bits=3), rules={"head": Int8()})
    assert {place.type for place in q.report().places if place.role == "weight"} == {"s3", "s8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": {"stm": None}}, "stm"),
        ({"rules": {"stem": 4}}, "the rule 'stem' has the value 4"),
        ({"rules": {"*": None}}, "nothing of the model can be quantized for openvino"),
        ({"observer": "max"}, "no observer 'max'"),
        ({"bias_correction": "slow"}, "no bias correction 'slow'"),
        ({"default": 8}, "default=8 is not an Int8"),
    ],
)
def test_wrong_arguments_are_refused(results, arguments, message):
    with pytest.raises(InputError, match=message):
        quick(results["openvino"], **arguments)


@pytest.mark.parametrize("bad", [1, 9, 4.0])
def test_bits_that_do_not_exist_are_refused(bad):
    with pytest.raises(InputError, match="no integers of weight_bits="):
        Int8(weight_bits=bad)
    with pytest.raises(InputError, match="no observer 'none'"):
        Int8(observer="none")


def test_a_model_is_quantized_once(results):
    q = quick(results["openvino"])
    with pytest.raises(InputError, match="quantize was given a Quantized"):
        quantize(q, data())
    again = transform(q.model, (data()[0],), target="openvino")
    with pytest.raises(Exception, match="quantized already"):
        quantize(again, data(), progress=False)


def test_a_model_in_training_mode_is_refused(net):
    trained = copy.deepcopy(net).train()
    with pytest.raises(InputError, match="is in training mode"):
        quick(transform(trained, (torch.randn(4, 16, 8, 8),), target="openvino"))


def test_data_that_does_not_fit_is_refused(results):
    with pytest.raises(CalibrationError, match="empty"):
        quick(results["openvino"], calibration=[])
    with pytest.raises(CalibrationError, match="must be 16, not 3"):
        quick(results["openvino"], calibration=[torch.randn(4, 3, 8, 8)])


def test_a_function_calibrates(results):
    def calibration(model):
        assert not model.training
        for x in data():
            assert model(x).shape == (4, 20)

    one, two = quick(results["openvino"]), quick(results["openvino"], calibration=calibration)
    assert str(one) == str(two)


def test_the_report_names_each_place_worst_first(results):
    q = quick(results["tensorrt"], rules={"head": None})
    report = q.report()
    placed = [place for place in report.places if place.is_placed]
    assert [place.sqnr for place in placed] == sorted(place.sqnr or 0 for place in placed)
    assert all(place.reason for place in report.places)
    assert "the rule 'head' excludes it" in {place.reason for place in report.places if place.module == "head"}
    plain = json.loads(json.dumps(q.to_json()))
    assert plain["target"] == "tensorrt" and len(plain["places"]) == len(report.places)
    text = str(q)
    for place in placed:
        assert place.scale.removesuffix(".scale") in text.replace("\n", "")
    assert "outputs" in text and "dB on 4" in text and repr(q).startswith("Quantized: Net for tensorrt")


def test_sensitivity_runs_one_quantizer_at_a_time(results):
    q = quick(results["openvino"], default=Int8(weight_bits=3), rules={"block": Int8()})
    found = q.sensitivity()
    assert list(found.values()) == sorted(found.values()) and len(found) == len(q._fitted.quantizers)
    assert next(iter(found)).endswith("weight_quantizer.scale") and min(found.values()) >= q.sqnr - 3
    outputs = {place.scale: place.output_sqnr for place in q.report().places if place.is_placed}
    assert outputs == {name: found[name] for name in outputs}
    assert "output" in str(q)


def test_the_module_is_an_ordinary_one(net, results):
    q = quick(results["openvino"])
    (x,) = data(1, 5)
    with torch.no_grad():
        expected = q.model(x)
    for twin in (copy.deepcopy(q.model), pickle.loads(pickle.dumps(q.model))):
        with torch.no_grad():
            assert torch.equal(twin(x), expected)
    q.model(x).sum().backward()
    gradients = [parameter.grad for parameter in q.model.parameters()]
    assert gradients and all(gradient is not None for gradient in gradients)
    state = {name: value + 1 for name, value in q.model.state_dict().items() if name.endswith("bias")}
    q.model.load_state_dict({**q.model.state_dict(), **state})


def test_progress_is_told(results):
    steps: list[str] = []
    quick(results["openvino"], progress=steps.append)
    assert steps[0] == "place" and steps[-1] == "emit" and "observe: call 6" in steps


def test_powers_of_two_need_folded_batch_norms(net, results):
    with pytest.raises(InputError, match="need batch norms folded, and one stands behind `stem`"):
        quick(results["openvino"], power_of_two=True)
