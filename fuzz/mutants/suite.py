"""Mutation tests: faults are injected into rules and passes, one at a time, and the fuzz suite must find them.

Every mutant runs in a process of its own, which draws examples for its subject until a property does not hold. The
failing example is tried on the unchanged code too, which must pass.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import attrs
import torch
from hypothesis import Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from fuzz.calls.inference import TypedCall, answer_of_rule, inferred
from fuzz.mutants.mutation import Mutant, StaleMutantError, mutated
from fuzz.mutants.subjects import (
    CheckedCall,
    Drawn,
    Quantized,
    Rewritten,
    Run,
    draw_inferred,
    draws,
    draws_of_cases,
    draws_of_quantized,
)
from fuzz.programs.properties import Finding
from fuzz.rules.names import find_rule
from fuzz.search.examples import hold_example
from fuzz.search.sound import Target, search_settings

T = TypeVar("T")
SEED = 20260
LIMIT = 240.0
_COMPARED = 300
"""The number of programs on which a surviving mutant of a rule is compared with the unchanged rule."""
_COMPARED_CALLS = 400
"""The number of calls on which a surviving mutant of type inference is compared with the unchanged rule."""
_GRACE = 60.0
"""Seconds beyond the limit for the end of a search, or for one example; after that, the mutant does not end."""
_FIRED = 5
"""After so many rewrites of the unchanged rule, a mutant without any is taken never to fire."""


@attrs.frozen
class MutantResult:
    """The result of one mutant."""

    name: str
    class_: str
    subject: str
    status: str
    """`found`, `survived`, `narrower` (as far as was seen, it fires less often and is right, or says the same in other
    words; of type inference, it says less), `stale`, or `unsound`: the unchanged code fails on the example too."""
    examples: int = 0
    seconds: float = 0.0
    property: str = ""
    message: str = ""


class _Enough(Exception):  # noqa: N818 - control flow inside this module, no error
    """The time for the search is over."""


def run_mutant(
    mutant: Mutant, *, max_examples: int = 2000, seed: int = SEED, limit: float = float("inf")
) -> MutantResult:
    """Run a mutant in this process.

    Args:
        mutant: the mutant.
        max_examples: the number of examples.
        seed: of the search.
        limit: CPU seconds after which no more examples are drawn.
    """
    start = time.process_time()
    failed: list[Run] = []
    count = 0

    def result(status: str, property_: str = "", message: str = "") -> MutantResult:
        seconds = round(time.process_time() - start, 2)
        shown = next(iter(message.strip().splitlines()), "")[:300]
        return MutantResult(mutant.name, mutant.class_, str(mutant.subject), status, count, seconds, property_, shown)

    error: Exception | None = None
    try:
        with mutated(mutant):
            draw = draws(mutant.subject)

            def attempt(run: Run) -> None:
                nonlocal count
                # what failed is tried again at the end: it is found, however late it is
                if not failed:
                    if time.process_time() - start > limit:
                        raise _Enough
                    count += 1
                try:
                    run()
                except Exception as raised:
                    if _is_control(raised):
                        raise
                    failed[:] = [run]
                    raise

            try:
                _search(draw, attempt, max_examples, seed)
            except _Enough:
                pass
            except Exception as raised:  # noqa: BLE001 - a mutant may fail in any way
                error = raised
    except StaleMutantError as stale:
        return result("stale", message=str(stale))
    if error is None:
        return result(*_survived(mutant, seed))
    found = error.property if isinstance(error, Finding) else type(error).__name__
    # a program holds the types that the mutant inferred
    if failed and (mutant.subject.kind not in ("text", "types") or isinstance(failed[0], CheckedCall)):
        try:
            failed[0]()
        except Exception as also:  # noqa: BLE001 - whatever it is, the mutant is not the reason
            if not _is_control(also):
                return result("unsound", found, f"the unchanged code fails as well: {also}")
    if not failed:
        try:
            _search(draws(mutant.subject), lambda run: None, count + 1, seed)
        except Exception as also:  # noqa: BLE001 - whatever it is, the mutant is not the reason
            return result("unsound", found, f"without it, drawing fails as well: {also}")
    return result("found", found, str(error))


def _survived(mutant: Mutant, seed: int) -> tuple[str, str, str]:
    """Return the status of a mutant that no property found, the property, and its difference from the unchanged code.

    A rule that does not do what its examples say, or never fires, or a pass that changes nothing, is an error of
    `assert_sound`: such a mutant is found.
    """
    if mutant.subject.kind == "types" and inferred(mutant.subject.operators):
        return _survived_calls(mutant, seed)
    if mutant.subject.kind not in ("rule", "pass", "quant"):
        return "survived", "", ""
    unlike = _unlike_examples(mutant) if mutant.subject.kind == "rule" else None
    if unlike is not None:
        return "found", "examples", unlike
    cases: list[Drawn | Quantized] = []

    def keep(case: Drawn | Quantized) -> None:
        cases.append(case)

    is_quant = mutant.subject.kind == "quant"
    draw: Callable[[st.DrawFn], Drawn | Quantized] = (draws_of_quantized if is_quant else draws_of_cases)(
        mutant.subject
    )
    _search(draw, keep, _COMPARED, seed)
    unchanged = [case.rewritten() for case in cases]
    with mutated(mutant):
        changed = [case.rewritten() for case in cases]
    if sum(before.count or 0 for before in unchanged) >= _FIRED and not any(now.count for now in changed):
        return "found", "it fires", "it never fires"
    triples = zip(cases, unchanged, changed, strict=True)
    # where the unchanged code raises, the program itself does not run: `unsound` says so else
    other = [(case, before, now) for case, before, now in triples if before.program and now.text != before.text]
    if not other:
        return "survived", "", f"the same on {len(cases)} programs"
    for case, _, _ in other:
        error = _error_of(mutant, case)
        if error is not None:
            return "found", error.property if isinstance(error, Finding) else type(error).__name__, str(error)
    more = [(case, before, now) for case, before, now in other if not _is_less(now, before)]
    if not more:
        return "narrower", "", f"it does less on {len(other)} of {len(cases)} programs"
    if all(case.finished(now) == case.finished(before) for case, before, now in more):
        return "narrower", "", f"it does less, or the same in other words, on {len(other)} of {len(cases)} programs"
    return "survived", "", f"another result for {len(other)} of {len(cases)} programs"


def _survived_calls(mutant: Mutant, seed: int) -> tuple[str, str, str]:
    """Return the same of a mutant of type inference, by what its rules say without their fallback."""
    calls: list[TypedCall] = []

    def keep(call: TypedCall) -> None:
        calls.append(call)

    _search(lambda draw: draw_inferred(draw, mutant.subject), keep, _COMPARED_CALLS, seed + 1)
    unchanged = [answer_of_rule(call) for call in calls]
    with mutated(mutant):
        changed = [answer_of_rule(call) for call in calls]
    triples = zip(calls, unchanged, changed, strict=True)
    other = [(call, before, now) for call, before, now in triples if now != before]
    if not other:
        return "survived", "", f"the same on {len(calls)} calls"
    more = [call for call, before, now in other if not now.is_less(before)]
    if not more:
        return "narrower", "", f"it says less of {len(other)} of {len(calls)} calls"
    for call in more:
        error = _error_of(mutant, CheckedCall(call))
        if error is not None:
            return "found", error.property if isinstance(error, Finding) else type(error).__name__, str(error)
    results = [call.infer() for call in more]
    with mutated(mutant):
        if [call.infer() for call in more] == results:
            shown = f"{len(other)} of {len(calls)} calls"
            return "narrower", "", f"it says less, or itself what fake tensors say, of {shown}"
    return "survived", "", f"another answer to {len(more)} of {len(calls)} calls"


def _error_of(mutant: Mutant, case: Run) -> Exception | None:
    """Return what a program shows of a mutant, and not of the unchanged code; None if nothing."""
    for is_changed in (False, True):
        try:
            with mutated(mutant) if is_changed else contextlib.nullcontext():
                case()
        except Exception as error:  # noqa: BLE001 - a mutant may fail in any way
            return error if is_changed and not _is_control(error) else None
    return None


def _is_less(now: Rewritten, before: Rewritten) -> bool:
    """Whether a mutant did less: folding erases operations, and adds weights."""
    if now.count is None or before.count is None:
        return False
    return (now.count, now.weights) < (before.count, before.weights)


def _unlike_examples(mutant: Mutant) -> str | None:
    """Return how a mutant is not what an example of its rules says; None where it is."""
    for target in (Target.of(find_rule(name)) for name in mutant.subject.names):
        for example in target.rules[0].examples:
            try:
                with mutated(mutant):
                    hold_example(target.rules[0], example, target.properties)
            except Exception as error:  # noqa: BLE001 - a mutant may fail in any way
                return str(error)
    return None


def _search(draw: Callable[[st.DrawFn], T], attempt: Callable[[T], None], max_examples: int, seed: int) -> None:
    # one draw: hypothesis prints each draw of `st.data()` in a failing example, which takes minutes
    test: Callable[[], None] = given(st.composite(draw)())(attempt)
    chosen = settings(
        search_settings(max_examples), phases=(Phase.generate,), report_multiple_bugs=False, print_blob=False
    )
    hypothesis_seed(seed)(chosen(test))()


def _is_control(error: Exception) -> bool:
    """Return whether hypothesis raised an error to end an example."""
    return type(error).__module__.startswith("hypothesis") and type(error).__name__ in (
        "UnsatisfiedAssumption",
        "StopTest",
        "Frozen",
    )


# --- all mutants --------------------------------------------------------------------------------------------------


def run_all(
    mutants: Sequence[Mutant],
    *,
    processes: int = 1,
    max_examples: int = 2000,
    limit: float = LIMIT,
    seed: int = SEED,
) -> Iterator[MutantResult]:
    """Run each mutant in a process of its own, and yield the results as they come.

    Args:
        mutants: the mutants.
        processes: the number of processes at once.
        max_examples: the number of examples for each.
        limit: CPU seconds for each; a mutant that runs a minute longer is found: it does not end.
        seed: of the searches.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(mutants))
    running: dict[Connection, tuple[Mutant, Any]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(sender, mutant, max_examples, limit, seed))
            process.start()
            sender.close()
            running[receiver] = (mutant, process)
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            mutant, process = running.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                process.join()
                message = "no end" if process.exitcode == -signal.SIGXCPU else f"exit code {process.exitcode}"
                yield MutantResult(mutant.name, mutant.class_, str(mutant.subject), "found", 0, 0.0, "it ends", message)
            process.join()


def _child(sender: Connection, mutant: Mutant, max_examples: int, limit: float, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit + _GRACE), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    with contextlib.closing(sender):
        sender.send(run_mutant(mutant, max_examples=max_examples, limit=limit, seed=seed))
