"""`to_runtime`: the original's signature and result, computed by an engine."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.export import Dim

from compiler.runtime.engines import engine_class
from graphwright import EngineError, InputError, MissingPackageError, transform

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

ENGINES = ("onnxruntime", "openvino")


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, pair, *, flag: bool = False, extra=None):
        y = self.layer(x) + pair[0]
        if flag:
            y = -y
        return {"y": y, "all": [y.sum(1, keepdim=True), x, None, 7], "mask": y > 0, "count": (y > 0).sum()}


@pytest.fixture(scope="module", params=ENGINES)
def made(request):
    pytest.importorskip(request.param, reason=f"the extra `{request.param}` is not installed")
    torch.manual_seed(0)
    model = Nested().eval()
    shapes = {"x": {0: Dim("batch")}, "pair": [{0: Dim("batch")}, None], "flag": None}
    result = transform(model, (torch.randn(4, 8), [torch.randn(4, 8), None]), {"flag": True}, dynamic_shapes=shapes)
    return request.param, model, result.to_runtime(request.param, threads=1)


def compare(module, model, batch):
    x, pair = torch.randn(batch, 8), [torch.randn(batch, 8), None]
    with torch.no_grad():
        found, expected = module(x, pair, flag=True), model(x, pair, flag=True)
    assert list(found) == list(expected) and type(found["all"]) is list
    torch.testing.assert_close(found, expected)
    assert found["all"][1] is x


def test_it_is_called_as_the_original_is(made):
    _, model, module = made
    for batch in (4, 1, 9, 0):
        compare(module, model, batch)
    with pytest.raises(InputError, match="flag"):
        module(torch.randn(4, 8), [torch.randn(4, 8), None])
    with pytest.raises(InputError, match=r"\[batch, 8\]"):
        module(torch.randn(4, 7), [torch.randn(4, 8), None], flag=True)


def test_inputs_may_have_any_strides(made):
    _, model, module = made
    x, pair = torch.randn(8, 5).t(), [torch.randn(5, 16)[:, 3:11], None]
    with torch.no_grad():
        torch.testing.assert_close(module(x, pair, flag=True)["y"], model(x, pair, flag=True)["y"])


def test_copies_and_pickles_hold_the_file(made):
    _, model, module = made
    compare(copy.deepcopy(module), model, 3)
    compare(pickle.loads(pickle.dumps(module)), model, 3)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    compare(torch.load(file, weights_only=False), model, 3)
    assert module.state_dict() == {}


def test_threads_may_call_it_at_once(made):
    _, model, module = made
    inputs = [(torch.randn(1 + i % 5, 8), [torch.randn(1 + i % 5, 8), None]) for i in range(40)]

    def call(given):
        with torch.no_grad():
            return module(*given, flag=True)["y"]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, inputs))
    with torch.no_grad():
        for given, y in zip(inputs, found, strict=True):
            torch.testing.assert_close(y, model(*given, flag=True)["y"])


def test_results_are_tensors_of_their_own(made):
    _, _, module = made
    x, pair = torch.randn(4, 8), [torch.randn(4, 8), None]
    with torch.no_grad():
        first = module(x, pair, flag=True)["y"]
        kept = first.clone()
        module(x + 1, pair, flag=True)
    assert torch.equal(first, kept)


class Fixed(nn.Module):
    """One result is a constant, another one the argument, and two are equal."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fixed", torch.arange(4.0))

    def forward(self, x):
        y = torch.relu(x)
        return self.fixed * 1, x.flatten(), y, y + 0


@pytest.mark.parametrize("engine", ENGINES)
def test_results_may_be_written_and_outlive_the_engine(engine):
    pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
    model, x = Fixed().eval(), torch.randn(2, 4)
    module = transform(model, (x.clone(),)).to_runtime(engine, threads=1)
    with torch.no_grad():
        for result in module(x.clone()):
            result.add_(1)
        found, expected = module(x), model(x)
    del module
    gc.collect()
    torch.testing.assert_close(found, expected)


def test_it_is_for_inference_on_the_cpu(made):
    engine, _, module = made
    x, pair = torch.randn(4, 8), [torch.randn(4, 8), None]
    with pytest.raises(InputError, match="requires a gradient"):
        module(x.clone().requires_grad_(), pair, flag=True)
    with pytest.raises(InputError, match="inference only"):
        module.train()
    assert not module.training
    for other, what in ((x.to_sparse(), "of layout torch.sparse_coo"), (x.to("meta"), "on the meta device")):
        with pytest.raises(InputError, match=f"is {what}"):
            module(other, pair, flag=True)
    with pytest.raises(InputError, match="cannot be moved"):
        module.to("meta")
    with pytest.raises(InputError, match="converted"):
        module.half()
    with pytest.raises(InputError, match=r"takes torch\.float32"):
        module(x.double(), [pair[0].double(), None], flag=True)
    with pytest.raises(Exception, match="cannot be traced or exported"):
        torch.export.export(module, (x, pair), {"flag": True})
    with pytest.raises(InputError, match=r"a transform of torch\.func"):
        torch.vmap(lambda each: module(each, pair, flag=True))(x[None])
    assert module.to("cpu").eval() is module
    assert engine in repr(module)


class Unread(nn.Module):
    """The result does not depend on the first argument."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, unread, x):
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_that_are_unread_negated_or_traced(engine):
    pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
    model = Unread().eval()
    x = torch.randn(2, 4, dtype=torch.complex64).conj().imag
    module = transform(model, (x.clone(), x.clone())).to_runtime(engine, threads=1)
    assert x.is_neg()
    with torch.no_grad():
        torch.testing.assert_close(module(torch.zeros(2, 4), x), model(x, x))
        with pytest.raises(
            InputError, match=r"`unread` is a traced tensor[\s\S]*trace the module that `transform` returned"
        ):
            torch.jit.trace(module, (x.clone(), x.clone()))
    with pytest.raises(InputError, match=r"an array of NumPy[\s\S]*torch\.from_numpy\(x\)"):
        module(torch.zeros(2, 4), x.clone().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_are_bound_as_they_are(dtype):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    model, x = nn.Linear(4, 4, dtype=dtype).eval(), torch.randn(2, 4, dtype=dtype)
    result = transform(model, (x,), check=False)
    with torch.no_grad():
        y, expected = result.to_runtime("openvino", threads=1)(x), model(x)
    torch.testing.assert_close(y, expected)
    assert result.check("openvino", inputs=x).is_exact


class Casts(nn.Module):
    def forward(self, x):
        return (x.float() * 2).bfloat16(), x.float(), x[:0]


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_that_numpy_does_not_have_are_taken_and_given(engine):
    pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    module = transform(Casts().eval(), (x,), check=False).to_runtime(engine, threads=1)
    torch.testing.assert_close(module(x), Casts()(x), rtol=0, atol=0)


class RealPart(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).real


def test_a_file_that_an_engine_misreads_is_refused_at_the_load():
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    result = transform(RealPart().eval(), (torch.randn(2, 4),), check=False)
    with pytest.raises(EngineError, match="openvino misreads the file: its result 0 has 3 dimensions there, and 2 in"):
        result.to_runtime("openvino", threads=1)


def test_a_file_that_an_engine_does_not_load_is_an_error_of_ours():
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    result = transform(nn.EmbeddingBag(5, 3).eval(), (torch.tensor([[1, 2], [3, 4]]),), check=False)
    with pytest.raises(
        EngineError, match=r"openvino does not load the file[\s\S]*remedy: use another engine"
    ) as caught:
        result.to_runtime("openvino")
    assert caught.value.__cause__ is not None
    with pytest.raises(EngineError, match="openvino does not run the file"):
        result.check("openvino")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_call_that_an_engine_fails_on_is_an_error_of_ours(engine, monkeypatch):
    pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
    model = nn.Linear(2, 2).eval()
    module = transform(model, (torch.randn(3, 2),)).to_runtime(engine, threads=1)

    def run(*args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine_class(engine), "run", run)
    with (
        pytest.raises(EngineError, match=rf"{engine} failed on inputs \[3, 2\][\s\S]*out of memory") as caught,
        torch.no_grad(),
    ):
        module(torch.randn(3, 2))
    assert caught.value.__cause__ is not None


def test_wrong_engines_precisions_and_threads_are_refused():
    pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
    result = transform(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    with pytest.raises(InputError, match="'onnxruntime', 'openvino'"):
        result.to_runtime("tensorrt")
    with pytest.raises(InputError, match="no precision 'bf16'"):
        result.to_runtime("onnxruntime", precision="bf16")
    with pytest.raises(InputError, match="not a positive number"):
        result.to_runtime("onnxruntime", threads=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_engine_is_named(engine, monkeypatch):
    result = transform(nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(MissingPackageError, match=rf"graphwright\[{engine}\]"):
        result.to_runtime(engine)


@pytest.mark.parametrize(
    ("forward", "x", "words"),
    [
        (lambda x: x + 1, torch.ones(3, dtype=torch.float64), "is in float64"),
        (lambda x: x + x, torch.ones(3, dtype=torch.uint8), "integers of 8 bits"),
        (lambda x: x * 3000000000, torch.ones(3, dtype=torch.int64), "has the number 3000000000"),
        (lambda x: x // 0.7, torch.ones(3), "remainder of floating numbers"),
        pytest.param(lambda x: x % 0.7, torch.ones(3), "remainder of floating numbers", marks=pytest.mark.long),
        (lambda x: x >> 1, torch.tensor([-5, 5]), "shifts to the right"),
        (
            lambda x: torch.add(*nn.functional.max_pool2d(x, 2, 3, 1, ceil_mode=True, return_indices=True)),
            torch.ones(1, 2, 7, 9),
            "pools with ceil_mode",
        ),
    ],
)
def test_what_openvino_computes_otherwise_is_refused(forward, x, words):
    class Net(nn.Module):
        def forward(self, x):
            return forward(x)

    model = Net().eval()
    result = transform(model, (x,))
    for call in (lambda: result.to_runtime("openvino"), lambda: result.check("openvino")):
        with pytest.raises(InputError, match=rf"{words}[\s\S]*at [\s\S]*onnxruntime"):
            call()
    fast = result.to_runtime("onnxruntime")  # as the remedy says
    torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_computes_with_an_empty_tensor_is_refused(engine):
    """OpenVINO ends the process on this one, and ONNX Runtime gives 0 for a mean over nothing."""
    pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
    result = transform(nn.AdaptiveAvgPool1d(5).eval(), (torch.ones(0, 8, 8),), check=False)
    with pytest.raises(InputError, match=r"on an empty tensor is not computed[\s\S]*remedy: leave"):
        result.to_runtime(engine)


class Likeness(nn.Module):
    def forward(self, x):
        return torch.cosine_similarity(x, -x, dim=0)


def test_a_dimension_that_is_not_there_is_refused_in_openvino():
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    x = torch.tensor(2.0)
    with pytest.raises(InputError, match=r"over dimension 0 of a tensor[\s\S]*give it a dimension: `x\["):
        transform(Likeness().eval(), (x,), check=False).to_runtime("openvino")
    assert transform(Likeness().eval(), (x[None],)).to_runtime("openvino")(x[None]) == -1  # as the remedy says


def test_a_floor_division_stands_for_a_shift_in_openvino():
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

    class Net(nn.Module):
        def forward(self, x):
            return torch.div(x, 4, rounding_mode="floor")

    x = torch.tensor([-9, -8, -1, 0, 3, 9])
    assert torch.equal(transform(Net().eval(), (x,)).to_runtime("openvino", threads=1)(x), x >> 2)


def test_integers_beyond_32_bits_are_refused_where_the_engine_has_32():
    class Net(nn.Module):
        def forward(self, x):
            return x + 1

    small, large = torch.tensor([1, -(2**31)]), torch.tensor([1, 2**31])
    result = transform(Net().eval(), (small,))
    fast = result.to_runtime("openvino")
    assert torch.equal(fast(small), small + 1)
    with pytest.raises(InputError, match=r"numbers from 1 to 2147483648[\s\S]*onnxruntime"):
        fast(large)
    assert torch.equal(result.to_runtime("onnxruntime")(large), large + 1)
