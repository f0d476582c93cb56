"""Reproducers: when a pass raises, the program as it was before, and what runs that pass on it again."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from typing_extensions import override

from compiler.pipeline import STANDARD_PASSES, parse_pipeline
from compiler.programfile import save_program
from compiler.savefiles import check_folder
from compiler.targets import STANDARD_PATTERNS
from ir.core import Graph
from ir.errors import GraphwrightError, InputError
from ir.program import Program, copy_program
from passes.manager.manager import Fixpoint, Instrument, Pass, PassManager, PassResult
from passes.manager.options import takes_passes
from passes.rewrite.pattern import Pattern, unscoped
from passes.rewrite.remarks import GraphwrightWarning
from passes.rewrite.scope import CLASS, ModuleClasses

PROGRAM, RECORD = "program.gw", "reproducer.json"
"""The files of a reproducer, beside that of the weights."""
_FORMAT = 1
_MOST_BYTES = 2**30
"""Weights that take more are not written."""


@attrs.frozen
class UserClass:
    """A pass or a pattern of the user's that a pipeline names.

    Attributes:
        name: as the text of a pipeline has it.
        file: where it is defined; empty where that is no file.
        obstacle: why it cannot be read from that file; empty where it can.
    """

    name: str
    file: str
    obstacle: str = ""


@attrs.frozen
class Reproducer:
    """What runs a pass again that raised: `graphwright opt --run-reproducer FOLDER`.

    Attributes:
        folder: where it lies: the program as it was before the pass, its weights, and the record.
        pipeline: the pass, in the text form of a pipeline, within the scopes that it had.
        error: the class and the message of what it raised.
        strict: whether a rule that raises is an error.
        seed: the seed of PyTorch's random numbers.
        validate: what `transform` was given.
        versions: of Python and the packages.
        user_classes: the user's passes and patterns in the pipeline.
        modules: path of a module -> names of its class and the bases of that, where scopes name classes.
        weights: why there are no weights; empty where there are.
    """

    folder: Path
    pipeline: str
    error: tuple[str, str]
    strict: bool
    seed: int
    validate: str
    versions: dict[str, str]
    user_classes: tuple[UserClass, ...] = ()
    modules: dict[str, list[str]] = attrs.field(factory=dict)
    weights: str = ""

    @classmethod
    def load(cls, folder: Path) -> Reproducer:
        """Read the record of a reproducer; no code runs.

        Raises:
            InputError: when there is none.
        """
        try:
            held = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if held.pop("format") != _FORMAT:
                raise ValueError("it was written by another version")
            classes = tuple(UserClass(**each) for each in held.pop("user_classes"))
            return cls(folder=folder, error=tuple(held.pop("error")), user_classes=classes, **held)
        except FileNotFoundError:
            raise InputError(f"{folder} is no reproducer: it has no {RECORD}") from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / RECORD} cannot be read: {error}") from error

    @property
    def module_classes(self) -> ModuleClasses:
        """The classes of the model's modules, for the scopes."""
        return {path: frozenset(names) for path, names in self.modules.items()}

    @property
    def command(self) -> str:
        """The command that runs it."""
        files = dict.fromkeys(each.file for each in self.user_classes if not each.obstacle)
        words = ["graphwright", "opt", "--run-reproducer", str(self.folder)]
        return shlex.join([*words, *(word for file in files for word in ("--load", file))])


@attrs.define(eq=False)
class Reproducers(Instrument):
    """Writes a reproducer where a pass raises, and names it in a note of the error.

    Attributes:
        folder: the folder in which each reproducer gets one of its own.
        around: the managers around the passes that it is told of: their scopes hold.
        modules: the classes of the model's modules.
        strict: whether a rule that raises is an error.
        validate: what `transform` was given.
    """

    folder: Path
    around: tuple[PassManager, ...] = ()
    modules: ModuleClasses = attrs.field(factory=dict)
    strict: bool = True
    validate: str = "off"
    _running: list[tuple[Pass, Program]] = attrs.field(factory=list)
    _last: tuple[Pass, Program] | None = None
    _copied: tuple[Graph, int, Program] | None = None
    _told: Exception | None = None

    def __attrs_post_init__(self) -> None:
        check_folder(self.folder)

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Copy the program."""
        graph = program.graph
        if self._copied is None or self._copied[0] is not graph or self._copied[1] != graph.revision:
            self._copied = (graph, graph.revision, copy_program(program))
        self._running.append((pass_, self._copied[2]))

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Drop the copy, unless another instrument finds fault."""
        self._last = self._running.pop()

    @override
    def failed(self, pass_: Pass, program: Program, error: Exception) -> None:
        """Write the reproducer of the innermost pass that raised."""
        held = self._last if self._last is not None and self._last[0] is pass_ else None
        if self._running and self._running[-1][0] is pass_:
            held = self._running.pop()
        if error is self._told or isinstance(error, GraphwrightWarning):
            return
        self._told = error
        managers = [*self.around, *(each for each, _ in self._running if isinstance(each, PassManager))]
        # text does not know the passes that a manager makes itself, of which it runs the others in vain
        whole = next((i for i, each in enumerate(managers) if not takes_passes(type(each))), len(managers))
        named = [*managers, pass_][whole]
        try:
            written = self._write(named, managers[:whole], program if held is None else held[1], error)
        except (GraphwrightError, OSError) as fault:
            error.add_note(f"no reproducer could be written to {self.folder}: {fault}")
            return
        error.add_note(f"reproducer: {written.folder}\n  run it: {written.command}")
        for each in written.user_classes:
            if each.obstacle:
                error.add_note(f"  it cannot import {each.name} again, which {each.obstacle}")

    def _write(self, pass_: Pass, managers: Sequence[PassManager], program: Program, error: Exception) -> Reproducer:
        wrapped: Pass = pass_
        for manager in reversed(managers):
            if manager.only or manager.skip:
                wrapped = PassManager([wrapped], only=manager.only, skip=manager.skip)
        text = str(wrapped)
        reproducer = Reproducer(
            folder=self.folder / pass_.title,
            pipeline=text,
            error=(type(error).__name__, getattr(error, "message", str(error))),
            strict=self.strict,
            seed=torch.initial_seed(),
            validate=self.validate,
            versions=current_versions(),
            user_classes=tuple(dict.fromkeys(_user_classes(wrapped))),
            modules={path: sorted(names) for path, names in self.modules.items()} if CLASS in text else {},
            weights=_no_weights(program),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".part-", dir=self.folder))
        try:
            save_program(program, draft / PROGRAM, weights=not reproducer.weights)
            held = attrs.asdict(reproducer, filter=lambda field, _: field.name != "folder")
            record = json.dumps({"format": _FORMAT, **held}, indent=2, ensure_ascii=False)
            (draft / RECORD).write_text(f"{record}\n", encoding="utf-8")
            draft.chmod(0o755)
            return attrs.evolve(reproducer, folder=_moved(draft, reproducer.folder))
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _moved(draft: Path, wanted: Path) -> Path:
    """Give a folder its name, or the name with the first number that is free, in one step."""
    number = 0
    while True:
        place = wanted.with_name(f"{wanted.name}-{number}") if number else wanted
        number += 1
        if place.exists():
            continue
        try:
            os.rename(draft, place)
        except OSError:
            if not place.exists():
                raise
        else:
            return place


def current_versions() -> dict[str, str]:
    """Return the versions of Python and the packages that a compilation depends on."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    try:
        found["graphwright"] = importlib.metadata.version("graphwright")
    except importlib.metadata.PackageNotFoundError:
        found["graphwright"] = "not installed"
    return found


def _no_weights(program: Program) -> str:
    """Return why the weights of a program are not written; empty where they are."""
    tensors = [weight.data for weight in program.weights.values() if weight.data is not None]
    if len(tensors) < len(program.weights) or any(tensor.is_meta for tensor in tensors):
        return "the weights have no data"
    if importlib.util.find_spec("safetensors") is None:
        return "the extra `safetensors` is not installed"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _MOST_BYTES:
        return f"they take {size / 2**30:.1f} GiB"
    if any(tensor.layout is not torch.strided or tensor.is_quantized for tensor in tensors):
        return "some are no plain tensors"
    return ""


def _user_classes(pass_: Pass) -> Iterator[UserClass]:
    """Yield what the text of a pass names and is not ours."""
    if type(pass_) not in (PassManager, Fixpoint, *STANDARD_PASSES):
        yield _described(type(pass_), type(pass_).name)
    if isinstance(pass_, PassManager):
        for inner in pass_.passes if takes_passes(type(pass_)) else ():
            yield from _user_classes(inner)
        return
    for entry in getattr(pass_, "patterns", ()):
        cls = unscoped(entry if isinstance(entry, type) else type(entry))
        if isinstance(entry, Pattern) and any(name not in _OF_SCOPES for name in vars(entry)):
            yield UserClass(cls.__name__, "", f"was given arguments when it was made: {', '.join(vars(entry))}")
        elif cls not in STANDARD_PATTERNS:
            yield _described(cls, cls.__name__)


_OF_SCOPES = ("only", "skip", "scope", "scoped_from")


def _described(cls: type[Any], name: str) -> UserClass:
    try:
        file = os.path.abspath(inspect.getsourcefile(cls) or "")
    except (OSError, TypeError):
        file = ""
    if not os.path.isfile(file):
        return UserClass(name, "", "was not defined in a file")
    if "<locals>" in cls.__qualname__:
        return UserClass(name, file, f"is defined inside of a function of {file}: define it at the top of the file")
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        return UserClass(name, file, f"is not what {cls.__qualname__} means in {file}")
    return UserClass(name, file)


def check_readable(reproducer: Reproducer, passes: Sequence[type[Pass]], patterns: Sequence[type[Pattern]]) -> None:
    """Demand that the user's passes and patterns of a reproducer are given.

    Raises:
        InputError: when one is not; the error names its file.
    """
    given = {*(each.name for each in passes), *(each.__name__ for each in patterns)}
    for each in reproducer.user_classes:
        if each.name in given:
            continue
        if each.obstacle:
            raise InputError(
                f"the reproducer needs {each.name}, which {each.obstacle}",
                remedy=f"define {each.name} at the top of a file, and give that: `--load FILE.py`",
            )
        raise InputError(
            f"the reproducer needs {each.name} of {each.file}, and code is loaded only where it is asked for",
            remedy=f"add `--load {shlex.quote(each.file)}`",
        )


def pipeline_of_reproducer(
    reproducer: Reproducer, passes: Sequence[type[Pass]], patterns: Sequence[type[Pattern]]
) -> PassManager:
    """Return the pipeline of a reproducer.

    Raises:
        InputError: when a pass or pattern of the user's is not given.
        ParseError: when the text cannot be read, as where a scope has a predicate.
    """
    check_readable(reproducer, passes, patterns)
    return parse_pipeline(reproducer.pipeline, passes=passes, patterns=patterns)
