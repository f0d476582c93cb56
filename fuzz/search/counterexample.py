"""A counterexample and its explanation: the rewrite at fault, the program before and after, a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import torch
from typing_extensions import override

from fuzz.programs.case import Case
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.programs.reduce import reduced
from fuzz.rules.orders import InOrder
from fuzz.search.judge import AnyCase, before_and_after, judge, narrowed, write_case
from ir.errors import GraphwrightError
from ir.program import Program
from passes.manager.manager import Pass, PassContext
from passes.rewrite.driver import Replacements, RewriteLog
from passes.rewrite.pattern import Match, Pattern


@attrs.frozen(eq=False)
class Counterexample:
    """A case on which a property does not hold.

    Attributes:
        case: the smallest failing case that was found.
    """

    subject: str
    """The rules or the pipeline."""
    property: str
    """The property that does not hold."""
    message: str
    """The difference."""
    case: AnyCase
    before: str
    """The text of the program before the pass; for a module, the lowered program."""
    after: str
    """The text of the program after the pass; empty if the pass raised."""
    rewrite: str | None
    """The first rewrite after which the property does not hold, found by bisection."""
    examples: int
    """The number of programs that passed before."""
    file: str
    """A file that shows the failure, for `python -m fuzz replay`."""
    suffix: str
    """The suffix of the file: `.gw` for a case as text, `.py` for a script."""

    def __str__(self) -> str:
        lines = [f"{self.subject} is not sound: the property `{self.property}` does not hold: {self.message}"]
        inputs = self.case.inputs if isinstance(self.case, Case) else ()
        if any(isinstance(x, torch.Tensor) and not bool(torch.isfinite(x).all()) for x in inputs):
            lines.append("an input holds NaN or infinity (Properties(non_finite=False) leaves such inputs out)")
        if self.rewrite is not None:
            lines.append(f"the rewrite that does it: {self.rewrite}")
        lines += ["", "before:", self.before.rstrip(), ""]
        if isinstance(self.case, Case) and self.case.original:
            lines += ["which is equal by construction to:", self.case.original.rstrip(), ""]
        if self.after:
            lines += ["after:", self.after.rstrip(), ""]
        lines += [f"a file that shows it, for `python -m fuzz replay FILE{self.suffix}`:", "", self.file]
        return "\n".join(lines)


class UnsoundError(GraphwrightError, AssertionError):
    """A rule or pass changes the meaning of a program, or a rule never fires, or on no canonical program.

    Attributes:
        counterexample: the smallest one that was found; None if a rule never fired.
        seen: the statistics of the run, if a rule never fired.
    """

    def __init__(
        self,
        counterexample: Counterexample | None,
        message: str = "",
        seen: Any = None,
        *,
        details: str = "",
        remedy: str = "relax its conditions, or pass programs on which it fires: `on=` a strategy for them",
    ) -> None:
        self.counterexample = counterexample
        self.seen = seen
        if counterexample is not None:
            super().__init__(str(counterexample))
            return
        reasons = [f"{rule}: {reason} ({count} times)" for (rule, reason), count in seen.refused.most_common(5)]
        if reasons:
            message += "; it was refused: " + "; ".join(reasons)
        super().__init__(message + details, remedy=remedy)


def explain(
    subject: str,
    pass_: Pass,
    rules: Sequence[Pattern],
    properties: Properties,
    case: AnyCase,
    finding: Finding,
    examples: int,
) -> Counterexample:
    """Return the counterexample for a finding, with the rewrite at fault and a file."""
    case = narrowed(case, finding)
    if isinstance(case, Case):
        case, finding = reduced(case, finding, lambda smaller: judge(pass_, smaller, properties))
    before, after = before_and_after(pass_, case)
    return Counterexample(
        subject,
        finding.property,
        finding.message + (f" ({pass_.order()})" if isinstance(pass_, InOrder) and pass_.number else ""),
        case,
        before,
        after,
        bisect(pass_, case, properties),
        examples,
        *write_case(subject, pass_, rules, properties, case, f"{finding.property}: {finding.message}"),
    )


# ---- which rewrite ----


class _Stop(Exception):  # noqa: N818 - control flow
    """Enough rewrites have been applied."""


@attrs.frozen
class _Prefix(Pass):
    """The first `count` rewrites of a pass."""

    name: ClassVar[str] = "prefix"
    pass_: Pass
    count: int
    trace: list[str] = attrs.field(factory=list, eq=False)

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Apply the pass until the count is reached."""
        self.trace.clear()  # a module is lowered more than once

        def stop_if_enough(replacements: Replacements | None = None) -> None:
            if len(self.trace) == self.count:
                raise _Stop

        def hook(rule: Pattern, match: Match, program: Program) -> Callable[[Replacements], None]:
            stop_if_enough()
            operations = ", ".join(op.name for op in match.ops)
            self.trace.append(f"{rule.name} at `{match.location.where}` ({operations})")
            return stop_if_enough  # at once: other changes of the pass are not the fault of a rewrite

        log = RewriteLog(hook=hook)
        try:
            self.pass_.run(program, PassContext(log=log))
        except _Stop:
            return


def bisect(pass_: Pass, case: AnyCase, properties: Properties) -> str | None:
    """Return the first rewrite after which the properties do not hold, or None if no rewrite is at fault."""
    whole = _Prefix(pass_, -1)
    _holds(whole, case, properties)
    low, high = 0, len(whole.trace)
    if not high:
        return None
    if _holds(_Prefix(pass_, high), case, properties):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(_Prefix(pass_, middle), case, properties):
            low = middle
        else:
            high = middle
    return f"number {high} of {len(whole.trace)}, {whole.trace[high - 1]}"


def _holds(pass_: Pass, case: AnyCase, properties: Properties) -> bool:
    try:
        judge(pass_, case, attrs.evolve(properties, idempotent=False))
    except Finding:
        return False
    except Unusable:
        return True
    return True
