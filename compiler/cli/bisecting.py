"""The command `graphwright bisect MODEL.py:FUNCTION`: which rewrite makes the result wrong."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from compiler.bisection import BEFORE, FOUND, Bisection, Bisector, Judge, UntestableError, bisect, has_data
from compiler.cli.arguments import (
    UsageError,
    add_leaf,
    add_sizes,
    add_traceback,
    check_outputs,
    command_parser,
    dynamic_sizes,
    existing,
    split_place,
)
from compiler.cli.pipelines import add_pipeline, pipeline_of_options
from compiler.cli.userfile import UserCodeError, dynamic_shapes_of, extensions_of, load_file, load_model, search_path
from compiler.prepare import ONE_AT_A_TIME, prepare
from compiler.programfile import load_weights_file, save_program, weights_beside
from compiler.scopes import check_scopes
from ir.errors import GraphwrightError
from ir.program import Program
from ir.text.parser import parse_program
from ir.verify import verify
from passes.rewrite.bounds.tolerance import Bounds

PLACE = "{program}"
"""What stands in a command for the file of a program."""
_UNTESTABLE = 125
_NO_COMMAND = (126, 127)

_DESCRIPTION = """\
Find the rewrite that makes the result of a pipeline wrong.

The pipeline is run with its first steps only (rewrites, and runs of passes), and a binary search finds one with which
the result becomes wrong. It is wrong where it differs from the original, or where the command says so.
"""

_EXAMPLES = """\
examples:
  graphwright bisect net.py:make                             the step after which numbers differ from the original's
  graphwright bisect net.py:make --check net.py:is_right     a function of the emitted module, which returns a bool
  graphwright bisect net.py:make --command 'python check.py {program}' -o found
  graphwright bisect net.gw --pipeline canonicalize --command 'python check.py {program}'

A command is run as by `git bisect run`: it exits with 0 where the program is right, with 125 where that cannot be told,
and with another code where it is wrong. {program} is the file of a program, as `graphwright.load_program` reads it.
There is no shell, so `&&`, `>` and `$NAME` are arguments like others; where they are needed, run a shell:
--command "sh -c 'python a.py {program} && python b.py {program}'".

exit codes: 0 the step was found, 1 it was not: the result is never wrong, or wrong at the start, 2 wrong usage
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = command_parser("graphwright bisect", "MODEL.py:FUNCTION|PROGRAM.gw [options]", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "model", metavar="MODEL.py:FUNCTION", help="the file and its function that makes the model, or a program's file"
    )
    group = parser.add_argument_group("what is done")
    add_pipeline(group)
    group.add_argument("--strict", action="store_true", help="a rule that raises is an error, and not passed over")
    add_leaf(group)
    add_sizes(parser)
    group = parser.add_argument_group("what is wrong")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--command", metavar="TEXT", help=f"run, without a shell, for each result: {PLACE} is its file")
    what.add_argument("--check", metavar="FILE.py:FUNCTION", help="called with each emitted module")
    group = parser.add_argument_group("results")
    group.add_argument("-o", "--output", metavar="DIR", type=Path, help="write the program before and after the step")
    group.add_argument("--quiet", action="store_true", help="do not say what each check finds")
    add_traceback(parser.add_argument_group("about"))
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return the exit code.

    Raises:
        UsageError: when an argument is wrong.
        GraphwrightError: when the model cannot be captured, or the command cannot be run.
    """
    check_outputs(options, [], [options.output])
    if options.command is not None and PLACE not in options.command:
        raise UsageError(f"the command names no program: write {PLACE} where its file shall stand")
    for extra in options.load:
        existing(extra)
    found = _of_program(options) if options.model.endswith(".gw") else _of_model(options)
    sys.stdout.write(f"{found}\n")
    if found.verdict == FOUND and options.output is not None:
        for file in found.save(options.output):
            sys.stdout.write(f"saved {file}\n")
    elif found.verdict == FOUND:
        sys.stdout.write(found.diff)
    elif found.verdict == BEFORE:
        sys.stdout.write("no rewrite is at fault: without any the result is wrong as well\n")
    return 0 if found.verdict == FOUND else 1


def _report(options: argparse.Namespace) -> Callable[[str], None] | None:
    def report(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    return None if options.quiet else report


def _of_model(options: argparse.Namespace) -> Bisection:
    path, function = split_place(options.model)
    sizes = dynamic_sizes(options.dynamic)
    if options.check is not None:
        split_place(options.check)
    with search_path(path.resolve().parent), tempfile.TemporaryDirectory() as folder:
        file = load_file(path)
        pipeline = pipeline_of_options(options, *extensions_of([file, *map(load_file, map(Path, options.load))]))
        user = load_model(file, function)
        arguments: dict[str, Any] = {
            "target": options.target,
            "pipeline": pipeline,
            "dynamic_shapes": dynamic_shapes_of(user, sizes, batch=options.dynamic_batch),
            "leaf_modules": tuple(options.leaf),
        }
        given = user.module, user.args, user.kwargs or None
        if options.command is None:
            check = None if options.check is None else _function(options.check)
            return bisect(*given, **arguments, check=check, strict=options.strict, progress=_report(options))
        with ONE_AT_A_TIME:
            prepared = prepare(*given, **arguments, patterns=None, training=None)
            judge = _running(options.command, Path(folder))
            return Bisector(
                prepared.program, prepared.manager, judge, prepared.modules, options.strict, _report(options)
            ).run()


def _of_program(options: argparse.Namespace) -> Bisection:
    if options.command is None:
        raise UsageError("a program has no inputs to compare results on: tell what is wrong by `--command`")
    path = existing(options.model)
    with tempfile.TemporaryDirectory() as folder:
        manager = pipeline_of_options(options, *extensions_of([load_file(Path(each)) for each in options.load]))
        text = path.read_text(encoding="utf-8")
        program = parse_program(text)
        verify(program)
        weights = weights_beside(path, text)
        if weights is not None:
            load_weights_file(program, weights)
        check_scopes(manager, program, {})
        judge = _running(options.command, Path(folder))
        return Bisector(program, manager, judge, {}, options.strict, _report(options)).run()


def _function(place: str) -> Callable[[GraphModule], bool | None]:
    path, name = split_place(place)
    found = vars(load_file(path)).get(name)
    if not callable(found):
        raise UserCodeError(f"{path} has no function {name!r}", remedy=f"define it: `def {name}(module): return True`")
    return found  # type: ignore[no-any-return]


def _running(command: str, folder: Path) -> Judge:
    """Return what runs a command on the file of a program."""
    words = shlex.split(command)

    def judge(program: Program, _: Bounds | None) -> str | None:
        file = folder / "program.gw"
        save_program(program, file, weights=has_data(program))
        try:
            done = subprocess.run(
                [word.replace(PLACE, str(file)) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise GraphwrightError(f"the command cannot be run: {error}") from error
        if done.returncode in _NO_COMMAND:
            raise GraphwrightError(
                f"the command cannot be run: it exits with {done.returncode}\n{done.stdout}".rstrip()
            )
        if done.returncode == _UNTESTABLE:
            raise UntestableError
        if done.returncode == 0:
            return None
        last = done.stdout.rstrip().rpartition("\n")[2]
        how = f"exits with {done.returncode}" if done.returncode > 0 else f"is ended by signal {-done.returncode}"
        return f"the command {how}{f': {last}' if last else ''}"

    return judge
