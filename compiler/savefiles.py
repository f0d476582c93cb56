"""Output files: targets are checked before the work starts, and files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ir.errors import GraphwrightError, InputError

Writer = Callable[[Path], object]
"""Writes one file or folder to a path."""


class SaveError(GraphwrightError):
    """A result could not be written."""


def check_file(path: Path) -> None:
    """Check that a file can be put at `path`.

    Raises:
        InputError: when it is a folder, or its folder does not exist.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to write {path.name} to")
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is to be written there: name a file in it")


def check_folder(path: Path) -> None:
    """Check that `path` is a folder or can become one.

    Raises:
        InputError: when it or one of its parents is a file.
    """
    for place in (path, *path.parents):
        if place.is_dir():
            return
        if place.exists():
            raise InputError(f"{place} is a file, and a folder is needed there: name another one")


def write_files(writers: Mapping[Path, Writer]) -> None:
    """Write all files and folders, or none if one cannot be written.

    Each is first written under a temporary name beside its place, then moved. Where a link stands, that is what it
    points to. What is no file or folder, such as a device or a pipe, gets the bytes of a file and stays.

    Raises:
        SaveError: when one cannot be written, with the path and the reason.
    """
    places = {path: path.resolve() if path.is_symlink() else path for path in writers}
    path, drafts = Path(), dict[Path, Path]()
    beside = Path(tempfile.gettempdir())
    try:
        for path, write in writers.items():
            place = places[path]
            folder = beside if _is_special(place) else place.parent
            drafts[path] = folder / f".{place.name}.{os.getpid()}.part"
            write(drafts[path])
        for path, draft in drafts.items():
            _move(draft, places[path])
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error
    except SaveError as error:  # of a file that a writer wrote to its draft
        raise SaveError(error.message.replace(str(drafts[path]), str(path)), remedy=error.remedy) from error
    except GraphwrightError:
        raise
    except Exception as error:
        raise SaveError(
            f"cannot write {path}: {type(error).__name__}: {error}",
            remedy="what the module holds must be picklable: no lambdas, no classes defined inside of functions",
        ) from error
    finally:
        for draft in drafts.values():
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _move(draft: Path, path: Path) -> None:
    """Put a file or a folder in the place of an old one."""
    if _is_special(path):
        with draft.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        return
    if not (draft.is_dir() and path.is_dir()):
        draft.replace(path)
        return
    old = draft.with_suffix(".old")
    path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
