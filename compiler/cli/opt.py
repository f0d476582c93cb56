"""The command `graphwright opt PROGRAM.gw`: text of a program in, text out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from compiler.bisection import has_data
from compiler.cli.arguments import (
    UsageError,
    add_load,
    add_traceback,
    add_tracing,
    check_outputs,
    command_parser,
    existing,
)
from compiler.cli.progress import shown
from compiler.cli.userfile import extensions_of, load_file
from compiler.equality.validate_rewrites import EachRewriteValidator
from compiler.pipeline import parse_pipeline
from compiler.programfile import SUFFIX, load_weights_file, save_program, weights_beside
from compiler.reproducer import PROGRAM, Reproducer, Reproducers, current_versions, pipeline_of_reproducer
from compiler.savefiles import write_files
from compiler.scopes import check_scopes
from ir.errors import InputError, ParseError, VerificationError
from ir.program import Program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.verify import verify
from passes.manager.instruments import DiffIR, DumpIR, VerifyEach
from passes.manager.manager import Instrument, Pass, PassContext, PassManager
from passes.manager.timing import Timing
from passes.rewrite.driver import RewriteLog
from passes.rewrite.pattern import Pattern

SPLIT = "# -----"
"""The line between two programs of one file."""

_DESCRIPTION = """\
Run a pipeline on the text of a program, and print the text of the result, as mlir-opt does.

Weights need no data; where the file of weights lies beside the program, passes see their numbers.
What is said while it runs goes to standard error.
"""

_EXAMPLES = """\
examples:
  graphwright opt net.gw --pipeline canonicalize             print the canonical form
  graphwright opt net.gw --pipeline 'canonicalize,fuse{patterns=tensorrt.fusions}' --diff
  graphwright opt net.gw --load my_rules.py --pipeline 'convert{patterns=MyPattern}' --diff
  graphwright opt --run-reproducer reproducers/fuse          what raised once more

exit codes: 0 done, 1 the text is no program, or a pass raised, 2 wrong usage
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = command_parser("graphwright opt", "[PROGRAM.gw] [options]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "program", nargs="?", metavar="PROGRAM.gw", default="-", help="the file; - is standard input (default)"
    )

    group = parser.add_argument_group("what is done")
    group.add_argument("--pipeline", metavar="TEXT", default="", help="passes to run (default: none)")
    add_load(group)
    group.add_argument(
        "--weights",
        metavar="PATH",
        type=Path,
        help=f"safetensors file of the program's weights, or of those of the original model (default: PROGRAM{SUFFIX}, "
        "if there is one)",
    )
    group.add_argument("--strict", action="store_true", help="a rule that raises is an error, and not passed over")
    group.add_argument(
        "--verify-each",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify the program after each pass (default: yes)",
    )
    group.add_argument(
        "--split-input",
        action="store_true",
        help=f"the file holds several programs, with a line `{SPLIT}` between them",
    )
    group.add_argument(
        "--run-reproducer", metavar="DIR", type=Path, help="run a reproducer, which has a program and a pipeline"
    )

    group = parser.add_argument_group("results")
    group.add_argument(
        "-o", "--output", metavar="PATH", type=Path, help="write the text to a file, and weights beside it where it has"
    )
    group.add_argument("--no-locations", action="store_true", help="leave out where in the model operations came from")

    group = parser.add_argument_group("what is shown")
    group.add_argument("--diff", action="store_true", help="after each pass that changed something: the unified diff")
    group.add_argument("--dump-after-change", action="store_true", help="after each such pass: the whole program")
    add_tracing(group)
    add_traceback(group)
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return the exit code.

    Raises:
        UsageError: when an argument is wrong.
        GraphwrightError: when the text is no program or no pipeline, or a pass raises.
    """
    _check(options)
    with redirect_stdout(sys.stderr):  # what the user's code prints: standard output is the program
        programs = _programs(options)
    _write(options, programs)
    return 0


def _programs(options: argparse.Namespace) -> list[Program]:
    """Return the programs that the pipeline was run on."""
    patterns, passes = extensions_of([load_file(existing(path)) for path in options.load])
    if options.run_reproducer is not None:
        return [_run_reproducer(options, passes, patterns)]
    manager = parse_pipeline(options.pipeline, passes=passes, patterns=patterns)
    text = sys.stdin.read() if options.program == "-" else _read(existing(options.program))
    programs = [_program(part, options) for part in (_parts(text) if options.split_input else [text])]
    timing = Timing() if options.timing or options.trace is not None else None
    with shown(timing, tree=options.timing, trace=options.trace):
        for program in programs:
            check_scopes(manager, program, {})
            _run(program, manager, options, timing, RewriteLog(strict=options.strict))
    return programs


def _check(options: argparse.Namespace) -> None:
    check_outputs(options, [*filter(None, (options.output, options.trace))], [options.reproducers])
    if options.weights is not None:
        existing(str(options.weights))
        if options.split_input:
            raise UsageError("--weights and --split-input are both given: several programs have no weights in common")
    if options.run_reproducer is not None and (options.program != "-" or options.pipeline):
        raise UsageError("--run-reproducer has a program and a pipeline: leave out the others")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error


def _parts(text: str) -> list[str]:
    """Return the programs of a text, behind as many empty lines as make their line numbers those of the text."""
    parts: list[list[str]] = [[]]
    for number, line in enumerate(text.splitlines()):
        if line.rstrip() == SPLIT:
            parts.append([""] * (number + 1))
        else:
            parts[-1].append(line)
    return ["\n".join(part) + "\n" for part in parts]


def _program(text: str, options: argparse.Namespace) -> Program:
    name = "<stdin>" if options.program == "-" else options.program
    try:
        program = parse_program(text)
        verify(program)
    except ParseError as error:
        raise ParseError(f"{name}, {error.message}", line=error.line, column=error.column) from error
    except VerificationError as error:
        line = 1 + len(text) - len(text.lstrip("\n"))  # where the program begins, of several
        raise VerificationError(f"{name}:{line}: {error.message}", location=error.location) from error
    alone = options.program != "-" and not options.split_input
    weights = options.weights or (weights_beside(Path(options.program), text) if alone else None)
    if weights is not None:
        load_weights_file(program, weights)
    return program


def _run(
    program: Program,
    manager: PassManager,
    options: argparse.Namespace,
    timing: Timing | None,
    log: RewriteLog,
) -> None:
    instruments: list[Instrument] = [] if timing is None else [timing]
    if options.reproducers is not None:
        instruments.append(Reproducers(options.reproducers, (manager,), log.modules, strict=log.strict))
    if options.diff:
        instruments.append(DiffIR(_print_after, locations=not options.no_locations))
    if options.dump_after_change:
        instruments.append(DumpIR(_print_after))
    if options.verify_each:
        instruments.append(VerifyEach(check_unchanged=True))
    manager.run(
        program,
        PassContext(log=log, instruments=tuple(instruments), scope=manager.scope.bound(log.modules)),
    )


def _print_after(title: str, text: str) -> None:
    # as a comment of the text form, so that a dump is a program
    sys.stderr.write(f"# ---- after {title} ----\n{text}")


def _write(options: argparse.Namespace, programs: Sequence[Program]) -> None:
    text = f"{SPLIT}\n".join(print_program(each, locations=not options.no_locations) for each in programs)
    if options.output is None:
        sys.stdout.write(text)
    elif len(programs) == 1 and not options.no_locations and has_data(programs[0]):
        save_program(programs[0], options.output)
    else:
        write_files({options.output: lambda path: path.write_text(text, encoding="utf-8")})


def _run_reproducer(
    options: argparse.Namespace, passes: Sequence[type[Pass]], patterns: Sequence[type[Pattern]]
) -> Program:
    """Run a reproducer, and say whether the error is the recorded one; return the program where nothing is raised."""
    held = Reproducer.load(options.run_reproducer)
    manager = pipeline_of_reproducer(held, passes, patterns)
    sys.stderr.write(f"pipeline: {held.pipeline}\n")
    versions = current_versions()
    for name, version in held.versions.items():
        if versions.get(name) != version:
            sys.stderr.write(f"{name} is {versions.get(name)} here, and was {version}\n")
    options.program = str(held.folder / PROGRAM)
    program = _program(_read(Path(options.program)), options)
    log = RewriteLog(
        strict=held.strict,
        modules=held.module_classes,
        hook=EachRewriteValidator() if held.validate == "each" else None,
    )
    torch.manual_seed(held.seed)
    try:
        _run(program, manager, options, None, log)
    except Exception as error:
        same = held.error == (type(error).__name__, getattr(error, "message", str(error)))
        error.add_note("this is the recorded error" if same else f"recorded was {': '.join(held.error)}")
        raise
    sys.stderr.write(f"nothing was raised; recorded was {': '.join(held.error)}\n")
    return program
