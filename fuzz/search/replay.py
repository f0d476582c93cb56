"""The corpus: cases that went wrong once, each a script of its own, checked again."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from fuzz.programs.check import Finding
from fuzz.search.sound import check
from ir.errors import InputError

CORPUS = Path(__file__).parent.parent / "corpus"


def corpus_files() -> list[Path]:
    """Return the files of the corpus, in order."""
    return sorted(path for path in CORPUS.glob("*.py") if path.name != "__init__.py")


def replay(path: Path) -> None:
    """Check the case of a file: its SUBJECT on its CASE, under its PROPERTIES.

    Raises:
        Finding: when a property does not hold.
        InputError: when the file does not have these three names.
    """
    names = vars(_load(path))
    missing = [name for name in ("SUBJECT", "PROPERTIES", "CASE") if name not in names]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}", remedy="see fuzz/corpus/README.md")
    outcome = check(names["SUBJECT"], names["CASE"], names["PROPERTIES"])
    refused = names.get("REFUSED")
    if refused is not None and not any(refused in reason for rule, reason in outcome.refused if rule == "transform"):
        raise Finding("it is refused", f"no refusal names {refused!r}: {dict(outcome.refused)}")
    fates: Sequence[str] = names.get("FATES") or ()
    for _, fate in outcome.fates:
        if fates and fate not in fates:
            reasons = [reason for rule, reason in outcome.refused if rule == "transform"]
            raise Finding("what becomes of it", f"it is {fate}, not {' or '.join(fates)}: {'; '.join(reasons)}")
    fires = names.get("FIRES")
    if fires is not None and bool(outcome.changed) != fires:
        raise Finding("it fires" if fires else "it does not fire", f"rewrites: {dict(outcome.fired)}")


def _load(path: Path) -> types.ModuleType:
    """Return a file as a Python module that `inspect` finds: the source of a class is part of its case."""
    name = f"corpus_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def replay_all(files: Sequence[Path] = ()) -> list[tuple[Path, str]]:
    """Check the given files, or the whole corpus; return those that do not hold, with the reason."""
    failures = []
    for path in files or corpus_files():
        try:
            replay(path)
        except Exception as error:  # noqa: BLE001 - one file that cannot be run must not hide the others
            failures.append((path, str(error) if isinstance(error, Finding) else f"{type(error).__name__}: {error}"))
    return failures
