"""Arguments that the commands have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

from compiler.cli.userfile import DynamicSize
from compiler.page.html import layout_library
from compiler.savefiles import check_file, check_folder
from compiler.written.save import check_package
from ir.errors import InputError


class UsageError(Exception):
    """An argument of the command line is wrong."""


def command_parser(prog: str, usage: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser without options, of the form that all commands have; `usage` is what follows `prog`."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=112),
        allow_abbrev=False,
    )


def add_leaf(group: argparse._ArgumentGroup) -> None:
    """Add `--leaf`."""
    group.add_argument(
        "--leaf",
        metavar="PATH",
        action="append",
        default=[],
        help="path of a submodule to keep as an opaque call; repeatable",
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options of symbolic sizes."""
    group = parser.add_argument_group("sizes")
    group.add_argument(
        "--dynamic-batch", action="store_true", help="make the first dimension of every input tensor the symbol batch"
    )
    group.add_argument(
        "--dynamic",
        metavar="INPUT.DIM=NAME[:MIN..MAX]",
        action="append",
        default=[],
        help="make one dimension symbolic; INPUT is a parameter's name or number, MIN..MAX the sizes it may have, both "
        "included (N.. has no upper end); repeatable",
    )


def add_load(group: argparse._ArgumentGroup, beside: str = "") -> None:
    """Add `--load`."""
    group.add_argument(
        "--load",
        metavar="FILE.py",
        action="append",
        default=[],
        help=f"file whose patterns and passes may be named{beside}; repeatable",
    )


def add_tracing(group: argparse._ArgumentGroup) -> None:
    """Add `--timing`, `--trace` and `--reproducers`."""
    group.add_argument("--timing", action="store_true", help="print where the time went, by pass and by rule")
    group.add_argument(
        "--trace", metavar="PATH", type=Path, help="write the course of time as JSON for ui.perfetto.dev"
    )
    group.add_argument(
        "--reproducers",
        metavar="DIR",
        type=Path,
        help="where a pass raises, write the program before it, and how to run that pass on it again",
    )


def add_json(group: argparse._ArgumentGroup) -> None:
    """Add `--json`."""
    group.add_argument(
        "--json", metavar="PATH", help="write the report as JSON; - is standard output, instead of the report"
    )


def add_reports(group: argparse._ArgumentGroup) -> None:
    """Add `--report-html` and `--report-dot`."""
    group.add_argument(
        "--report-html",
        metavar="PATH",
        type=Path,
        help="write a page to look at: the graph before and after, each pass",
    )
    group.add_argument("--report-dot", metavar="PATH", type=Path, help="write the graph of the result as a DOT file")


def prints_aside(options: argparse.Namespace) -> AbstractContextManager[object]:
    """Send what the user's code prints to standard error where standard output is the report as JSON."""
    return redirect_stdout(sys.stderr) if options.json == "-" else nullcontext()


def report_files(options: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Return the files of the reports; what one needs must be installed before the work starts.

    Raises:
        MissingPackageError: the extra `report` is not installed.
    """
    if options.report_html is not None:
        layout_library()
    return options.report_html, options.report_dot


def add_traceback(group: argparse._ArgumentGroup) -> None:
    """Add `--traceback`."""
    group.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")


def user_files(options: argparse.Namespace) -> list[Path]:
    """Return the user's Python files that the options name, whole paths."""
    named = [getattr(options, name, None) for name in ("model", "calibration", "check")]
    places = [text.rpartition(":")[0] for text in named if text and ":" in text]
    return [Path(name).resolve() for name in (*places, *getattr(options, "load", ()))]


def split_place(text: str) -> tuple[Path, str]:
    """Return file and function of `FILE.py:FUNCTION`.

    Raises:
        UsageError: when the text has another form, or there is no such file.
    """
    name, colon, function = text.rpartition(":")
    if not name or not colon or not function.isidentifier():
        raise UsageError(f"{text!r} is not of the form FILE.py:FUNCTION")
    return existing(name), function


def existing(name: str) -> Path:
    """Return the path of a file.

    Raises:
        UsageError: when there is none.
    """
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"there is no file {name}")
    return path


def dynamic_sizes(texts: Sequence[str]) -> list[DynamicSize]:
    """Return the sizes that texts describe.

    Raises:
        UsageError: when one has another form.
    """
    try:
        return [DynamicSize.parse(text) for text in texts]
    except InputError as error:
        raise UsageError(str(error)) from error


def check_outputs(
    options: argparse.Namespace,
    files: Sequence[Path],
    folders: Sequence[Path | None] = (),
    packages: Sequence[Path | None] = (),
) -> None:
    """Check that files and packages can be written, each to a place of its own, and that folders can be made.

    Raises:
        UsageError: when one cannot, two have the same place, or one is a file of the user's code.
    """
    seen: set[Path] = set()
    kept, made = list(filter(None, folders)), list(filter(None, packages))
    for path in [*files, *kept, *made]:
        place = path.resolve()
        if place in seen:
            raise UsageError(f"two results are to be written to {path}: give each its own file or folder")
        seen.add(place)
    try:
        for path in files:
            check_file(path)
        for path in kept:
            check_folder(path)
        for path in made:
            check_package(path)
    except InputError as error:
        raise UsageError(str(error)) from error
    for path in files:
        if path.resolve() in user_files(options):
            raise UsageError(f"{path} is read, and a result is to be written to it: give that a file of its own")
