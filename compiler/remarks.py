"""What a compilation says of itself, beside what rules say: what was applied, what stays and why, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.capture.captured import Captured
from compiler.pipeline import patterns_of
from compiler.usercode.state import location_of_module
from ir.core import Operation
from ir.opdef import Trait
from ir.program import Program
from passes.explain.unfused import UnfusedReasons
from passes.manager.manager import PassManager
from passes.rewrite.bounds.tolerance import Approximation, composed
from passes.rewrite.driver import RewriteLog, is_computation
from passes.rewrite.remarks import Remark


def left_out(captured: Captured) -> list[Remark]:
    """Say what forward keeps in attributes of the model, and the result does not."""
    return [
        Remark(
            "left out",
            "capture",
            location_of_module(path, captured.module.get_submodule(path)),
            f"what forward keeps in `{f'{path}.{name}'.lstrip('.')}` is computed in each call, and kept nowhere: no "
            "call depends on it",
        )
        for path, name in sorted(captured.observed.memos if captured.observed is not None else ())
        if captured.module is not None
    ]


def applied(log: RewriteLog) -> list[Remark]:
    """Say what was rewritten."""
    return [
        Remark(
            "applied",
            match.pattern.__name__,
            match.location,
            f"{', '.join(map(str, match.replaced))} became {', '.join(op.name for op in match.created) or 'nothing'}"
            + (f" (alternative {match.alternative})" if match.alternative else ""),
            match.replaced[-1].name if match.replaced else "",
        )
        for match in log.matches
    ]


def approximated(approximations: Sequence[Approximation], program: Program) -> list[Remark]:
    """Say what changed numbers on purpose, and how far results may differ by all of it."""
    together = composed(approximations)
    each = [Remark("approximated", one.name, program.location, f"on purpose: {one}") for one in approximations]
    if together is None or (len(each) == 1 and approximations[0].count == 1):
        return each
    whole = f"results may differ by {together} on purpose, by all that is approximated"
    return [*each, Remark("approximated", "check", program.location, whole)]


def kept(program: Program, log: RewriteLog, manager: PassManager) -> list[Remark]:
    """Say of each computation outside of regions why it was not fused, and which rules nearly matched there."""
    rules = patterns_of(manager)
    fusions = tuple([rule for rule in rules if rule.is_fusion])
    reasons = UnfusedReasons(log, fusions, rules)
    ops = [op for op in program.graph.operations() if op.body is None and is_computation(op)]

    def remark(op: Operation) -> Remark:
        opaque = op.opdef.has(Trait.OPAQUE)
        reason = "an opaque call is never moved or fused" if opaque else reasons.of(op)
        return Remark(
            "kept", "fuse", op.location, f"{op.name} at `{op.location.where}` stays: {reason}", op.name, reason
        )

    return [*reasons.nearly(ops), *(map(remark, ops) if fusions else ())]
