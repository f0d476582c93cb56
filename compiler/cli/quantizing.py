"""The command `graphwright quantize MODEL.py:FUNCTION`: transform, calibrate, save, check."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from torch import nn

from compiler.cli.arguments import (
    UsageError,
    add_json,
    add_leaf,
    add_sizes,
    add_traceback,
    check_outputs,
    command_parser,
    dynamic_sizes,
    prints_aside,
    split_place,
)
from compiler.cli.progress import stage_progress
from compiler.cli.userfile import UserCodeError, call, dynamic_shapes_of, load_file, load_model, search_path
from compiler.driver import transform
from compiler.pipeline import pipeline_of
from compiler.quant.correction import FORMS
from compiler.quant.formats import Int8
from compiler.quant.observe.observers import OBSERVERS
from compiler.quant.quantize import quantize
from compiler.quant.result import Quantized
from compiler.runtime.check import CheckReport
from compiler.savefiles import write_files
from compiler.targets import TARGETS
from ir.errors import InputError
from passes.fold.batch_norm import FoldBatchNorm

ENGINES = ("onnxruntime", "openvino")

_DESCRIPTION = """\
Quantize a PyTorch model to integers of eight bits: transform it for a target, choose ranges from calibration data,
report what was quantized and how well, save it as an ONNX file, and check that file in the engines.

FUNCTION takes no arguments and returns (module, example inputs), or (module, example inputs, keyword arguments).
The calibration data is what a function of a Python file returns, an iterable of inputs or a DataLoader; or a function
that takes the model and calls it.
"""

_EXAMPLES = """\
examples:
  graphwright quantize net.py:make --target onnxruntime --calibration net.py:loader --save net.onnx --check
  graphwright quantize net.py:make --calibration net.py:loader --float head --float 'layer1.*' --sensitivity
  graphwright quantize net.py:make --calibration net.py:loader --weight-bits 4 --json report.json

exit codes: 0 done, 1 the model could not be quantized, or an engine computes something else, 2 wrong usage
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    usage = "MODEL.py:FUNCTION --calibration FILE.py:FUNCTION [options]"
    parser = command_parser("graphwright quantize", usage, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("model", metavar="MODEL.py:FUNCTION", help="the file and its function that makes the model")

    group = parser.add_argument_group("what is done")
    group.add_argument("--target", choices=sorted(TARGETS), default="onnxruntime", help="(default: %(default)s)")
    group.add_argument(
        "--calibration",
        metavar="FILE.py:FUNCTION",
        required=True,
        help="what returns the calibration data, or is a function of the model",
    )
    group.add_argument(
        "--observer", choices=list(OBSERVERS), default="mse", help="how ranges are chosen (default: %(default)s)"
    )
    group.add_argument("--bias-correction", choices=[*FORMS, "none"], default="fast", help="(default: %(default)s)")
    group.add_argument("--power-of-two", action="store_true", help="scales that are powers of two: exact arithmetic")
    group.add_argument(
        "--without-vnni",
        action="store_true",
        help="weights of 7 bits, for processors without VNNI",
    )
    group.add_argument("--weight-bits", type=int, default=8, metavar="N", help="bits of weights, 2 to 8")
    group.add_argument(
        "--float",
        metavar="GLOB",
        action="append",
        default=[],
        help="module paths or kinds of regions that stay in float; repeatable",
    )
    group.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")

    add_leaf(group)

    add_sizes(parser)

    group = parser.add_argument_group("results")
    group.add_argument("--save", metavar="PATH", type=Path, help="write the ONNX file")
    group.add_argument("--save-module", metavar="PATH", type=Path, help="save the quantized module with torch.save")
    group.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="ENGINES",
        help=f"run the file and compare it, in {' and '.join(ENGINES)} or those named, with a comma (default: the "
        "target's own)",
    )
    group.add_argument(
        "--sensitivity", action="store_true", help="measure the outputs with one quantizer at a time (a run for each)"
    )
    add_json(group)
    group.add_argument(
        "--quiet", action="store_true", help="print no report and no progress bar, except of a check that fails"
    )
    add_traceback(group)
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return the exit code.

    Raises:
        UsageError: when an argument is wrong.
        GraphwrightError: when the model cannot be quantized, saved or checked.
    """
    path, function = split_place(options.model)
    data_path, data_function = split_place(options.calibration)
    sizes = dynamic_sizes(options.dynamic)
    engines = _engines(options)
    target = TARGETS[options.target]
    files = [file for file in (options.save, options.save_module) if file is not None]
    check_outputs(options, [*files, *([Path(options.json)] if options.json not in (None, "-") else [])])
    try:
        default = Int8(weight_bits=options.weight_bits)
    except InputError as error:
        raise UsageError(str(error)) from error
    with prints_aside(options), search_path(path.resolve().parent):
        file = load_file(path)
        same = data_path.resolve() == path.resolve()
        calibration = calibration_of(file if same else load_file(data_path), data_function)
        user = load_model(file, function)
        # the file: capture holds back writes to sys.stderr, and the bar shall move on
        console = Console(file=sys.stderr, quiet=options.quiet)
        with stage_progress(options.model, 8, console, transient=True) as begin:
            module = user.module.eval() if isinstance(user.module, nn.Module) else user.module
            result = transform(
                module,
                user.args,
                user.kwargs or None,
                target=target,
                # a norm behind a layer would keep its bias off the grid of the products
                pipeline=pipeline_of(target.patterns).insert_before("fuse", FoldBatchNorm())
                if options.power_of_two
                else None,
                dynamic_shapes=dynamic_shapes_of(user, sizes, batch=options.dynamic_batch),
                leaf_modules=tuple(options.leaf),
                progress=begin,
            )
        table = result.target.table
        q = quantize(
            result,
            calibration,
            rules=dict.fromkeys(options.float),
            default=default,
            observer=options.observer,
            bias_correction=None if options.bias_correction == "none" else options.bias_correction,
            power_of_two=options.power_of_two,
            table=table.without_vnni() if options.without_vnni and table is not None else table,
            seed=options.seed,
            progress=not options.quiet,
        )
    with prints_aside(options):  # calibration may be a function, and leaf modules run
        if options.sensitivity:
            q.sensitivity()
        _save(options, q)
        check = q.check(*engines) if engines else None
    if options.json not in (None, "-"):
        write_files({Path(options.json): lambda path: path.write_text(_json_text(q, check), encoding="utf-8")})
    _show(options, q, check)
    return 0 if check is None or check.is_exact else 1


def _engines(options: argparse.Namespace) -> tuple[str, ...]:
    if options.check is None:
        return ()
    named = tuple(filter(None, map(str.strip, options.check.split(","))))
    for name in named:
        if name not in ENGINES:
            raise UsageError(f"there is no engine {name!r}; known: {', '.join(ENGINES)}")
    return named or ((options.target,) if options.target in ENGINES else ENGINES)


def calibration_of(file: ModuleType, name: str) -> Any:
    """Return the calibration data that a name of a loaded file stands for.

    A function without parameters is called; one that takes the model is the calibration itself; anything else is data.

    Raises:
        UserCodeError: when there is no such name, or the function raises.
    """
    path = Path(str(file.__file__))
    if name not in vars(file):
        raise UserCodeError(f"{path} has no {name!r}", remedy="define it: `def loader(): return [(x,), ...]`")
    found = vars(file)[name]
    if not inspect.isfunction(found):
        return found
    wanted = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    if wanted:
        return found
    return call(found, path)


def _save(options: argparse.Namespace, q: Quantized) -> None:
    if options.save_module is not None:
        write_files({options.save_module: lambda path: torch.save(q.model, path)})
    if options.save is not None:
        q.save_onnx(options.save)


def _json_text(q: Quantized, check: CheckReport | None) -> str:
    held = q.to_json()
    if check is not None:
        held["check"] = check.to_json()
    return json.dumps(held, indent=2, ensure_ascii=False) + "\n"


def _show(options: argparse.Namespace, q: Quantized, check: CheckReport | None) -> None:
    if options.json == "-":
        sys.stdout.write(_json_text(q, check))
    else:
        console = Console(quiet=options.quiet)
        console.print(q)
        notes = {
            options.save: "the ONNX file",
            options.save_module: "load it with torch.load(PATH, weights_only=False)",
        }
        for path, note in notes.items():
            if path is not None:
                console.print(f"saved {path}: {note}", markup=False, highlight=False, soft_wrap=True)
    if check is None:
        return
    if options.quiet or options.json == "-":
        if not check.is_exact:
            sys.stderr.write(f"{check}\n")  # why it fails
    else:
        sys.stdout.write(f"{check}\n")
