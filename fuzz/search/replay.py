"""The check of case files: past failures, and expected results of passes."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from compiler.pipeline import pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.rules.orders import InOrder
from fuzz.search.casefile import SUFFIX, CaseFile, read_case, with_expected
from fuzz.search.judge import judge
from fuzz.search.sound import Target, check
from ir.errors import EvaluationError, InputError
from ir.evaluate import evaluate
from ir.text.printer import print_program
from passes.manager.manager import Pass, PassContext, run_pass

CORPUS = Path(__file__).parent.parent / "corpus"
UPDATE = "GRAPHWRIGHT_UPDATE_GOLDEN"
"""An environment variable: if it is set, results are written as expected ones."""


def case_files(folder: Path = CORPUS) -> list[Path]:
    """Return the case files of a folder, sorted: programs as text, and modules as scripts."""
    found = (path for path in folder.iterdir() if path.suffix in (SUFFIX, ".py") and path.name != "__init__.py")
    return sorted(found)


def replay(path: Path) -> None:
    """Check the case of a file.

    Raises:
        Finding: when a property does not hold, or the result is not the expected one.
        GraphwrightError: when the file is not a case.
    """
    if path.suffix == SUFFIX:
        _replay_text(path, read_case(path))
    else:
        _replay_script(path)


def _replay_text(path: Path, file: CaseFile) -> None:
    target = Target.of(file.subject, file.properties)
    pass_ = InOrder(target.pass_, file.order) if file.order else target.pass_
    try:
        with quiet():
            outcome = judge(pass_, file.case, target.properties)
            if not outcome.changed:
                evaluate(file.case.build(), file.case.inputs)
    except (Unusable, EvaluationError, InputError) as error:
        raise InputError(f"{path}: the program does not run on its inputs: {error.__cause__ or error}") from error
    _check_that_it_fires(file.fires, bool(outcome.changed), dict(outcome.fired))
    if file.expected is not None:
        _compare(path, file, pass_)


def _compare(path: Path, file: CaseFile, pass_: Pass) -> None:
    """Compare the result with the expected program, or write it to the file."""
    program = file.case.build()
    run_pass(pass_, program, PassContext())
    text = print_program(program, locations=False)
    if text != file.expected and os.environ.get(UPDATE):
        with path.open(encoding="utf-8", newline="") as file_:  # its line ends stay
            before = file_.read()
        path.write_text(with_expected(before, text), encoding="utf-8", newline="")
    elif text != file.expected:
        lines = (file.expected or "").splitlines()
        shown = difflib.unified_diff(lines, text.splitlines(), str(path), "what comes out", lineterm="")
        raise Finding("expected", "\n".join(["another program comes out", *shown]))


def _replay_script(path: Path) -> None:
    """Check the CASE of a script, mostly a module; by default with the whole pipeline and all properties."""
    names = {"SUBJECT": pipeline_of(TENSORRT_PATTERNS), "PROPERTIES": Properties(), **vars(_load(path))}
    if "CASE" not in names:
        raise InputError(f"{path} has no CASE", remedy="see fuzz/corpus/README.md")
    outcome = check(names["SUBJECT"], names["CASE"], names["PROPERTIES"])
    refused = names.get("REFUSED")
    if refused is not None and not any(refused in reason for rule, reason in outcome.refused if rule == "transform"):
        raise Finding("it is refused", f"no refusal names {refused!r}: {dict(outcome.refused)}")
    fates: Sequence[str] = names.get("FATES") or ()
    for _, fate in outcome.fates:
        if fates and fate not in fates:
            reasons = [reason for rule, reason in outcome.refused if rule == "transform"]
            raise Finding("what becomes of it", f"it is {fate}, not {' or '.join(fates)}: {'; '.join(reasons)}")
    _check_that_it_fires(names.get("FIRES"), bool(outcome.changed), dict(outcome.fired))


def _check_that_it_fires(fires: bool | None, changed: bool, fired: dict[str, int]) -> None:
    if fires is not None and changed != fires:
        raise Finding("it fires" if fires else "it does not fire", f"rewrites: {fired}")


def _load(path: Path) -> types.ModuleType:
    """Import a file under a name that `inspect` finds: the source of a class is part of its case."""
    name = f"corpus_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is neither a Python file nor a case ({SUFFIX})")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def replay_all(files: Sequence[Path] = ()) -> list[tuple[Path, str]]:
    """Check the given files, or the whole corpus; return those that fail, with the reason."""
    failures = []
    for path in files or case_files():
        try:
            replay(path)
        except Exception as error:  # noqa: BLE001 - one file that cannot be run must not hide the others
            failures.append((path, str(error) if isinstance(error, Finding) else f"{type(error).__name__}: {error}"))
    return failures
