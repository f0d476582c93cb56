"""The command line: `graphwright MODEL.py:function`, also `python -m compiler`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

from compiler.cli import bisecting, opt, quantizing
from compiler.cli.arguments import (
    UsageError,
    add_json,
    add_leaf,
    add_reports,
    add_sizes,
    add_traceback,
    add_tracing,
    check_outputs,
    command_parser,
    dynamic_sizes,
    existing,
    prints_aside,
    report_files,
    split_place,
    user_files,
)
from compiler.cli.explaining import add_explain, check_explain, show_explanation
from compiler.cli.listing import list_everything
from compiler.cli.pipelines import add_pipeline, pipeline_of_options
from compiler.cli.progress import compile_and_report, shown
from compiler.cli.userfile import (
    DynamicSize,
    UserModel,
    dynamic_shapes_of,
    extensions_of,
    line_in,
    load_file,
    load_model,
    search_path,
)
from compiler.driver import VALIDATE_MODES, TransformResult
from compiler.pipeline import STANDARD_PASSES
from compiler.report import Report, print_remarks, print_report
from compiler.savefiles import Writer, write_files
from compiler.targets import STANDARD_PATTERNS
from compiler.written.save import write_package
from ir.errors import GraphwrightError
from passes.manager.instruments import DumpIR
from passes.manager.manager import Fixpoint, Pass, PassManager
from passes.manager.timing import Timing
from passes.rewrite.pattern import Pattern

_DESCRIPTION = """\
Compile a PyTorch model: capture it, rewrite it for a runtime, and emit an nn.Module that gives the same numbers.

FUNCTION takes no arguments and returns (module, example inputs), or (module, example inputs, keyword arguments).
The report says what was converted and fused, what was not and why, and how exact the result is.
"""

_EXAMPLES = """\
examples:
  graphwright net.py:make                                    compile what make() of net.py returns, print the report
  graphwright net.py:make --save-module net.pt --save-code net_code
  graphwright net.py:make --dynamic-batch --validate final   symbolic batch size; compare with the original
  graphwright net.py:make --dynamic x.1=seq:2..512           symbolic second dimension of input x
  graphwright net.py:make --target openvino                  conversions and fusions of another runtime
  graphwright net.py:make --patterns conversions,LinearPattern
  graphwright net.py:make --pipeline 'canonicalize,fuse{patterns=ConvBNActPattern,ConvBNPattern}'
  graphwright net.py:make --load my_rules.py --patterns all,MyPattern
  graphwright net.py:make --explain layer2.0.conv1 --rule ConvBNActPattern
  graphwright quantize --help                                quantize a model, save it as ONNX, check it in engines
  graphwright opt --help                                     run a pipeline on the text of a program
  graphwright bisect --help                                  find the rewrite that makes the result wrong
  graphwright --list                                         every pattern with its equation, and every pass

exit codes: 0 done, 1 the model could not be compiled, 2 wrong usage
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_parser("graphwright", "MODEL.py:FUNCTION [options]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL.py:FUNCTION", help="the file and its function that makes the model"
    )

    group = parser.add_argument_group("what is done")
    add_pipeline(group)
    add_leaf(group)

    add_sizes(parser)

    group = parser.add_argument_group("checks")
    group.add_argument(
        "--validate",
        choices=VALIDATE_MODES,
        default="off",
        help="final: compare with the original on random inputs; each: around every rewrite too (default: %(default)s)",
    )
    group.add_argument("--strict", action="store_true", help="a rule that raises is an error, and not passed over")
    group.add_argument("--no-measure", action="store_true", help="do not measure the error against float64")

    group = parser.add_argument_group("results")
    group.add_argument("--save-module", metavar="PATH", type=Path, help="save the emitted module with torch.save")
    group.add_argument(
        "--save-code", metavar="DIR", type=Path, help="write it as a package of code that can be read and imported"
    )
    group.add_argument("--save-ir", metavar="PATH", type=Path, help="write the final IR")
    group.add_argument("--dump-ir", metavar="DIR", type=Path, help="write the IR after each pass that changed it")
    add_json(group)
    add_reports(group)
    group.add_argument(
        "--remarks", action="store_true", help="print every remark: what was applied, missed, skipped, kept"
    )
    add_explain(group)
    group.add_argument("--quiet", action="store_true", help="print no report and no progress bar")

    add_tracing(parser.add_argument_group("about the passes"))

    group = parser.add_argument_group("about")
    group.add_argument("--list", action="store_true", help="list patterns and passes, and exit")
    add_traceback(group)
    group.add_argument(
        "--version", action="version", version=f"graphwright {package_version()} (torch {torch.__version__})"
    )
    return parser


def package_version() -> str:
    """Return the version of the installed package, or `0 (not installed)`."""
    try:
        return version("graphwright")
    except PackageNotFoundError:
        return "0 (not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words and words[0] in _COMMANDS else ""
    parser, run = _COMMANDS.get(command, (build_parser, _run))
    options = parser().parse_args(words[1:] if command else words)
    errors = Console(stderr=True, highlight=False)
    with warnings.catch_warnings(), _quiet_torch():
        warnings.showwarning = lambda message, *_args, **_kwargs: errors.print(
            f"warning: {message}", style="yellow", markup=False, soft_wrap=True
        )
        try:
            return run(options)
        except UsageError as error:
            errors.print(f"graphwright: {error}", markup=False, soft_wrap=True)
            name = f"graphwright {command}".rstrip()
            errors.print(f"`{name} --help` explains the options", style="dim")
            return 2
        except KeyboardInterrupt:
            return 130
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one message for the user, whatever it is
            if options.traceback:
                traceback.print_exc()
            else:
                _print_error(error, user_files(options), errors)
            return 1


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence torch's log lines, which repeat our errors, unless TORCH_LOGS asks for them."""
    before = logging.root.manager.disable
    if "TORCH_LOGS" not in os.environ:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _print_error(error: BaseException, files: Sequence[Path], console: Console) -> None:
    text = str(error)
    if not isinstance(error, GraphwrightError):
        # such as what a calibration function raises while it runs
        place = next(filter(None, (line_in(error, path) for path in files)), "")
        if not isinstance(error, OSError) or place:
            hint = "" if place else " (unexpected: --traceback shows where)"
            text = f"{type(error).__name__}: {text}{hint}{place}"
    console.print("graphwright: error:", style="bold red", end=" ")
    console.print("\n".join([text, *getattr(error, "__notes__", ())]), markup=False, soft_wrap=True)


def _run(options: argparse.Namespace) -> int:
    if options.list and options.model is None:
        return _list(extensions_of([load_file(existing(path)) for path in options.load]))
    if options.model is None:
        raise UsageError("MODEL.py:FUNCTION is missing")
    path, function = split_place(options.model)
    sizes = dynamic_sizes(options.dynamic)
    _check_targets(options)
    check_explain(options)
    for extra in options.load:
        existing(extra)
    with prints_aside(options), search_path(path.resolve().parent):
        file = load_file(path)
        patterns, passes = extensions_of([file, *(load_file(Path(extra)) for extra in options.load)])
        if options.list:
            return _list((patterns, passes))
        pipeline = pipeline_of_options(options, patterns, passes)
        if options.dump_ir is not None:
            pipeline = pipeline.with_instruments(DumpIR(options.dump_ir))
        user = load_model(file, function)
        result, report = _compile(options, user, pipeline, sizes)
    _write(options, result, report)
    _show(options, report)
    show_explanation(options, result, Console())
    return 0


def _list(extensions: tuple[tuple[type[Pattern], ...], tuple[type[Pass], ...]]) -> int:
    patterns, passes = extensions
    list_everything((*STANDARD_PATTERNS, *patterns), (*STANDARD_PASSES, Fixpoint, *passes), Console())
    return 0


def _check_targets(options: argparse.Namespace) -> None:
    files = (options.save_module, options.save_ir, options.trace, *report_files(options))
    named = [*filter(None, files), *([Path(options.json)] if options.json not in (None, "-") else [])]
    check_outputs(options, named, [options.dump_ir, options.reproducers], [options.save_code])


def _compile(
    options: argparse.Namespace, user: UserModel, pipeline: PassManager, sizes: list[DynamicSize]
) -> tuple[TransformResult, Report]:
    timing = Timing() if options.timing or options.trace is not None else None
    with shown(timing, tree=options.timing, trace=options.trace):
        return _compile_under(options, user, pipeline, sizes, timing)


def _compile_under(
    options: argparse.Namespace,
    user: UserModel,
    pipeline: PassManager,
    sizes: list[DynamicSize],
    timing: Timing | None,
) -> tuple[TransformResult, Report]:
    return compile_and_report(
        options.model,
        user.module,
        user.args,
        user.kwargs or None,
        timing=timing,
        pipeline=pipeline,
        # the file: capture holds back writes to sys.stderr, and the bar shall move on
        console=Console(file=sys.stderr, quiet=options.quiet),
        unmeasured="--no-measure" if options.no_measure else "" if user.args is not None else "no example inputs",
        transient=True,
        dynamic_shapes=dynamic_shapes_of(user, sizes, batch=options.dynamic_batch),
        leaf_modules=tuple(options.leaf),
        target=options.target,
        validate=options.validate,
        strict=options.strict,
        reproducer_dir=options.reproducers,
    )


def _write(options: argparse.Namespace, result: TransformResult, report: Report) -> None:
    writers: dict[Path, Writer] = {}
    if options.save_code is not None:
        writers[options.save_code] = lambda path: write_package(result.model, path, source=options.model)
    if options.save_module is not None:
        writers[options.save_module] = lambda path: torch.save(result.model, path)
    if options.report_html is not None:
        writers[options.report_html] = lambda path: result.save_html(path, title=options.model)
    if options.report_dot is not None:
        writers[options.report_dot] = result.save_dot
    texts = {
        options.save_ir: lambda: str(result.program),
        Path(options.json) if options.json not in (None, "-") else None: lambda: _json_text(report),
    }
    for target, text in texts.items():
        if target is not None:
            writers[target] = lambda path, text=text: path.write_text(text(), encoding="utf-8")  # type: ignore[misc]
    write_files(writers)


def _json_text(report: Report) -> str:
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"


def _show(options: argparse.Namespace, report: Report) -> None:
    if options.json == "-":
        sys.stdout.write(_json_text(report))
        return
    console = Console(quiet=options.quiet)
    print_report(report, console)
    if options.remarks:
        print_remarks(report.remarks, console)
    notes = {
        options.save_module: "load it with torch.load(PATH, weights_only=False)",
        options.save_code: "import it, and call its `load()`",
        options.save_ir: "its IR",
        options.report_html: "the report, for a browser",
        options.report_dot: "the graph, for Graphviz",
    }
    for path, note in notes.items():
        if path is not None:
            console.print(f"saved {path}: {note}", markup=False, highlight=False, soft_wrap=True)


_COMMANDS: Mapping[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "quantize": (quantizing.build_parser, quantizing.run),
    "opt": (opt.build_parser, opt.run),
    "bisect": (bisecting.build_parser, bisecting.run),
}
"""Name -> parser and what runs the command, of all but the one without a name."""


if __name__ == "__main__":
    sys.exit(main())
