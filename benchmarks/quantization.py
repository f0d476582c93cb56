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
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.models import example_input, import_torchvision, real_model
from benchmarks.nets import NETS, Net
from graphwright import MissingPackageError, TransformResult, transform
from graphwright.quant import quantize

ENGINES = ("onnxruntime", "openvino")


def result_of(model: nn.Module, x: torch.Tensor, target: str, *, dynamic: bool = True) -> TransformResult:
    """Return a model, transformed for a target, with a dynamic batch."""
    sizes = ({0: torch.export.Dim("batch", min=1, max=2000)},) if dynamic else None
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


def quantize_static(net: Net) -> dict[str, Any]:
    """Quantize a net with ONNX Runtime's own tool, as its documentation advises for CPUs, and score it there."""
    import onnxruntime
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "net.onnx", Path(folder) / "int8.onnx"
        _export(net.model, torch.cat(net.calibration)[:2], path)
        quantization.quant_pre_process(str(path), str(path), skip_symbolic_shape=True)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.rest = iter(net.calibration)

            def get_next(self) -> dict[str, Any] | None:
                x = next(self.rest, None)
                return None if x is None else {"x": x.numpy()}

        start = time.process_time()
        quantization.quantize_static(str(path), str(out), Reader(), per_channel=True)
        seconds = time.process_time() - start
        options = onnxruntime.SessionOptions()
        # what Q and DQ say, and not what kernels make of it where products saturate
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])

        def run(x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            outputs = tuple(map(torch.from_numpy, session.run(None, {"x": x.numpy()})))
            return outputs if len(outputs) > 1 else outputs[0]

        return {**score(net, run), "seconds": round(seconds, 1)}


def nncf_quantize(net: Net) -> dict[str, Any]:
    """Quantize a net with NNCF, as OpenVINO's documentation advises, and score it in OpenVINO."""
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        _export(net.model, torch.cat(net.calibration)[:2], path)
        model = openvino.Core().read_model(path)
        start = time.process_time()
        data = nncf.Dataset([x.numpy() for x in net.calibration])
        compiled = openvino.compile_model(nncf.quantize(model, data, subset_size=len(net.calibration)), "CPU")
        seconds = time.process_time() - start

        def run(x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            outputs = tuple(torch.from_numpy(value.copy()) for value in compiled(x.numpy()).values())
            return outputs if len(outputs) > 1 else outputs[0]

        return {**score(net, run), "seconds": round(seconds, 1)}


def torchao_pt2e(net: Net) -> dict[str, Any]:
    """Quantize a net with torchao's PT2E flow for x86 processors, and score its module."""
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    sizes = ({0: torch.export.Dim("batch", min=1, max=2000)},)
    exported = torch.export.export(net.model, (torch.cat(net.calibration)[:2],), dynamic_shapes=sizes).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    start = time.process_time()
    prepared = quantize_pt2e.prepare_pt2e(exported, quantizer)
    for x in net.calibration:
        prepared(x)
    converted = quantize_pt2e.convert_pt2e(prepared)
    seconds = time.process_time() - start
    layers = [node for node in converted.graph.nodes if str(node.target).startswith(("aten.conv", "aten.linear"))]
    quantized = [node for node in layers if "dequantize" in str(node.args[0].target)]
    taken = f"{len(quantized)} of {len(layers)}"  # it leaves layers out whose pattern it does not know
    return {**score(net, converted), "seconds": round(seconds, 1), "layers": taken}


def _export(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    sizes = ({0: torch.export.Dim("batch", min=1, max=2000)},)
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=sizes, input_names=["x"], verbose=False)
    assert program is not None
    program.save(path)


PEERS: dict[str, tuple[str, Callable[[Net], dict[str, Any]]]] = {
    "onnxruntime quantize_static": ("onnxruntime", quantize_static),
    "NNCF": ("nncf", nncf_quantize),
    "torchao PT2E": ("torchao", torchao_pt2e),
}
"""Name -> the package it needs, and the function that scores it."""


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
        for peer, (package, run) in PEERS.items() if peers else ():
            try:
                yield {"net": net.name, "tool": peer} | run(net)
            except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table
                missing = isinstance(error, ImportError) and package in str(error)
                text = "not installed" if missing else f"{type(error).__name__}: {error}"[:100]
                yield {"net": net.name, "tool": peer, "error": text}


def speed(name: str, engines: list[str], *, rounds: int = 30) -> Iterator[dict[str, Any]]:
    """Yield how many times as fast int8 is as float32 in each engine, batch 1."""
    import_torchvision()
    model, x = real_model(name), example_input(batch=1)
    for engine in engines:
        result = result_of(model, x, engine, dynamic=False)
        q = quantize(result, [example_input(batch=1, seed=seed) for seed in range(4)], progress=False)
        modules = [result.to_runtime(engine, threads=1), q.to_runtime(engine, threads=1)]
        times: list[list[float]] = [[], []]
        with torch.no_grad():
            for turn in range(rounds + 3):
                for module, taken in zip(modules, times, strict=True):
                    start = time.perf_counter()
                    module(x)
                    if turn >= 3:
                        taken.append(time.perf_counter() - start)
        float32, int8 = map(statistics.median, times)
        yield {"net": name, "tool": engine, "speedup": round(float32 / int8, 2), "ms": round(1000 * int8, 2)} | {
            "sqnr": round(q.sqnr, 2)
        }


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
        speed(name, options.engines)
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
