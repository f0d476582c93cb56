"""ONNX files of float results: what is in them, what they are called, and what is refused."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from compiler.onnx.files import onnx_model, serialized
from graphwright import CodegenError, InputError, MissingPackageError, transform
from tests.helpers import randomize_batch_norm

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x, mask=None, *, causal: bool = False, options=None):
        batch, length, width = x.shape
        q, k, v = (t.reshape(batch, length, 4, 4).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        y = self.out(y.transpose(1, 2).reshape(batch, length, width)) + x
        return {"logits": y, "state": (options["scale"] * y if options else y, None, 3)}


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1)
    )
    model.append(nn.Flatten())
    model.append(nn.Linear(8, 5))
    randomize_batch_norm(model, torch.Generator().manual_seed(0))
    return model.eval()


def run(file, *inputs):
    session = onnxruntime.InferenceSession(str(file))
    given = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, given)


def test_a_file_has_the_names_of_modules_and_the_dynamic_sizes(tmp_path):
    model, path = convolutional(), tmp_path / "net.onnx"
    result = transform(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch")},))
    result.save_onnx(path)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    names = ["0/Conv", "2/Relu", "4/GlobalAveragePool", "6/Conv", "5/Reshape"]
    assert [node.name for node in proto.graph.node] == names
    assert {"0.weight", "0.bias", "6.weight", "6.bias"} <= {weight.name for weight in proto.graph.initializer}
    ends = [(value.name, value.type.tensor_type.shape.dim[0].dim_param) for value in proto.graph.input]
    ends += [(value.name, value.type.tensor_type.shape.dim[0].dim_param) for value in proto.graph.output]
    assert ends == [("input", "batch"), ("output", "batch")]
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        np.testing.assert_allclose(run(path, x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_same_result_gives_the_same_bytes_and_other_data_beside_the_file_the_same_numbers(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    result = transform(convolutional(), (x,))
    first, second = (serialized(onnx_model(result.program, result.model)) for _ in range(2))
    assert first is not None and first == second
    result.save_onnx(tmp_path / "net.onnx", external_data=True)
    result.save_onnx(tmp_path / "net.onnx", external_data=True)  # over the old one
    assert (tmp_path / "net.onnx.data").exists()
    session = onnxruntime.InferenceSession(first)
    np.testing.assert_array_equal(run(tmp_path / "net.onnx", x)[0], session.run(None, {"input": x.numpy()})[0])


def test_containers_keywords_and_constants_are_in_the_metadata(tmp_path):
    model = Attention().eval()
    kwargs = {"causal": True, "options": {"scale": torch.tensor(2.0)}}
    result = transform(model, (torch.randn(2, 5, 16),), kwargs)
    result.save_onnx(tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    held = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(held["graphwright"]) == {
        "inputs": {"x": "f32[2, 5, 16]", "options_scale": "f32[]"},
        "outputs": {"logits": "f32[2, 5, 16]", "state_0": "f32[2, 5, 16]"},
        "constants": {"causal": "True"},
        "results": {
            "['logits']": "logits",
            "['state'][0]": "state_0",
            "['state'][1]": "None",
            "['state'][2]": "3",
        },
    }


@pytest.mark.parametrize("kind", ["bool", "float", "causal", "causal and masked"])
def test_rows_that_are_masked_throughout_give_zero_as_in_pytorch(kind, tmp_path):
    model, x = Attention().eval(), torch.randn(2, 5, 16)
    mask = torch.rand(2, 1, 5, 5) > 0.5
    mask[0, 0, 2] = False
    if kind == "causal":
        args: tuple[torch.Tensor, ...] = (x,)
    else:
        args = (x, mask if kind == "bool" else torch.where(mask, 0.3, -torch.inf))
    kwargs = {"causal": kind.startswith("causal")}
    transform(model, args, kwargs).save_onnx(tmp_path / "net.onnx")
    expected = model(*args, **kwargs)["logits"].detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "net.onnx", *args)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_file_has_the_present_weights(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    result = transform(convolutional(), (x,))
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.mul_(1.5)
        head = result.model.get_submodule("6.conv")
        head.bias = nn.Parameter(head.bias + 1)  # assigned, so the program's own tensor is another
    result.save_onnx(tmp_path / "net.onnx")
    expected = result.model(x).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_trains_is_written_in_eval_mode_only(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    result = transform(convolutional().train(), (x,))
    with pytest.raises(InputError, match=r"`0\.conv` is in training mode|in training mode"):
        result.save_onnx(tmp_path / "net.onnx")
    result.model.eval()
    result.save_onnx(tmp_path / "net.onnx")
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x)[0], result.model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.count: torch.Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.add_(1)
        return x * self.count


class Noise(nn.Module):
    def forward(self, x):
        return F.dropout(x, training=True)


class InPlace(nn.Module):
    def forward(self, x):
        x.add_(1)
        return x * 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Counter(), "each call writes the buffer `count`"),
        (Noise(), "draws random numbers in eval mode too"),
        (InPlace(), "each call writes its argument number 0"),
        (nn.LSTM(3, 4, proj_size=2), "the hidden state is projected"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(model, reason, tmp_path):
    result = transform(model.eval(), (torch.randn(2, 3) if isinstance(model, nn.LSTM) else torch.randn(3),))
    with pytest.raises(InputError, match=reason):
        result.save_onnx(tmp_path / "net.onnx")


class Distances(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x)


def test_an_operation_is_named_of_whose_parts_one_cannot_be_written(tmp_path):
    with pytest.raises(CodegenError, match=r"aten\.cdist cannot be written in ONNX 20: [\s\S]*at .*test_files\.py:\d+"):
        transform(Distances().eval(), (torch.randn(4, 3),)).save_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "of",
    [
        lambda x: x.amax(()) - x.amin((), keepdim=True),
        lambda x: x[0, 0, 0, 0].amax(),
        lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
        lambda x: F.pad(x, (-1, 2, 3, -2), mode="circular"),
        lambda x: F.interpolate(x, size=(3, 9), mode="bilinear", antialias=True, align_corners=True),
        lambda x: F.interpolate(x, scale_factor=(0.5, 0.4), mode="bicubic", antialias=True),
        lambda x: x.scatter_reduce(3, torch.tensor([0, 3, 0]).expand(1, 2, 5, 3), x, "mean"),
        lambda x: x.scatter_reduce(3, torch.tensor([0, 3, 0]).expand(1, 2, 5, 3), x, "mean", include_self=False),
        lambda x: x.scatter(3, torch.tensor([0, 3, 0]).expand(1, 2, 5, 3), x, reduce="multiply"),
    ],
)
def test_what_engines_lack_or_read_otherwise_is_written_with_what_they_have(of):
    class Net(nn.Module):
        def forward(self, x):
            return of(x) * 2

    x = torch.randn(1, 2, 5, 6)
    result = transform(Net().eval(), (x,))
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
        torch.testing.assert_close(result.to_runtime(engine, threads=1)(x), of(x) * 2, rtol=1e-6, atol=1e-6)


class Resize(nn.Module):
    def __init__(self, *size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x):
        return F.interpolate(x, size=self.size, mode="bilinear", antialias=True)


def test_a_resize_whose_numbers_depend_on_strides_is_refused(tmp_path):
    x = torch.randn(1, 2, 9, 9)
    with pytest.raises(
        CodegenError, match=r"from 9 x 9 to 2 x 1 depends on the strides[\s\S]*remedy: resize the rows and"
    ):
        transform(Resize(2, 1).eval(), (x,), check=False).save_onnx(tmp_path / "net.onnx")
    model = nn.Sequential(Resize(2, 9), Resize(2, 1)).eval()  # as the remedy says
    transform(model, (x,)).save_onnx(tmp_path / "net.onnx")
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x)[0], model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_on_the_meta_device_and_a_converted_one_are_refused(tmp_path):
    with torch.device("meta"):
        result = transform(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    with pytest.raises(InputError, match="has no data"):
        result.save_onnx(tmp_path / "net.onnx")
    result = transform(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    result.model.double()
    with pytest.raises(InputError, match=r"was converted to torch\.float64"):
        result.save_onnx(tmp_path / "net.onnx")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    result = transform(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"graphwright\[onnx\]"):
        result.save_onnx(tmp_path / "net.onnx")


class Small(nn.Module):
    """Numbers near 0 and 1, which the exporter's own optimization takes for 0 and 1."""

    def forward(self, x):
        shares = x / (x.abs().sum(-1, keepdim=True) + 1e-12)
        return shares, torch.log(x.abs() + 1e-10), (x - 1e-9) * 1e9, (x * 1.000001 - x) * 1e6, (x / 1.0000005 - x) * 1e6


@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.linspace(-3, 3, 12).reshape(3, 4)], ids=["zeros", "numbers"])
def test_small_numbers_stay(tmp_path, x):
    model = Small().eval()
    transform(model, (x,)).save_onnx(tmp_path / "net.onnx")
    for found, expected in zip(run(tmp_path / "net.onnx", x), model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-6, atol=0)


def test_numbers_keep_64_bits_in_float64(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            ends = x.clamp(-0.1, 0.7), x.clamp(max=0.3), torch.add(x, 0.1, alpha=3)
            return (
                x * 1.000000001 - 1e-12,
                0.1 - x,
                torch.where(x > 0, x, 0.7),
                x.abs() ** 1.3,
                torch.div(x, 0.1),
                *ends,
            )

    model, x = Net().eval(), torch.linspace(-1, 1, 9, dtype=torch.float64)
    transform(model, (x,)).save_onnx(tmp_path / "net.onnx")
    for found, expected in zip(run(tmp_path / "net.onnx", x), model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-14, atol=0)


def test_floor_division_of_floats_is_that_of_pytorch(tmp_path):
    class Net(nn.Module):
        def forward(self, x, y):
            return x // 0.7, torch.div(x, y, rounding_mode="floor"), torch.floor_divide(x, y), x // 3

    x = torch.tensor([-5.5, 4.0, 7.2, 0.7, 2.1, 1.4, -0.7, 0.0, -0.0, 1e30])
    y = torch.tensor([0.7, -0.1, 0.1, -0.7, 0.7, 0.0, 0.2, 3.0, -3.0, 1e-5])
    model = Net().eval()
    transform(model, (x, y)).save_onnx(tmp_path / "net.onnx")
    for found, expected in zip(run(tmp_path / "net.onnx", x, y), model(x, y), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_queries_may_have_more_heads_than_keys(tmp_path, causal):
    class Net(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    torch.manual_seed(0)
    model, given = Net().eval(), (torch.randn(2, 6, 7, 5), torch.randn(2, 2, 7, 5), torch.randn(2, 2, 7, 5))
    transform(model, given).save_onnx(tmp_path / "net.onnx")
    (found,) = run(tmp_path / "net.onnx", *given)
    torch.testing.assert_close(torch.from_numpy(found), model(*given))


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_has_the_statistics_of_each_sample(tmp_path, affine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=affine), nn.ReLU()).eval()
    if affine:
        nn.init.normal_(model[1].weight)
        nn.init.normal_(model[1].bias)
    x = torch.randn(5, 3, 9, 9)
    transform(model, (x[:2],), dynamic_shapes=({0: Dim("batch")},)).save_onnx(tmp_path / "net.onnx")
    (found,) = run(tmp_path / "net.onnx", x)
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "sizes"),
    [
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (10, 7)),
        pytest.param(nn.AvgPool2d(3, 2, ceil_mode=True), (10, 10), marks=pytest.mark.long),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (10, 9)),
        (nn.AvgPool2d(3, 2, 1, divisor_override=5), (9, 8)),
        (nn.AvgPool1d(3, 2, 1, ceil_mode=True), (10,)),
        pytest.param(nn.AvgPool3d(3, 2, 1, ceil_mode=True), (6, 7, 8), marks=pytest.mark.long),
        (nn.MaxPool2d(2, 3, 1, ceil_mode=True), (7, 9)),  # of a dimension the last window is in the padding alone
        pytest.param(nn.MaxPool2d(3, 5, ceil_mode=True), (5, 9), marks=pytest.mark.long),  # and reaches beyond in one
        pytest.param(nn.MaxPool1d(2, 2, 1, ceil_mode=True), (7,), marks=pytest.mark.long),
        (nn.MaxPool1d(2, 2, ceil_mode=True), (1,)),  # the window is larger than the map
    ],
    ids=str,
)
def test_windows_beyond_the_padding_are_of_what_is_inside(pool, sizes):
    x = torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(0))
    result = transform(pool.eval(), (x,))
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        torch.testing.assert_close(result.to_runtime(engine)(x), pool(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.Conv3d(3, 4, 2, bias=False), (3, 4, 5)),  # the exporter gives it a bias of two rows
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1, (1, 3), 2)), (7, 7)),  # OpenVINO forgets the padding
        (nn.AdaptiveAvgPool3d((3, 1, 4)), (7, 8, 6)),
    ],
    ids=str,
)
def test_layers_that_exporters_or_engines_err_at_are_written_otherwise(layer, sizes):
    x = torch.randn(2, 3, *sizes, generator=torch.Generator().manual_seed(0))
    result = transform(layer.eval(), (x,), check=False)
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        with torch.no_grad():
            torch.testing.assert_close(result.to_runtime(engine)(x), layer(x), rtol=1e-5, atol=1e-6)


def test_sizes_that_shrink_to_1_in_small_examples_stay_dynamic(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 4, 1)).eval()
    sizes = {2: Dim.AUTO, 3: Dim.AUTO}
    transform(model, (torch.randn(2, 3, 10, 10),), dynamic_shapes=(sizes,)).save_onnx(tmp_path / "net.onnx")
    for h, w in ((5, 7), (9, 12), (64, 6)):
        x = torch.randn(2, 3, h, w)
        (found,) = run(tmp_path / "net.onnx", x)
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_statistics_of_a_batch_are_refused(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            mean, var = torch.zeros(3), torch.ones(3)
            return torch.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)[0]

    with pytest.raises(InputError, match="statistics of each batch"):
        transform(Net().eval(), (torch.randn(2, 3),)).save_onnx(tmp_path / "net.onnx")


def test_what_is_infinite_stays_so(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return x.clamp(min=0.5), x.clamp(max=0.5), torch.clamp_min(x, 0.5), F.relu(x), F.softplus(x)

    x = torch.tensor([math.inf, -math.inf, math.nan, 0.25, 1.0])
    transform(Net().eval(), (x,)).save_onnx(tmp_path / "net.onnx")
    for found, expected in zip(run(tmp_path / "net.onnx", x), Net()(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, equal_nan=True)


def test_a_constant_is_no_weight_by_its_name(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return torch.lerp(x, x.flip(1), 0.3)

    x = torch.randn(2, 6)
    transform(Net().eval(), (x,)).save_onnx(tmp_path / "net.onnx")
    (found,) = run(tmp_path / "net.onnx", x)
    torch.testing.assert_close(torch.from_numpy(found), Net()(x))


def test_small_numbers_keep_their_digits(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return torch.expm1(x), torch.log1p(x), F.logsigmoid(x), F.logsigmoid(-x), F.logsigmoid(-10 * x)

    x = torch.tensor([0.0, 1e-9, -1e-9, 1e-4, -1e-4, 0.3, -0.3, 0.9, -0.9, 5.0, 80.0, math.inf, math.nan])
    model = Net().eval()
    transform(model, (x,)).save_onnx(tmp_path / "net.onnx")
    for found, expected in zip(run(tmp_path / "net.onnx", x), model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-6, atol=0, equal_nan=True)
