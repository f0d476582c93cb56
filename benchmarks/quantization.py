"""Quantization on trained nets: accuracy, speed in the engines, seconds to calibrate; beside other tools.

    python -m benchmarks.quantization                    everything that is installed, one thread
    python -m benchmarks.quantization --nets lite0 crepe --engines openvino --no-peers
    python -m benchmarks.quantization --speed resnet18   int8 against float32 in the engines, random weights
    python -m benchmarks.quantization --seconds          what `quantize` takes on resnet18 and 16 images

Accuracy is that of the emitted module, whose numbers are the engines' (`check` of a result says how exactly).
Peers have the same calibration and test data, where they are installed: ONNX Runtime's `quantize_static`, whose file is
run without optimization; torchao's PT2E flow, whose module is run; and NNCF, run in OpenVINO, whose kernels saturate on
a processor without VNNI. Ratios of times are medians of calls in turn.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.models import example_input, import_torchvision, real_model
from benchmarks.nets import NETS, Net
from benchmarks.runtimes import medians
from compiler.runtime.check import sqnr
from compiler.runtime.engines import OnnxRuntime, OpenVino
from compiler.runtime.limits import has_vnni
from graphwright import MissingPackageError, TransformResult, transform
from graphwright.quant import quantize
from graphwright.targets import find_target

ENGINES = ("onnxruntime", "openvino")
BATCHES = ({0: torch.export.Dim("batch", min=1, max=2000)},)


def result_of(model: nn.Module, x: torch.Tensor, target: str, *, dynamic: bool = True) -> TransformResult:
    """Return a model, transformed for a target, with a dynamic batch."""
    sizes = BATCHES if dynamic else None
    return transform(model, (x[:2] if dynamic else x,), target=target, dynamic_shapes=sizes, check=False)


def score(net: Net, model: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """Return SQNR and right answers of a model on a net's test data."""
    with torch.no_grad():
        output = model(net.test)
    found: dict[str, Any] = {"sqnr": round(net.sqnr_of(output), 2)}
    if net.labels is not None:
        found["right"] = net.right_of(output)
    return found


def ours(net: Net, engine: str, **options: Any) -> dict[str, Any]:
    """Quantize a net for an engine, and score it."""
    result = result_of(net.model, torch.cat(net.calibration)[:2], engine)
    start = time.process_time()
    q = quantize(result, net.calibration, progress=False, **options)
    return {**score(net, q.model), "seconds": round(time.process_time() - start, 1)}


@attrs.frozen
class Made:
    """What a peer made of a net: a call, the seconds that quantizing took, and what else its row says."""

    run: Callable[[torch.Tensor], Any]
    seconds: float
    notes: dict[str, Any] = attrs.field(factory=dict)


def quantize_static(model: nn.Module, calibration: list[torch.Tensor], *, threads: int | None = None) -> Made:
    """Quantize a net with ONNX Runtime's own tool, as its documentation advises for CPUs.

    Without `threads` the file runs unoptimized: what Q and DQ say, and not what kernels make of it where products
    saturate.
    """
    import onnxruntime
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "net.onnx", Path(folder) / "int8.onnx"
        _export(model, calibration, path, dynamic=threads is None)
        quantization.quant_pre_process(str(path), str(path), skip_symbolic_shape=True)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.rest = iter(calibration)

            def get_next(self) -> dict[str, Any] | None:
                x = next(self.rest, None)
                return None if x is None else {"x": x.numpy()}

        start = time.process_time()
        quantization.quantize_static(str(path), str(out), Reader(), per_channel=True)
        seconds = time.process_time() - start
        options = onnxruntime.SessionOptions() if threads is None else OnnxRuntime.options(threads)
        if threads is None:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])

    def run(x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = tuple(map(torch.from_numpy, session.run(None, {"x": x.numpy()})))
        return outputs if len(outputs) > 1 else outputs[0]

    return Made(run, seconds)


def nncf_quantize(model: nn.Module, calibration: list[torch.Tensor], *, threads: int | None = None) -> Made:
    """Quantize a net with NNCF, as OpenVINO's documentation advises, to run in OpenVINO."""
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        _export(model, calibration, path, dynamic=threads is None)
        read = openvino.Core().read_model(path)
        start = time.process_time()
        data = nncf.Dataset([x.numpy() for x in calibration])
        attention = any("attention" in type(module).__name__.lower() for module in model.modules())
        kind = nncf.ModelType.TRANSFORMER if attention else None
        quantized = nncf.quantize(read, data, subset_size=len(calibration), model_type=kind)
        seconds = time.process_time() - start
        compiled = openvino.compile_model(quantized, "CPU", OpenVino.options(threads, "f32") if threads else {})

    def run(x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = tuple(torch.from_numpy(value.copy()) for value in compiled(x.numpy()).values())
        return outputs if len(outputs) > 1 else outputs[0]

    return Made(run, seconds)


def torchao_pt2e(model: nn.Module, calibration: list[torch.Tensor], *, threads: int | None = None) -> Made:
    """Quantize a net with torchao's PT2E flow for x86 processors; with `threads` its module is compiled."""
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    sizes = None if threads else BATCHES
    x = calibration[0] if threads else torch.cat(calibration)[:2]
    exported = torch.export.export(model, (x,), dynamic_shapes=sizes).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    start = time.process_time()
    prepared = quantize_pt2e.prepare_pt2e(exported, quantizer)
    for x in calibration:
        prepared(x)
    converted = quantize_pt2e.convert_pt2e(prepared)
    seconds = time.process_time() - start
    layers = [node for node in converted.graph.nodes if str(node.target).startswith(("aten.conv", "aten.linear"))]
    quantized = [node for node in layers if "dequantize" in str(node.args[0].target)]
    taken = f"{len(quantized)} of {len(layers)}"  # it leaves layers out whose pattern it does not know
    if threads is None:
        return Made(converted, seconds, {"layers": taken})
    return Made(torch.compile(converted, options={"freezing": True}), seconds, {"layers": taken})


def _export(model: nn.Module, calibration: list[torch.Tensor], path: Path, *, dynamic: bool) -> None:
    x = torch.cat(calibration)[:2] if dynamic else calibration[0]
    sizes = BATCHES if dynamic else None
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=sizes, input_names=["x"], verbose=False)
    assert program is not None
    program.save(path)


PEERS: dict[str, tuple[str, str, Callable[..., Made]]] = {
    "onnxruntime quantize_static": ("onnxruntime", "onnxruntime", quantize_static),
    "NNCF": ("nncf", "openvino", nncf_quantize),
    "torchao PT2E": ("torchao", "", torchao_pt2e),
}
"""Name -> the package it needs, the engine that its result runs in (Inductor for none), and what makes it."""


def attempt(peer: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of a peer, or its error: a peer that fails is a row of the table."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever it raises
        missing = isinstance(error, ImportError) and PEERS[peer][0] in str(error)
        return {"error": "not installed" if missing else f"{type(error).__name__}: {error}"[:100]}


def accuracy(names: list[str], engines: list[str], *, peers: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each net and tool; a tool that fails has its error in place of scores."""
    for name in names:
        try:
            net = NETS[name]()
        except MissingPackageError as error:
            yield {"net": name, "tool": "", "error": error.message}
            continue
        if net.labels is not None:
            yield {"net": net.name, "tool": "float", "right": net.right_of(net.expected), "of": len(net.labels)}
        for engine in engines:
            for correction in ("fast", "sequential"):
                scores = ours(net, engine, bias_correction=correction)
                yield {"net": net.name, "tool": f"{engine}, {correction}"} | scores
        for peer, (_, _, make) in PEERS.items() if peers else ():

            def work(net: Net = net, make: Callable[..., Made] = make) -> dict[str, Any]:
                made = make(net.model, net.calibration)
                return {**score(net, made.run), "seconds": round(made.seconds, 1), **made.notes}

            yield {"net": net.name, "tool": peer} | attempt(peer, work)


def speed(name: str, engines: list[str], *, peers: bool, rounds: int = 30) -> Iterator[dict[str, Any]]:
    """Yield how many times as fast int8 is as float32 in each engine, batch 1; peers in the same turns.

    The float32 of a peer is that of our result in the same engine, and for torchao Inductor's. Decibels are those of
    the engine's outputs, so of kernels that saturate as well.
    """
    import_torchvision()
    model = real_model(name)
    calibration = [example_input(batch=1, seed=seed) for seed in range(4)]
    test = [example_input(batch=1, seed=seed) for seed in range(4, 8)]
    x = test[0]
    with torch.no_grad():
        expected = torch.cat([model(each) for each in test])
        for engine in [*engines, *([""] if peers else [])]:
            calls: dict[str, Callable[[torch.Tensor], Any]] = {}
            rows: dict[str, dict[str, Any]] = {}
            if engine:
                result = result_of(model, x, engine, dynamic=False)
                table = find_target(engine).table
                assert table is not None
                table = table if has_vnni() else table.without_vnni()
                q = quantize(result, calibration, table=table, progress=False)
                calls = {"float32": result.to_runtime(engine, threads=1), engine: q.to_runtime(engine, threads=1)}
                rows[engine] = {}
            else:
                calls["float32"] = torch.compile(model, options={"freezing": True})
            for peer in [peer for peer, (_, runs_in, _) in PEERS.items() if peers and runs_in == engine]:

                def work(peer: str = peer, calls: dict[str, Callable[..., Any]] = calls) -> dict[str, Any]:
                    made = PEERS[peer][2](model, calibration, threads=1)
                    made.run(x)
                    calls[peer] = made.run
                    return made.notes

                rows[peer] = attempt(peer, work)
            taken = dict(
                zip(calls, medians([functools.partial(call, x) for call in calls.values()], rounds), strict=True)
            )
            for tool, row in rows.items():
                if tool in calls:
                    got = torch.cat([calls[tool](each) for each in test])
                    row = (
                        {"speedup": round(taken["float32"] / taken[tool], 2), "ms": round(1000 * taken[tool], 2)}
                        | {"sqnr": round(sqnr(got, expected), 2)}
                        | row
                    )
                yield {"net": name, "tool": tool} | row


def seconds() -> Iterator[dict[str, Any]]:
    """Yield what `quantize` takes on resnet18 and 16 images, as a whole."""
    model, x = real_model("resnet18"), example_input(batch=16)
    result = result_of(model, x, "onnxruntime")
    for observer, correction in (("minmax", None), ("mse", None), ("mse", "fast"), ("mse", "sequential")):
        start = time.perf_counter()
        q = quantize(result, [x], observer=observer, bias_correction=correction, progress=False)
        taken = time.perf_counter() - start
        yield {"net": "resnet18", "tool": f"{observer}, {correction}", "seconds": round(taken, 2)} | {
            "sqnr": round(q.sqnr, 2)
        }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=None, header_style="cyan")
    for column in columns:
        table.add_column(column, justify="left" if column in ("net", "tool", "error") else "right")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    console.print(table)


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("--nets", nargs="*", choices=list(NETS), default=None)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--speed", nargs="*", metavar="MODEL", default=None, help="models of benchmarks/models.py")
    parser.add_argument("--seconds", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = options.nets is None and options.speed is None and not options.seconds
    rows: list[dict[str, Any]] = []
    console = Console()
    parts: list[Iterator[dict[str, Any]]] = []
    if options.nets is not None or everything:
        parts.append(accuracy(options.nets or list(NETS), options.engines, peers=not options.no_peers))
    parts += [
        speed(name, options.engines, peers=not options.no_peers)
        for name in (options.speed or ["resnet18", "vit_b_16"] if options.speed is not None or everything else [])
    ]
    if options.seconds or everything:
        parts.append(seconds())
    for part in parts:
        for row in part:
            rows.append(row)
            console.print(row)
    show(rows, console)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
