from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from compiler.quant.biases import added_to_products, widen_overflowing
from compiler.quant.calibration import CalibrationError
from compiler.quant.correction import correct_biases, noise_and_power, rounded_outputs
from compiler.quant.fitting import Fitted, Options, fit_program
from compiler.quant.quantizers import is_quantized, quantizers
from compiler.quant.ranges import decibels, fit, run_program
from compiler.quant.run import rounded, rounding_kernels, unrounded
from compiler.quant.sites import sites_of
from graphwright import transform
from graphwright.quant import quantize
from ir.errors import InputError
from ir.evaluate import evaluate
from ir.program import Program, copy_program
from ir.verify import verify
from passes.quant.place import place
from passes.rewrite.remarks import Remark
from tests.compiler.drafts import randomize
from tests.compiler.quant.placed import two_convolutions


def data(count: int = 8, batch: int = 8, *, seed: int = 1, offset: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, 6, 6, generator=generator) + offset for _ in range(count)]


def tensor(program: Program, name: str) -> torch.Tensor:
    found = program.weights[name].data
    assert found is not None
    return found.detach()


def sqnr(fitted: Fitted, tensors: list[torch.Tensor]) -> float:
    calls = [(x,) for x in tensors]
    outputs = rounded_outputs(fitted.program, fitted.quantizers, calls, fitted.originals)
    noise, power = noise_and_power(outputs)
    return decibels(power, noise)


def shifted(program: Program) -> Program:
    """Return the program with weights that all are rounded downwards: a shift that a correction takes back."""
    for name in ("a.weight", "b.weight"):
        weight = tensor(program, name)
        step = weight.detach().abs().flatten(1).amax(1) / 7
        column = step.reshape(-1, 1, 1, 1)
        with torch.no_grad():
            # a fraction of 0.45 beside the channel's largest, which is on the grid
            new = (torch.floor(weight / column) + 0.45) * column
            largest = weight.flatten(1).abs().argmax(1)
            flat = new.flatten(1)
            flat[torch.arange(len(flat)), largest] = step * 7
        program.weights[name].data = torch.nn.Parameter(flat.reshape(weight.shape))
    for entry in quantizers(program).values():
        for op in entry.operations if entry.weight is not None else ():
            op.set_attribute("quant_min", -7)
            op.set_attribute("quant_max", 7)
    return program


def test_quantizers_of_a_program():
    program = two_convolutions()
    verify(program)
    found = quantizers(program)
    assert [(name.partition(".scale")[0], entry.axis, entry.ends) for name, entry in found.items()] == [
        ("a.input_quantizer", None, (0, 255)),
        ("a.weight_quantizer", 0, (-128, 127)),
        ("b.input_quantizer", None, (0, 255)),
        ("b.weight_quantizer", 0, (-128, 127)),
    ]
    assert [entry.weight and entry.weight.name for entry in found.values()] == [None, "a.weight", None, "b.weight"]
    assert [[op.attributes["kind"] for op in entry.regions] for entry in found.values()] == [
        ["conv_act"], ["conv_act"], ["conv"], ["conv"],
    ]  # fmt: skip
    assert is_quantized(program)


@pytest.mark.parametrize("integers", ["u8", "i8"])
def test_rounding_is_what_the_integers_give_bit_for_bit(integers):
    program = two_convolutions(integers=integers)
    fit_program(program, data(2), Options(bias_correction=None))
    (x,) = data(1, seed=5)
    expected = evaluate(program, [x])[0]
    assert torch.equal(run_program(program, (x,), rounding_kernels(rounded))[0], expected)
    assert not torch.equal(run_program(program, (x,), rounding_kernels(unrounded))[0], expected)


@pytest.mark.parametrize("integers", ["u8", "i8"])
@pytest.mark.parametrize("observer", ["minmax", "mse", "percentile"])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_fitted_program_is_near_the_program_in_float(integers, observer, power_of_two):
    program = two_convolutions(integers=integers)
    fitted = fit_program(program, data(), Options(observer, "sequential", power_of_two))
    verify(program)
    assert sqnr(fitted, data(2, seed=3)) > (29 if power_of_two else 37)
    for name, entry in fitted.quantizers.items():
        scale = entry.scale.data
        assert scale is not None and bool((scale > 0).all()) and scale.shape == entry.scale.type.shape
        assert entry.zero_point.data.dtype == entry.dtype
        if power_of_two:
            assert torch.equal(torch.exp2(torch.round(torch.log2(scale))), scale)
        if entry.weight is None:
            scores = fit(
                fitted.statistics[name], entry.grid(power_of_two=False), float(scale), int(entry.zero_point.data)
            )
            assert scores.sqnr > 25 and scores.saturated < 0.01


def test_the_same_data_gives_the_same_program():
    texts = []
    for order in (1, 1, -1):
        program = two_convolutions()
        fit_program(program, data()[::order], Options(bias_correction=None, seed=3))
        texts.append([weight.data.tolist() for weight in program.weights.values()])
    assert texts[0] == texts[1] == texts[2]


def test_the_model_s_own_tensors_stay_as_they_are():
    original = two_convolutions()
    before = {name: (weight.data, weight.data.clone()) for name, weight in original.weights.items()}
    fit_program(shifted(copy_program(original)), data(), Options(power_of_two=True))
    assert all(original.weights[name].data is same and torch.equal(same, copy) for name, (same, copy) in before.items())


@pytest.mark.parametrize("form", ["fast", "sequential"])
@pytest.mark.parametrize("calls", [1, 8])
def test_corrected_biases_take_a_shift_back(form, calls):
    plain, corrected = shifted(two_convolutions()), shifted(two_convolutions())
    before = fit_program(plain, data(calls, offset=1.0), Options("minmax", None))
    after = fit_program(corrected, data(calls, offset=1.0), Options("minmax", form))
    assert sqnr(after, data(4, seed=3, offset=1.0)) > sqnr(before, data(4, seed=3, offset=1.0)) + 9
    assert [remark.kind for remark in after.remarks] == ["applied", "applied"]
    assert "`a.bias` corrected in 6 channels" in after.remarks[0].message


@pytest.mark.parametrize("form", ["fast", "sequential"])
def test_a_correction_that_raises_the_error_of_held_back_data_is_not_kept(form):
    program = shifted(two_convolutions())
    before = tensor(program, "a.bias").clone()
    calls = [x * (-1.0 if number % 4 == 3 else 1.0) for number, x in enumerate(data(offset=2.0))]
    remarks = fit_program(program, calls, Options(bias_correction=form)).remarks
    unit = tensor(program, "a.input_quantizer.scale") * tensor(program, "a.weight_quantizer.scale")
    assert bool(((tensor(program, "a.bias") - before).abs() <= 0.501 * unit).all())  # rounded to the grid alone
    assert not any("`a.bias` corrected" in remark.message for remark in remarks)


def test_one_input_is_not_enough_to_correct_and_to_judge():
    program = two_convolutions(batch=1)
    (remark,) = fit_program(program, data(1, 1), Options()).remarks
    assert "one input is not enough to correct by some and judge by others" in remark.message


def test_a_bias_that_two_layers_read_is_not_corrected():
    program = shifted(two_convolutions())
    fit_program(program, data(2), Options(bias_correction=None))
    program.graph.set_outputs([*program.graph.outputs, program.weights["a.bias"].value])
    remarks = correct_biases(program, quantizers(program), [(x,) for x in data(4)], form="fast")
    assert "`an unknown place`: not corrected: the bias `a.bias` is read at several places" in map(message_of, remarks)


def message_of(remark: Remark) -> str:
    return remark.message


def test_values_that_are_no_numbers_are_named():
    program = two_convolutions()
    program.weights["a.weight"].data = torch.full((6, 3, 3, 3), 1e38)
    with pytest.raises(CalibrationError, match=r"in call 1 .*an infinity: .*`b\.input_quantizer\.scale`"):
        fit_program(program, data(1, offset=100.0), Options())
    program.weights["a.weight"].data = torch.full((6, 3, 3, 3), math.nan)
    with pytest.raises(CalibrationError, match="holds NaN"):
        fit_program(program, data(1), Options())


def test_weights_that_hold_nothing_are_named():
    program = two_convolutions()
    program.weights["b.weight"].data = torch.empty(4, 6, 1, 1, device="meta")
    with pytest.raises(Exception, match=r"b\.weight|meta"):
        fit_program(program, data(1), Options())


def test_a_place_that_no_value_reaches():
    program = two_convolutions(batch=0)
    with pytest.raises(CalibrationError, match=r"no value was seen that `a\.input_quantizer\.scale` would scale"):
        fit_program(program, data(1, 0), Options())


def test_a_channel_of_zeros_and_a_constant_value():
    program = two_convolutions()
    with torch.no_grad():
        tensor(program, "a.weight")[2] = 0
        tensor(program, "a.weight")[3] = 0
        tensor(program, "a.bias")[2] = 1e6
        tensor(program, "a.bias")[3] = 0
    fit_program(program, [torch.full((8, 3, 6, 6), 0.7)], Options("minmax", None))
    scales = tensor(program, "a.weight_quantizer.scale")
    # the bias of a channel of zeros is a multiple of its scale
    assert scales[3] == 2.0**-16 and 2**30 <= 1e6 / (scales[2] * 0.7 / 255) < 2**31
    assert float(tensor(program, "a.input_quantizer.scale")) == pytest.approx(0.7 / 255)
    (x,) = data(1)
    assert bool(torch.isfinite(evaluate(program, [x])[0]).all())


def test_an_outlier_is_left_out_by_all_but_min_max():
    calls = data()
    calls[0][0, 0, 0, 0] = 1e4
    scales = {}
    for observer in ("minmax", "mse", "percentile"):
        program = two_convolutions(integers="i8")
        fit_program(program, calls, Options(observer, None))
        scales[observer] = float(tensor(program, "a.input_quantizer.scale"))
    assert scales["minmax"] == pytest.approx(1e4 / 127)
    assert scales["percentile"] == pytest.approx(1e4 / 127) or scales["percentile"] < 1


def test_a_bias_that_overflows_int32_widens_the_scale_of_its_weights():
    program = two_convolutions()
    with torch.no_grad():
        tensor(program, "a.weight")[1] *= 1e-10
    fitted = fit_program(program, data(), Options("minmax", None))
    assert [remark.message.partition(": ")[2] for remark in fitted.remarks] == [
        "the scale of `a.weight_quantizer.scale` was widened in 1 channels, whose bias overflowed int32"
    ]
    unit = tensor(program, "a.input_quantizer.scale").double() * tensor(program, "a.weight_quantizer.scale")
    assert bool((tensor(program, "a.bias").double().abs() / unit < 2**31).all())
    assert widen_overflowing(sites_of(program, quantizers(program))) == []
    assert sqnr(fitted, data(2, seed=3)) > 35


def test_biases_are_those_of_the_file_behind_batch_norms_too():
    """Engines add integers of 32 bits: with a bias off their grid, one integer in some hundred was a step apart."""
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())).eval()
    x = torch.rand(2, 3, 8, 8)
    result = transform(model, (x,), target="onnxruntime", check=False)
    q = quantize(result, [x, x], observer="minmax", bias_correction=None, progress=False)
    (site,) = sites_of(q.program, quantizers(q.program))
    added, scale = added_to_products(site), site.quantizer.scale.data
    assert added is not None and scale is not None and site.input is not None and site.input.scale.data is not None
    steps = added / (scale.double() * site.input.scale.data.double())
    assert bool(((steps - steps.round()).abs() < 1e-6 * steps.abs() + 1e-3).all())  # as near as float32 is
    assert site.result is not site.layer and 0 < float((q.model(x) - result.model(x)).detach().abs().max()) < 0.1


def test_sums_that_float32_does_not_hold_are_remarked():
    program = two_convolutions()
    fitted = fit_program(program, data(), Options("minmax", None, power_of_two=True))
    assert not any("sums" in str(each) for each in fitted.remarks)
    with torch.no_grad():
        tensor(program, "b.bias")[1] = 2e4
    fitted = fit_program(program, data(), Options("minmax", None, power_of_two=True))
    (told,) = [str(each) for each in fitted.remarks if "sums" in str(each)]
    assert "its sums may reach" in told and "2^24" in told


def test_biases_are_on_the_grid_of_the_products_for_powers_of_two():
    program = two_convolutions()
    fit_program(program, data(), Options(power_of_two=True))
    for layer in "ab":
        unit = tensor(program, f"{layer}.input_quantizer.scale") * tensor(program, f"{layer}.weight_quantizer.scale")
        steps = tensor(program, f"{layer}.bias") / unit
        assert torch.equal(steps, steps.round())
    (x,) = data(1, seed=5)
    # then all sums are exact, in whatever order they are computed
    in_double = evaluate(
        program, [x], {n: w.data.double() for n, w in program.weights.items() if w.data.is_floating_point()}
    )
    assert torch.equal(evaluate(program, [x])[0].double(), in_double[0].double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observer": "max"}, "no observer 'max'"),
        ({"bias_correction": "slow"}, "no bias correction 'slow'"),
        ({"seed": None}, "seed=None is not an integer"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Options(**options)


@pytest.mark.parametrize("bits", [8, 4])
def test_ranges_of_few_bits_are_those_of_the_least_error_of_the_results(bits):
    """One weight, large, meets inputs that are nearly 0: clipping it gains, and the weights alone do not show that."""
    program = two_convolutions()
    tensor(program, "a.weight")[:, 1, 0, 0] = 4.0
    calls = data()
    for call in calls:
        call[:, 1] *= 1e-3
    for op in (op for entry in quantizers(program).values() if entry.weight is not None for op in entry.operations):
        op.set_attribute("quant_min", -(2 ** (bits - 1)) + 1)
        op.set_attribute("quant_max", 2 ** (bits - 1) - 1)
    widest = copy_program(program)
    found = sqnr(fit_program(program, calls, Options(bias_correction=None)), calls)
    plain = sqnr(fit_program(widest, calls, Options("minmax", None)), calls)
    narrowed = tensor(program, "a.weight_quantizer.scale") < tensor(widest, "a.weight_quantizer.scale")
    assert bool(narrowed.all()) if bits == 4 else not bool(narrowed.any())
    assert found > plain + (6 if bits == 4 else -1)


@pytest.mark.parametrize("layer", ["conv1d", "transposed", "linear"])
def test_ranges_are_judged_by_every_kind_of_layer(layer):
    torch.manual_seed(0)
    layers = {
        "conv1d": (nn.Conv1d(16, 32, 3, groups=2, stride=2), (4, 16, 9)),
        "transposed": (nn.ConvTranspose2d(16, 32, 3, stride=2), (4, 16, 5, 5)),
        "linear": (nn.Linear(16, 32), (4, 3, 16)),
    }
    module, shape = layers[layer]
    calls = [torch.randn(shape) for _ in range(6)]
    target = "tensorrt" if layer == "transposed" else "openvino"  # the latter has no zero points there
    program = transform(module.eval(), (calls[0],), target=target, check=False).program
    place(program, target)
    (entry,) = (each for each in quantizers(program).values() if each.weight is not None)
    for op in entry.operations:
        op.set_attribute("quant_max", 7)
    widest = copy_program(program)
    found = sqnr(fit_program(program, calls, Options(bias_correction=None)), calls)
    assert found > sqnr(fit_program(widest, calls, Options("minmax", None)), calls) + 0.5
