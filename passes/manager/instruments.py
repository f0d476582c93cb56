"""Instruments for the seam between passes: statistics, IR dumps and diffs, verification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

import attrs
from typing_extensions import override

from ir.core import Graph
from ir.errors import GraphwrightError, InputError, PassError, VerificationError
from ir.paths import checked_path
from ir.program import Program
from ir.text.printer import print_program
from ir.verify import verify
from passes.manager.manager import Instrument, Pass, PassManager, PassResult


@attrs.define(eq=False)
class Statistics(Instrument):
    """Counts operations by operator before the first and after the last pass, and runs and changes of each pass.

    Attributes:
        before_counts: operators of the program before the first pass, and how many of each.
        after_counts: the same after the last pass.
        runs: how often each pass ran.
        changes: how often each pass changed something.
    """

    before_counts: Counter[str] | None = None
    after_counts: Counter[str] = attrs.field(factory=Counter)
    runs: Counter[str] = attrs.field(factory=Counter)
    changes: Counter[str] = attrs.field(factory=Counter)

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Count the operations once, before anything ran."""
        if self.before_counts is None:
            self.before_counts = count_operations(program)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        self.runs[pass_.title] += 1
        self.changes[pass_.title] += result.changed
        self.after_counts = count_operations(program)


def count_operations(program: Program) -> Counter[str]:
    """Return how many operations of each operator there are (a fused region counts as one)."""
    return Counter(op.name for op in program.graph.operations())


@attrs.define(eq=False)
class _AfterChange(Instrument):
    """Writes a text after each pass that changed the program, to files in a folder or to a function.

    Attributes:
        target: a folder, or what is called with a title and the text.
        number: how many texts were written.
    """

    target: Path | str | Callable[[str, str], None] = attrs.field()
    number: int = 0

    @target.validator
    def _check_target(self, attribute: Any, value: Any) -> None:
        if not (isinstance(value, (Path, str)) or callable(value)):
            raise InputError(
                f"IR cannot be dumped to {value!r}", remedy="name a folder, or give a function of a title and a text"
            )

    def _write(self, pass_: Pass, text: str, suffix: str) -> None:
        title = f"{self.number:03d}-{pass_.title}"
        self.number += 1
        if callable(self.target):
            self.target(title, text)
            return
        folder = checked_path(self.target, "the folder for the IR", "dump")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{title}{suffix}").write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"the IR cannot be dumped to the folder {folder}: {error.strerror or error}",
                remedy="name a folder that can be made and written",
            ) from error


@attrs.define(eq=False)
class DumpIR(_AfterChange):
    """Writes the text of the program after each pass that changed it, to files in a folder or to a function.

    Attributes:
        target: a folder, where files are named `NNN-pass.gw`, or what is called with `NNN-pass` and the text.
        number: how many dumps were written.
    """

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Write one dump.

        Raises:
            InputError: when the folder cannot be written.
        """
        if result.changed and not isinstance(pass_, PassManager):
            self._write(pass_, print_program(program), ".gw")


@attrs.define(eq=False)
class DiffIR(_AfterChange):
    """Writes what each pass changed, as a unified diff of the program's text, to files in a folder or to a function.

    Attributes:
        target: a folder, where files are named `NNN-pass.diff`, or what is called with `NNN-pass` and the diff.
        number: how many diffs were written.
        context: how many lines around a change are shown.
        locations: whether the lines say where in the model operations came from.
    """

    context: int = 3
    locations: bool = True
    _revision: int = -1
    _graph: Graph | None = None
    _text: str = ""

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Remember the text before the pass."""
        if not isinstance(pass_, PassManager):
            self._remember(program)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Write one diff.

        Raises:
            InputError: when the folder cannot be written.
        """
        if not result.changed or isinstance(pass_, PassManager):
            return
        before = self._text
        self._remember(program)
        self._write(pass_, diff_of(before, self._text, pass_.title, context=self.context), ".diff")

    def _remember(self, program: Program) -> None:
        if self._graph is not program.graph or self._revision != program.graph.revision:
            self._graph, self._revision = program.graph, program.graph.revision
            self._text = print_program(program, locations=self.locations)


def diff_of(before: str, after: str, title: str, *, context: int = 3) -> str:
    """Return the unified diff of two texts of a program."""
    lines = unified_diff(
        before.splitlines(), after.splitlines(), f"before {title}", f"after {title}", lineterm="", n=context
    )
    return "".join(f"{line}\n" for line in lines)


@attrs.define(eq=False)
class VerifyEach(Instrument):
    """Verifies the program after each pass, and holds "unchanged" to the printed text being the same.

    Attributes:
        check_unchanged: whether a pass that says "unchanged" is held to it.
    """

    check_unchanged: bool = False
    _text: str = ""
    _running: list[Pass] = attrs.field(factory=list, init=False)
    """The pass that runs, after the managers around it."""

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Remember the text before the pass."""
        self._running.append(pass_)
        if self.check_unchanged:
            self._text = print_program(program)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Verify.

        Raises:
            VerificationError: when the pass broke the IR.
            PassError: when it changed the program without the revision telling so.
        """
        path = path_of(self._running)
        self.failed(pass_, program)
        try:
            verify(program)
        except GraphwrightError as error:
            raise broken_by(path, error) from error
        if self.check_unchanged and not result.changed and print_program(program) != self._text:
            raise PassError(
                f"pass `{path}` changed the program behind the revision counter's back",
                remedy="edit the program through a `Rewriter`, or `set_attribute` and `set_operand`, which count",
            )

    @override
    def failed(self, pass_: Pass, program: Program, error: Exception | None = None) -> None:
        """Leave the pass."""
        if self._running and self._running[-1] is pass_:
            self._running.pop()


def path_of(running: Sequence[Pass]) -> str:
    """Return the path of a pass in its pipeline: `fixpoint > convert[1]`, the second of that title in its manager.

    Args:
        running: the pass, after the managers around it, the outermost first.
    """
    names: list[str] = []
    for outer, pass_ in zip((None, *running), running, strict=False):
        beside = outer.passes if isinstance(outer, PassManager) else ()
        same = [each for each in beside if each.title == pass_.title]
        numbers = [number for number, each in enumerate(same) if each is pass_] if len(same) > 1 else []
        names.append(f"{pass_.title}[{numbers[0]}]" if numbers else pass_.title)
    return " > ".join(names)


def broken_by(path: str, error: GraphwrightError) -> VerificationError:
    """Return an error that names also the pass, by its path, that broke the program; raise it `from` the other."""
    found = VerificationError(
        f"{error.message}; the pass `{path}` broke the program",
        location=error.location,
        remedy=error.remedy or BISECT,
    )
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


BISECT = (
    "correct the pass, or the rule that it applied: `graphwright.bisect` with the arguments of `transform` names the "
    "rewrite, and shows the program before and after it"
)
"""What to do about a broken program."""
