"""Where quantizers go: the rules of each target, and nets with the places that are hard."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compiler.codegen import emit
from compiler.onnx.files import onnx_model
from compiler.pipeline import parse_pipeline
from graphwright import transform
from ir.core import Operation
from ir.errors import InputError, ParseError, PassError
from ir.evaluate import evaluate
from ir.program import Program
from ir.quant.dialect import QUANTIZE
from passes.quant.place import is_quantized, place
from tests.compiler.drafts import randomize
from tests.passes.compiled import Calls
from tests.passes.quant.nets import SIGNED, activations, compiled, conv_bn, image, kinds, placed, reasons


def quantizers(program: Program) -> list[Operation]:
    return [op for op in program.graph.operations() if op.opdef is QUANTIZE]


def residual(m: Calls, x: torch.Tensor) -> torch.Tensor:
    y = m.a(x)
    return torch.relu(m.b(y) + y)


def residual_net() -> Calls:
    return Calls(residual, a=conv_bn(act=nn.ReLU()), b=conv_bn())


# --- the targets ---------------------------------------------------------------------------------------------


def test_tensorrt_quantizes_the_inputs_of_convolutions_and_the_skip_input_alone() -> None:
    program, placement = placed(residual_net(), image(), target="tensorrt")
    assert activations(placement) == [
        "conv_bn_act.input s8",
        "conv_bn_add_act.input s8",
        "conv_bn_add_act.residual s8",
    ]
    assert kinds(program) == ["quantize", "conv_bn_act", "quantize", "conv_bn_add_act"]
    assert [op.attributes["dtype"] for op in quantizers(program)] == [torch.int8, torch.int8]


def test_onnxruntime_wants_integers_behind_its_kernels_as_well() -> None:
    program, placement = placed(residual_net(), image(), target="onnxruntime")
    assert activations(placement) == [
        "conv_bn_act.input u8",
        "conv_bn_act.output u8",
        "conv_bn.input u8",
        "conv_bn.output u8",
        "add_act.input u8",
        "add_act.other u8",
        "add_act.output u8",
    ]
    assert kinds(program) == [
        *("quantize", "conv_bn_act", "quantize", "conv_bn", "quantize", "add_act", "quantize"),
        "dequantize",
    ]


def test_openvino_wants_unsigned_integers_at_the_inputs() -> None:
    _, placement = placed(residual_net(), image(), target="openvino")
    inputs = ["conv_bn_act.input", "conv_bn.input", "add_act.input", "add_act.other"]
    assert activations(placement) == [f"{each} u8" for each in inputs]


def test_a_table_may_want_unsigned_integers_where_nothing_is_negative() -> None:
    _, placement = placed(residual_net(), image(), target="openvino", table=SIGNED)
    assert activations(placement) == [
        "conv_bn_act.input s8",
        "conv_bn.input u8",
        "add_act.input s8",
        "add_act.other u8",
    ]


def test_a_region_reads_integers_and_quantizes_its_weight() -> None:
    program, _ = placed(residual_net(), image(), target="tensorrt")
    region = next(op for op in program.graph.operations() if op.body is not None)
    assert region.body is not None
    assert region.operand("input").type.dtype is torch.int8
    assert [op.name for op in region.body.operations()] == [
        *("quant.dequantize", "quant.quantize", "quant.dequantize", "aten.conv2d", "aten.batch_norm", "aten.relu"),
    ]
    assert region.attributes["parts"] == ("", "", "", "conv", "bn", "act")
    assert region.operands[-2:] == tuple(
        program.weights[f"a.0.weight_quantizer.{name}"].value for name in ("scale", "zero_point")
    )


def test_scales_of_weights_follow_from_the_largest_of_each_channel() -> None:
    program = compiled(residual_net(), image(), target="tensorrt")
    weight = program.weights["a.0.weight"].data
    assert weight is not None
    with torch.no_grad():
        weight[3] = 0
        weight[4] *= -1
    place(program, "tensorrt")
    scale = program.weights["a.0.weight_quantizer.scale"].data
    expected = weight.abs().amax((1, 2, 3)) / 127
    expected[3] = 1  # of a channel of zeros
    assert scale is not None and torch.equal(scale, expected)


def test_hosts_without_vnni_get_weights_of_seven_bits() -> None:
    program = compiled(residual_net(), image(), target="onnxruntime")
    parse_pipeline("place-quantizers{target=onnxruntime without-vnni=true}")(program)
    region = next(op for op in program.graph.operations() if op.body is not None)
    assert region.body is not None
    (q,) = [op for op in region.body.operations() if op.opdef is QUANTIZE]
    assert (q.attributes["quant_min"], q.attributes["quant_max"], q.attributes["axis"]) == (-64, 63, 0)
    scale, weight = (program.weights[f"a.0.weight{end}"].data for end in ("_quantizer.scale", ""))
    assert scale is not None and weight is not None
    assert torch.equal(scale, weight.abs().amax((1, 2, 3)) / 63)


# --- names and sharing of quantizers -------------------------------------------------------------------------


def test_a_quantizer_is_named_after_its_only_reader_or_after_the_value() -> None:
    program, placement = placed(residual_net(), image(), target="tensorrt")
    names = [each.scale for each in placement.places]
    assert names == [
        "a.0.input_quantizer.scale",
        "a.0.weight_quantizer.scale",
        "a.0.output_quantizer.scale",
        "a.0.output_quantizer.scale",
        "b.0.weight_quantizer.scale",
    ]
    for name in names:
        scale, zero_point = (program.weights[name.replace(".scale", end)] for end in (".scale", ".zero_point"))
        assert scale.persistent and not scale.requires_grad
        assert (scale.data is None) == (zero_point.data is None) == ("weight" not in name)
        assert zero_point.data is None or not zero_point.data.any()


def test_readers_in_integers_share_one_quantizer_and_readers_in_float_read_the_value() -> None:
    def net(m: Calls, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return m.b(y) + torch.tanh(m.c(y)) + torch.sigmoid(y)

    model = Calls(net, a=conv_bn(act=nn.ReLU()), b=conv_bn(), c=conv_bn())
    program, _ = placed(model, image(), target="tensorrt")
    (region,) = [op for op in program.graph.operations() if op.location.module_path == "a.0" and op.body is not None]
    sigmoid, q = region.result.users
    assert (sigmoid.name, q.name) == ("aten.sigmoid", "quant.quantize")
    assert {user.location.module_path for user in q.result.users} == {"b.0", "c.0"}


def test_behind_a_kernel_of_onnxruntime_all_read_what_its_integers_stand_for() -> None:
    program, _ = placed(Calls(lambda m, x: torch.tanh(m.a(x)), a=conv_bn()), image(), target="onnxruntime")
    assert kinds(program) == ["quantize", "conv_bn", "quantize", "dequantize", "tanh"]


def test_a_weight_of_two_calls_or_two_layers_has_one_quantizer_and_each_value_its_own() -> None:
    def net(m: Calls, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(m.a(torch.relu(m.a(x))), m.a.weight)

    program, placement = placed(Calls(net, a=nn.Conv2d(16, 16, 1)), image(), target="tensorrt")
    assert {each.scale for each in placement.places if each.role == "weight"} == {"a.weight_quantizer.scale"}
    assert len({each.scale for each in placement.places if each.role == "input"}) == 3
    assert len(program.weights) == 2 + 2 + 3 * 2

    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    tied[2].weight = tied[0].weight
    _, placement = placed(tied, torch.randn(4, 8), target="tensorrt")
    assert [each.scale for each in placement.places if each.role == "weight"] == ["0.weight_quantizer.scale"] * 2


# --- layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_a_convolution_in_groups_has_a_scale_for_each_output_channel(groups: int) -> None:
    program, _ = placed(nn.Sequential(nn.Conv2d(16, 32, 3, groups=groups)), image(), target="tensorrt")
    assert program.weights["0.weight_quantizer.scale"].type.shape == (32,)


@pytest.mark.parametrize(("target", "integers"), [("tensorrt", "s8"), ("openvino", "u8")])
def test_a_transposed_convolution_has_its_output_channels_in_dimension_1(target: str, integers: str) -> None:
    model = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(16, 24, 3, stride=2))
    program, placement = placed(model, image(), target=target)
    assert f"aten.conv_transpose2d.input.input {integers}" in activations(placement)
    assert kinds(program) == ["relu", "quantize", "conv_transpose2d"]
    region = program.graph.last
    weight = program.weights["1.weight"].data
    scale = program.weights["1.weight_quantizer.scale"].data
    assert region is not None and weight is not None and scale is not None
    assert torch.equal(scale, weight.abs().amax((0, 2, 3)) / 127)
    assert "axis=1" in str(program)


def test_onnxruntime_has_no_kernel_for_a_transposed_convolution() -> None:
    program, placement = placed(nn.Sequential(nn.ConvTranspose2d(16, 16, 3)), image(), target="onnxruntime")
    assert kinds(program) == ["conv_transpose2d"]
    assert reasons(placement) == {
        "aten.conv_transpose2d.input": "there is no kernel of integers for transposed convolutions"
    }


def test_tensorrt_leaves_few_channels_and_products_with_one_vector_in_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 32))
    _, placement = placed(model, image(3)[:1], target="tensorrt", patterns=None)
    found = [each.reason for each in placement.places]
    assert found[:2] == [
        "the convolution has 3 input channels, fewer than 16",
        "the convolution has 8 output channels, fewer than 16",
    ]
    _, placement = placed(nn.Sequential(nn.Linear(32, 8)), torch.randn(1, 32), target="tensorrt")
    assert reasons(placement) == {
        "linear": "the product is of a matrix and one vector, bound by the reading of the weight"
    }
    _, placement = placed(nn.Sequential(nn.Linear(32, 8)), torch.randn(2, 32), target="tensorrt")
    assert reasons(placement) == {}


def test_an_average_pool_runs_in_integers_only_where_integers_follow() -> None:
    last = Calls(lambda m, x: F.adaptive_avg_pool2d(m.a(x), 2), a=conv_bn())
    _, placement = placed(last, image(), target="tensorrt")
    assert reasons(placement) == {"adaptive_avg_pool2d": "what follows stays in float: an output of the model"}
    inner = Calls(lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 2)), a=conv_bn(), b=conv_bn())
    _, placement = placed(inner, image(), target="tensorrt")
    assert "adaptive_avg_pool2d.input s8" in activations(placement)


def test_a_computed_weight_stays_in_float() -> None:
    model = Calls(lambda m, x: F.conv2d(x, torch.tanh(m.a.weight)), a=nn.Conv2d(16, 16, 1))
    _, placement = placed(model, image(), target="tensorrt")
    assert reasons(placement)["conv_bn"] == "a weight is computed, so it has no scales of its own"


# --- pooling, layout, concatenation --------------------------------------------------------------------------


def test_pooling_and_layout_pass_integers_on() -> None:
    model = Calls(lambda m, x: m.fc(F.max_pool2d(m.a(x), 4).flatten(1)), a=conv_bn(), fc=nn.Linear(64, 8))
    for target in ("onnxruntime", "openvino"):
        program, _ = placed(model, image(), target=target)
        behind = kinds(program)[2:]
        assert behind == ["quantize", "dequantize", "max_pool2d", "reshape", "quantize", "linear"]
    program, _ = placed(model, image(), target="tensorrt")  # whose builder moves it
    assert kinds(program) == ["quantize", "conv_bn", "max_pool2d", "reshape", "quantize", "linear"]


def test_a_value_that_is_read_as_it_is_and_through_pooling_has_one_quantizer() -> None:
    net = Calls(lambda m, x: (m.b(F.max_pool2d(y := m.a(x), 2)), m.c(y)), a=conv_bn(), b=conv_bn(), c=conv_bn())
    program, _ = placed(net, image(), target="openvino")
    names = [op.input("scale").name for op in quantizers(program)]
    assert names == ["a.0.input_quantizer.scale", "a.0.output_quantizer.scale", "b.0.input_quantizer.scale"]


def test_a_quantizer_does_not_move_before_what_somebody_reads_in_float() -> None:
    def net(m: Calls, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(m.a(x), 2)
        return m.b(y) + torch.tanh(y)

    program, _ = placed(Calls(net, a=conv_bn(), b=conv_bn()), image(), target="openvino")
    pool = next(op for op in program.graph.operations() if op.name == "aten.max_pool2d")
    assert pool.input("self").defining_op.name == "fused.conv_bn"


def test_a_concatenation_between_convolutions() -> None:
    net = Calls(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv_bn(), b=conv_bn(), c=conv_bn(32))
    _, placement = placed(net, image(), target="openvino")
    assert [each for each in activations(placement) if "cat" in each] == ["aten.cat.input0 u8", "aten.cat.input1 u8"]
    _, placement = placed(net, image(), target="tensorrt")
    assert "the builder moves the Q" in reasons(placement)["aten.cat"]


# --- mobile nets and transformers ----------------------------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """As in MobileNetV3: hard-swish in front, a hard sigmoid as the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_bn(act=nn.Hardswish())
        self.down, self.up = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.last = conv_bn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        gate = F.hardsigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * gate)


def test_squeeze_excitation_behind_hard_swish() -> None:
    _, placement = placed(SqueezeExcitation(), image(), target="onnxruntime")
    assert reasons(placement) == {
        "aten.hardswish": "the table of onnxruntime has no row for aten.hardswish",
        "adaptive_avg_pool2d": "an operand is computed in float: aten.hardswish at `first.2`",
        "aten.hardsigmoid": "the table of onnxruntime has no row for aten.hardsigmoid",
        "aten.mul.Tensor": "no operand comes from a convolution in integers",
    }
    _, placement = placed(SqueezeExcitation(), image(), target="openvino")
    assert [each for each in activations(placement) if not each.startswith("conv_bn")] == [
        "adaptive_avg_pool2d.input u8",
        "aten.mul.Tensor.input u8",
        "aten.mul.Tensor.other u8",
    ]


class Block(nn.Module):
    """A transformer's layer with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x, mask)
        return out


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
def test_norms_and_the_residual_stream_of_transformers_stay_in_float(target: str) -> None:
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    program, placement = placed(Block(), torch.randn(2, 5, 16), mask, target=target)
    assert reasons(placement)["layer_norm"] == "norms need the range of floats"
    assert "aten.add.Tensor" in reasons(placement)
    of_attention = [each for each in activations(placement) if each.startswith("scaled")]
    if target != "tensorrt":
        assert of_attention == ["scaled_dot_product_attention float"]
    else:
        assert of_attention == [f"scaled_dot_product_attention.{name} s8" for name in ("query", "key", "value")]
    inputs = [each for each in activations(placement) if each.startswith(("linear", "mha"))]
    assert len(inputs) == 4
    assert all("float" not in each for each in inputs)
    sums = [op.result for op in program.graph.operations() if op.name == "aten.add.Tensor"]
    assert len(sums) == 2
    assert not any(user.opdef is QUANTIZE for value in sums for user in value.users)


# --- rules, numbers, errors ----------------------------------------------------------------------------------


def test_rules_take_first_and_last_layer_out() -> None:
    model = nn.Sequential(conv_bn(act=nn.ReLU()), conv_bn(act=nn.ReLU()), nn.Flatten(), nn.Linear(1024, 4))
    _, placement = placed(model, image(), target="openvino", rules={"0": None, "3": None})
    assert activations(placement) == ["conv_bn_act float", "conv_bn_act.input u8", "linear float"]
    assert reasons(placement) == {"conv_bn_act": "the rule '0' excludes it", "linear": "the rule '3' excludes it"}


def test_quantization_with_the_scale_1_changes_no_integer() -> None:
    """The values are small integers, which scale 1 leaves as they are: the program computes what it did."""
    model = nn.Sequential(conv_bn(4, act=nn.ReLU()), conv_bn(4, act=nn.ReLU()), nn.Flatten(), nn.Linear(256, 4)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
            if name.endswith("0.weight"):
                parameter.mul_(torch.rand(parameter.shape) < 0.2)
        for each in model.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eps = 0.0
    x = torch.randint(0, 4, (2, 4, 8, 8)).float()
    for target in ("onnxruntime", "openvino"):
        program = transform(model, (x,), target=target, check=False).program
        (expected,) = evaluate(program, [x])
        place(program, target)
        for name, weight in program.weights.items():
            if "quantizer" in name:
                start = torch.ones if name.endswith(".scale") else torch.zeros
                weight.data = start(weight.type.shape, dtype=weight.type.dtype)
        (found,) = evaluate(program, [x])
        assert torch.equal(expected, found)
        assert expected.abs().max() > 1


def test_without_ranges_a_program_is_not_run_nor_saved() -> None:
    """Scales of activations have no data: nothing takes 1 and 0 for a range."""
    program, placement = placed(residual_net(), image(), target="openvino")
    unset = [each.scale for each in placement.placed if each.role != "weight"]
    assert all(program.weights[name].data is None for name in unset)
    with pytest.raises(InputError, match=r"quantizer.scale' has no data[\s\S]*until ranges are set"):
        evaluate(program, [image()])
    module = emit(program).module
    with pytest.raises(InputError, match=r"range of a quantizer was never set[\s\S]*graphwright\.quant\.quantize"):
        module(image())
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    with pytest.raises(InputError, match=r"quantizer\.scale` has no data"):
        onnx_model(program, module)


def test_a_program_is_quantized_once() -> None:
    program, _ = placed(residual_net(), image(), target="openvino")
    assert is_quantized(program)
    with pytest.raises(PassError, match="the program is quantized already"):
        place(program, "openvino")
    with pytest.raises(PassError, match="pass `place-quantizers` cannot run: the program is quantized already"):
        parse_pipeline("place-quantizers{target=tensorrt}")(program)


def test_the_pass_in_text() -> None:
    text = "place-quantizers{target=openvino without=b.*,layer_norm},unify-quantizers{target=openvino}"
    pipeline = parse_pipeline(text)
    assert str(pipeline) == text
    with pytest.raises(ParseError, match="there is no placement table 'openvin'"):
        parse_pipeline("place-quantizers{target=openvin}")
    program = compiled(residual_net(), image(), target="openvino")
    with pytest.raises(InputError, match="the rule 'layer_norm' matches nothing in this program"):
        pipeline(program)


def test_remarks_say_why_each_place_is_in_integers_or_not() -> None:
    pipeline = parse_pipeline("place-quantizers{target=tensorrt without=b}")
    remarks = list(pipeline(compiled(residual_net(), image(), target="tensorrt")).log.remarks)
    assert [(each.kind, each.operation) for each in remarks] == [
        ("quantized", "conv_bn_act"),
        ("quantized", "conv_bn_act"),
        ("float", "conv_bn_add_act"),
    ]
    assert remarks[0].message.startswith("`input` of conv_bn_act at `a.0` is s8: the builder fuses")
    assert remarks[2].message == "conv_bn_add_act at `b.0` is float: the rule 'b' excludes it"


def test_without_types_nothing_is_placed() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 4))).eval()
    program = transform(torch.fx.symbolic_trace(model), target="openvino", check=False).program
    placement = place(program, "openvino")
    assert "not known to be of floating-point numbers" in reasons(placement)["linear"]
    assert not is_quantized(program)


def test_weights_without_data_have_the_scale_1() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(4, 4)), torch.empty(2, 4)
    program = transform(model.eval(), (x,), target="openvino", check=False).program
    place(program, "openvino")
    assert program.weights["0.weight_quantizer.scale"].type.shape == (4,)
