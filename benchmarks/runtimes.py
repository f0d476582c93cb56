"""Latency of our files in ONNX Runtime and OpenVINO against each engine's own best way from PyTorch.

    python -m benchmarks.runtimes [--models resnet50,vit_b_16] [--rounds 20] [--threads 1] [--arrays]

Our way is `result.to_runtime(engine)`. The engine's own is `torch.onnx.export(dynamo=True)` of the original in ONNX
Runtime, and `openvino.convert_model` of the original in OpenVINO, both in float32 with as many threads. Both take and
return tensors; with `--arrays` theirs takes arrays that exist already and returns arrays, which on the smallest model
is some 0.15 ms less. The calls are made in turn, in each round in another order, since a call pays for the caches that
the one before it has filled; the ratio is of the medians: below 1 where ours is faster. Weights are random,
those of norms too: the exporter drops the biases that a norm of zeros makes. The transformer is BERT-base of
`transformers`, for 128 tokens.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.models import example_input, real_model
from compiler.driver import transform
from compiler.extras import import_extra
from compiler.runtime.engines import OnnxRuntime, OpenVino

MODELS = ("resnet50", "mobilenet_v3_large", "convnext_tiny", "vit_b_16", "bert_base")


def make(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return one of `MODELS` in eval mode with random weights, and the arguments of a call."""
    if name != "bert_base":
        return real_model(name), (example_input(batch=1),)
    torch.manual_seed(0)
    transformers: Any = importlib.import_module("transformers")
    model = transformers.BertModel(transformers.BertConfig(return_dict=False)).eval()
    return model, (torch.randint(0, 30000, (1, 128)),)


def theirs_in_onnxruntime(
    model: nn.Module, args: tuple[torch.Tensor, ...], threads: int, arrays: bool = False
) -> Callable[[], Any]:
    """Return a call of the original's own export in ONNX Runtime, on tensors or on arrays."""
    runtime = import_extra("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.onnx")
        torch.onnx.export(model, args, path, dynamo=True, verbose=False)
        session = runtime.InferenceSession(path, OnnxRuntime.options(threads), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = {name: arg.numpy() for name, arg in zip(names, args, strict=True)}
    if arrays:
        return lambda: session.run(None, given)

    def call() -> list[torch.Tensor]:
        fed = {name: arg.numpy() for name, arg in zip(names, args, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, fed)]

    return call


def theirs_in_openvino(
    model: nn.Module, args: tuple[torch.Tensor, ...], threads: int, arrays: bool = False
) -> Callable[[], Any]:
    """Return a call of OpenVINO's own conversion of the original, on tensors or on arrays."""
    openvino = import_extra("openvino")
    converted = openvino.convert_model(model, example_input=args if len(args) > 1 else args[0])
    shapes = {i: list(arg.shape) for i, arg in enumerate(args)}
    converted.reshape({converted.inputs[i]: shape for i, shape in shapes.items()})
    compiled = openvino.Core().compile_model(converted, "CPU", OpenVino.options(threads, "f32"))
    request = compiled.create_infer_request()
    given = {i: arg.numpy() for i, arg in enumerate(args)}
    if arrays:
        return lambda: request.infer(given, share_inputs=True, share_outputs=True)

    def call() -> list[torch.Tensor]:
        fed = {i: arg.numpy() for i, arg in enumerate(args)}
        found = request.infer(fed, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(array) for array in found.values()]

    return call


def medians(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Return the median seconds of each call; they are made in turn, in each round in another order."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    orders = list(itertools.permutations(range(len(calls))))
    for turn in range(rounds):
        for number in orders[turn % len(orders)]:
            start = time.perf_counter()
            calls[number]()
            seconds[number].append(time.perf_counter() - start)
    return [statistics.median(each) for each in seconds]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each model and engine; return 0."""
    parser = argparse.ArgumentParser(description="our files against each engine's own way")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arrays", action="store_true", help="theirs takes and returns arrays of NumPy")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    ways = {OnnxRuntime.name: theirs_in_onnxruntime, OpenVino.name: theirs_in_openvino}
    print(f"{'model':20} {'engine':12} {'ours ms':>9} {'theirs ms':>9} {'ratio':>7} {'of eager':>9}")
    for name in options.models.split(","):
        model, args = make(name)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = transform(model, args, target="openvino", check=False)
            for engine, way in ways.items():
                fast = result.to_runtime(engine, threads=options.threads)
                other = way(model, args, options.threads, options.arrays)
                calls: list[Callable[[], Any]] = [
                    functools.partial(fast, *args),
                    other,
                    functools.partial(model, *args),
                ]
                ours, theirs, eager = medians(calls, options.rounds)
                print(
                    f"{name:20} {engine:12} {ours * 1e3:9.2f} {theirs * 1e3:9.2f} {ours / theirs:7.3f} "
                    f"{ours / eager:9.2f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
