"""What a compilation costs: steps grow with the graph, depth does not, and weights are not copied."""

from __future__ import annotations

import linecache
import sys
from types import FrameType

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from compiler.capture.capture import capture
from graphwright import CaptureError, PassManager, TransformResult, transform
from graphwright.passes import Canonicalize, FoldBatchNorm

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def chain(length: int, *, pairs: bool = False) -> fx.GraphModule:
    """Return a typed graph of `length` pointwise operations, one after the other; of `pairs`, half are redundant."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    functions = (
        (torch.relu, torch.relu, torch.neg, torch.relu) if pairs else (torch.sin, torch.tanh, torch.neg, torch.cos)
    )
    for i in range(length):
        node = graph.call_function(functions[i % 4], (node,))
    graph.output(node)
    module = fx.GraphModule(nn.Module(), graph)
    ShapeProp(module).propagate(X)
    return module


def test_a_long_chain_does_not_recurse():
    model = chain(10_000)
    result = transform(model)
    assert result.program.graph.num_operations == 10_000
    assert torch.equal(result.model(X), model(X))


def test_a_long_chain_that_shrinks_does_not_recurse():
    """Each rewrite leads to the next."""
    model = chain(8_000, pairs=True)
    result = transform(model)
    assert result.program.graph.num_operations == 4_001
    assert torch.equal(result.model(X), model(X))


def calls_of(model: fx.GraphModule) -> int:
    """Return how many Python functions a compilation calls: the same number in every run."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    transform(model)  # fills the caches
    sys.setprofile(profile)
    try:
        transform(model)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("pairs", [False, True])
def test_the_number_of_steps_is_linear(pairs):
    short, middle, long = (calls_of(chain(length, pairs=pairs)) for length in (200, 400, 800))
    assert (long - middle) / (middle - short) < 2.1, (short, middle, long)


def test_the_number_of_steps_is_linear_where_one_value_has_many_users():
    def fan(width: int) -> fx.GraphModule:
        graph = fx.Graph()
        root = graph.call_function(torch.sin, (graph.placeholder("x"),))
        parts = [graph.call_function(torch.mul, (root, float(i + 2))) for i in range(width)]
        graph.output(graph.call_function(torch.cat, (parts,)))
        module = fx.GraphModule(nn.Module(), graph)
        ShapeProp(module).propagate(X)
        return module

    short, middle, long = (calls_of(fan(width)) for width in (100, 200, 400))
    assert (long - middle) / (middle - short) < 2.1, (short, middle, long)


class Wrap(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.act = inner, nn.Tanh()

    def forward(self, x):
        return self.inner(self.act(x))


class Direct(nn.Module):
    """Calls the innermost of nested modules, and none of those around it: Python could not call them all."""

    def __init__(self, inner: nn.Module, levels: int) -> None:
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, x):
        return self.get_submodule("inner" + ".inner" * self.levels)(x)


def nested(levels: int) -> nn.Module:
    module: nn.Module = nn.Linear(3, 3)
    for _ in range(levels):
        module = Wrap(module)
    return module.eval()


def test_modules_called_100_levels_deep():
    model = nested(100)
    result = transform(model, (X,))
    torch.testing.assert_close(result.model(X), model(X))
    assert f"{'inner.' * 100}linear.weight" in result.model.state_dict()


@pytest.mark.parametrize("traced", [False, True])
def test_modules_300_levels_deep(traced):
    model = Direct(nested(300), 300).eval()
    if traced:
        graph = fx.Graph()
        graph.output(graph.call_module("inner" + ".inner" * 300, (graph.placeholder("x"),)))
        result = transform(fx.GraphModule(model, graph))
    else:
        result = transform(model, (X,))
    torch.testing.assert_close(result.model(X), model(X))
    assert dict(result.model.named_parameters()).keys() == result.parameter_map.keys()
    assert str(result.model) and result.model.code


def test_more_levels_than_python_can_call_are_refused():
    with pytest.raises(CaptureError, match="RecursionError"):
        transform(nested(600), (X,))


class Tied(nn.Module):
    """Convolutions with norms, a linear behind a pool, a tied linear, and one buffer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("again", self.scale)

    def forward(self, x):
        x = self.norm(self.depthwise(torch.relu(self.bn(self.conv(x)))))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.tied(self.head(x) * self.scale) + self.again


IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def assert_shares(model: nn.Module, result: TransformResult, copies: tuple[str, ...] = ()) -> None:
    """Every tensor of the result lies in the memory that the map says it comes from, but for the copies."""
    originals = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    emitted = dict(result.model.named_parameters(remove_duplicate=False))
    emitted |= dict(result.model.named_buffers(remove_duplicate=False))
    own = [
        key
        for key, tensor in emitted.items()
        if tensor.data_ptr() not in [originals[source].data_ptr() for source in result.parameter_map[key]]
    ]
    assert own == list(copies)
    for key in emitted.keys() - set(copies):
        (source,) = result.parameter_map[key]
        assert emitted[key].untyped_storage().nbytes() == originals[source].untyped_storage().nbytes()


@pytest.mark.filterwarnings("ignore:.* skipped")
@pytest.mark.parametrize("way", ["module", "exported", "traced", "dynamic"])
def test_weights_are_not_copied(way):
    model = Tied().eval()
    pointers = {key: tensor.data_ptr() for key, tensor in model.state_dict().items()}
    shapes = {"x": {0: torch.export.Dim("n", min=1, max=9)}} if way == "dynamic" else None
    source = {
        "module": model,
        "dynamic": model,
        "exported": torch.export.export(model, (IMAGES,)),
        "traced": fx.symbolic_trace(model),
    }[way]
    result = transform(source, None if way in ("exported", "traced") else (IMAGES,), dynamic_shapes=shapes)
    assert any(match.is_conversion for match in result.matches)  # the linear layers are convolutions now
    assert_shares(model, result)
    tensors = {t.untyped_storage().data_ptr() for t in result.model.state_dict().values()}
    assert len(tensors) == len({t.untyped_storage().data_ptr() for t in model.state_dict().values()})
    assert {key: tensor.data_ptr() for key, tensor in model.state_dict().items()} == pointers


def test_a_model_on_the_meta_device_is_compiled_without_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2**20, 2**20), nn.ReLU()).eval()  # 4 TiB
    result = transform(model, (torch.empty(2, 2**20, device="meta"),))
    assert [match.pattern.__name__ for match in result.matches] == ["LinearActPattern"]
    assert all(tensor.is_meta for tensor in result.model.state_dict().values())


def test_folded_copies_are_in_the_parameter_map():
    model = Tied().eval()
    result = transform(model, (IMAGES,), pipeline=PassManager([Canonicalize(), FoldBatchNorm()]))
    folded = {key: sources for key, sources in result.parameter_map.items() if len(sources) > 1}
    assert set(folded["conv_folded.weight"]) == {"conv.weight", "bn.weight", "bn.running_var"}
    layers = ("conv_folded", "depthwise_folded")
    assert list(folded) == [f"{layer}.{slot}" for layer in layers for slot in ("weight", "bias")]
    assert folded.keys() <= result.parameter_map.renamed().keys()
    assert_shares(model, result, tuple(folded))
    state = result.model.state_dict()
    assert sum(state[key].nbytes for key in folded) == 4 * (8 * 3 * 9 + 8 + 8 * 9 + 8)
    other = Tied().eval()
    other.bn.running_mean.fill_(0.3)
    result.model.load_state_dict(result.parameter_map.convert(other.state_dict()))
    torch.testing.assert_close(result.model(IMAGES), other(IMAGES))


def test_tracing_reads_no_source_line_for_a_node_and_writes_code_of_graphs_once(monkeypatch):
    """The tracer would format the whole stack for each node, and compile the graph's code after each of its passes."""
    read, written = [], []
    getline, python_code = linecache.getline, fx.Graph.python_code

    def reads(*args):
        read.append(args)
        return getline(*args)

    def writes(*args, **kwargs):
        written.append(args)
        return python_code(*args, **kwargs)

    monkeypatch.setattr(linecache, "getline", reads)
    monkeypatch.setattr(fx.Graph, "python_code", writes)
    proxy = vars(torch.fx.proxy)
    before = proxy["CapturedTraceback"]
    capture(nested(1), (X,))
    few = len(read)  # of the log, with the level that pytest gives it
    written.clear()
    captured = capture(nested(20), (X,))
    assert len(read) == 2 * few and len(written) == 1
    assert captured.traced is not None
    calls = [node for node in captured.traced.exported.graph.nodes if node.op == "call_function"]
    assert len(calls) > 20 and all(node.stack_trace.count("File") == 1 for node in calls)
    assert proxy["CapturedTraceback"] is before
    fx.symbolic_trace(nested(1))
    assert len(written) == 2
