"""Arguments that the commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.cli.userfile import DynamicSize
from compiler.savefiles import check_file
from ir.errors import InputError


class UsageError(Exception):
    """An argument of the command line is wrong."""


def split_place(text: str) -> tuple[Path, str]:
    """Return file and function of `FILE.py:FUNCTION`.

    Raises:
        UsageError: when the text has another form, or there is no such file.
    """
    name, colon, function = text.rpartition(":")
    if not colon or not function.isidentifier():
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


def check_outputs(files: Sequence[Path]) -> None:
    """Check that files can be written, each to a place of its own.

    Raises:
        UsageError: when one cannot, or two have the same place.
    """
    places = [path.resolve() for path in files]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UsageError(f"two results are to be written to {files[number]}: give each its own file")
    try:
        for path in files:
            check_file(path)
    except InputError as error:
        raise UsageError(str(error)) from error
