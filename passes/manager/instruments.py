"""Instruments for the seam between passes: timing, statistics, IR dumps, verification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from typing_extensions import override

from ir.errors import GraphwrightError, InputError, PassError
from ir.program import Program
from ir.text.printer import print_program
from ir.verify import verify
from passes.manager.manager import Instrument, Pass, PassManager, PassResult


@attrs.define(eq=False)
class Timing(Instrument):
    """Sums the seconds of each pass. Managers are not counted, their passes are.

    Attributes:
        seconds: wall time by the label of the pass, or its name.
    """

    seconds: Counter[str] = attrs.field(factory=Counter)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        if not isinstance(pass_, PassManager):
            self.seconds[pass_.title] += result.seconds  # type: ignore[assignment]

    def __str__(self) -> str:
        total = sum(self.seconds.values()) or 1.0
        return "\n".join(f"{s * 1e3:9.2f} ms {s / total:6.1%}  {name}" for name, s in self.seconds.items())


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
class DumpIR(Instrument):
    """Writes the text of the program after each pass that changed it, to files in a folder or to a function.

    Attributes:
        target: a folder, or what is called with a file name and the text.
        number: how many dumps were written.
    """

    target: Path | str | Callable[[str, str], None] = attrs.field()
    number: int = 0

    @target.validator
    def _check_target(self, attribute: Any, value: Any) -> None:
        if not (isinstance(value, (Path, str)) or callable(value)):
            raise InputError(
                f"IR cannot be dumped to {value!r}", remedy="name a folder, or give a function of a title and a text"
            )

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Write one dump, named `NNN-pass.gw`.

        Raises:
            InputError: when the folder cannot be written.
        """
        if not result.changed or isinstance(pass_, PassManager):
            return
        title = f"{self.number:03d}-{pass_.title}"
        self.number += 1
        text = print_program(program)
        if callable(self.target):
            self.target(title, text)
        else:
            folder = Path(self.target)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{title}.gw").write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(
                    f"the IR cannot be dumped to the folder {folder}: {error.strerror or error}",
                    remedy="name a folder that can be made and written",
                ) from error


@attrs.define(eq=False)
class VerifyEach(Instrument):
    """Verifies the program after each pass, and holds "unchanged" to the printed text being the same.

    Attributes:
        check_unchanged: whether a pass that says "unchanged" is held to it.
    """

    check_unchanged: bool = False
    _text: str = ""

    @override
    def before(self, pass_: Pass, program: Program) -> None:
        """Remember the text before the pass."""
        if self.check_unchanged:
            self._text = print_program(program)

    @override
    def after(self, pass_: Pass, program: Program, result: PassResult) -> None:
        """Verify.

        Raises:
            VerificationError: when the pass broke the IR.
            PassError: when it changed the program without the revision telling so.
        """
        try:
            verify(program)
        except GraphwrightError as error:
            error.add_note(f"pass `{pass_}` broke the IR")
            raise
        if self.check_unchanged and not result.changed and print_program(program) != self._text:
            raise PassError(f"pass `{pass_.name}` changed the program behind the revision counter's back")
