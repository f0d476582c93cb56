"""The suite is tested too: faults are put into rules and machinery, one at a time, and the suite must find them.

`python -m fuzz.mutants` runs every mutant in a process of its own: it draws what the mutant's subject is tried on until
a property does not hold. What was found is tried on the unchanged code as well, which must pass.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, given, reject
from hypothesis import seed as hypothesis_seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.modules.check import check_module
from fuzz.modules.strategy import modules
from fuzz.mutants.canonicalize import CANONICALIZE_MUTANTS
from fuzz.mutants.kinds import KIND_MUTANTS
from fuzz.mutants.mutation import Mutant, StaleMutantError, Subject, mutated
from fuzz.mutants.patterns import PATTERN_MUTANTS
from fuzz.mutants.spelling import SPELLING_MUTANTS
from fuzz.mutants.unknown import UNKNOWN_MUTANTS
from fuzz.mutants.whole_programs import IR_MUTANTS
from fuzz.programs.case import Case
from fuzz.programs.check import Finding, Properties, Unusable, check_case
from fuzz.programs.erasure import with_erased_types
from fuzz.programs.observation import quiet
from fuzz.programs.strategy import input_tensors, programs
from fuzz.rules.instances import instances
from fuzz.rules.names import RULES
from fuzz.search.sound import Target
from ir.compare import programs_equal
from ir.core import Value
from ir.errors import EvaluationError, GraphwrightError, InputError
from ir.evaluate import evaluate
from ir.program import Program
from ir.text.parser import parse_program
from ir.text.printer import print_program
from ir.types import TensorType, dims_equal, type_of_tensor

MUTANTS: tuple[Mutant, ...] = (
    *CANONICALIZE_MUTANTS,
    *SPELLING_MUTANTS,
    *PATTERN_MUTANTS,
    *UNKNOWN_MUTANTS,
    *KIND_MUTANTS,
    *IR_MUTANTS,
)
"""All mutants."""

_SEED = 20260
_LIMIT = 240.0

Run = Callable[[], None]
"""Holds one drawn example to its properties; can be called again."""
Draw = Callable[[st.DataObject], Run]


@attrs.frozen
class MutantResult:
    """What became of one mutant."""

    name: str
    class_: str
    subject: str
    status: str
    """`found`, `survived`, `stale`, `timeout`, or `unsound`: the unchanged code fails on what was found as well."""
    examples: int = 0
    seconds: float = 0.0
    property: str = ""
    message: str = ""
    equivalent: str = ""


# --- what a subject is tried on -----------------------------------------------------------------------------------


def _draws(subject: Subject) -> Draw:
    """Return how to draw an example for a subject.

    Raises:
        InputError: when the subject is of no known kind, or its rule does not exist.
    """
    if subject.kind in ("rule", "pass"):
        return _draw_case(subject)
    found = {"text": _draw_text, "types": _draw_types, "modules": _draw_module}.get(subject.kind)
    if found is None:
        raise InputError(f"{subject} is no subject", remedy="write rule, pass, text, types or modules")
    return found(subject)


def _draw_case(subject: Subject) -> Draw:
    if subject.kind == "rule":
        if subject.name not in RULES:
            raise InputError(f"there is no rule {subject.name!r}", remedy="write the name of its class")
        target = Target.of(RULES[subject.name])
        strategy: st.SearchStrategy[Any] = instances(target.rules[0])
    else:
        pipeline = parse_pipeline(subject.name)
        target = Target.of(pipeline.passes[0] if len(pipeline.passes) == 1 else pipeline)
        strategy = programs(operators=subject.operators, half=True, training=True)

    properties = attrs.evolve(target.properties, strides=True) if subject.strides else target.properties

    def draw(data: st.DataObject) -> Run:
        drawn = data.draw(strategy)
        program: Program = drawn if isinstance(drawn, Program) else drawn.program
        inputs = data.draw(input_tensors(program))
        data.draw(with_erased_types(program))
        case = Case.of(program, inputs)
        return lambda: _usable(lambda: check_case(target.pass_, case, properties))

    return draw


def _usable(action: Callable[[], Any]) -> None:
    try:
        action()
    except Unusable:
        reject()


def _draw_text(subject: Subject) -> Draw:
    strategy = programs(operators=subject.operators)

    def run(program: Program) -> None:
        text = print_program(program)
        try:
            parsed = parse_program(text)
        except GraphwrightError as error:
            raise Finding("text", f"what was printed does not parse: {error}") from error
        unlike = programs_equal(program, parsed)
        if unlike is not None:
            raise Finding("text", f"what was printed parses to another program: {unlike}")
        if print_program(parsed) != text:
            raise Finding("text", "what was parsed prints differently")

    def draw(data: st.DataObject) -> Run:
        program = data.draw(strategy)
        return lambda: run(program)

    return draw


def _draw_types(subject: Subject) -> Draw:
    strategy = programs(operators=subject.operators)

    def run(program: Program, inputs: Sequence[torch.Tensor]) -> None:
        values: list[Value] = [r for op in program.graph.operations() for r in op.results]
        program.graph.set_outputs(values)
        with torch.no_grad(), quiet():
            try:
                results = evaluate(program, inputs)
            except EvaluationError as error:
                raise Finding("it still runs", str(error)) from error
        for value, result in zip(values, results, strict=False):
            if isinstance(result, torch.Tensor) and not _fits(value, result):
                made = type_of_tensor(result)
                raise Finding("types", f"{value.name} is inferred as {value.type}, and evaluates to {made}")

    def draw(data: st.DataObject) -> Run:
        program = data.draw(strategy)
        inputs = data.draw(input_tensors(program))
        return lambda: run(program, inputs)

    return draw


def _fits(value: Value, tensor: torch.Tensor) -> bool:
    type_ = value.type
    if not isinstance(type_, TensorType) or (type_.dtype is not None and type_.dtype != tensor.dtype):
        return False
    if type_.shape is None:
        return True
    return len(type_.shape) == tensor.dim() and all(
        size is None or dims_equal(size, have) for size, have in zip(type_.shape, tensor.shape, strict=True)
    )


def _draw_module(subject: Subject) -> Draw:
    pipeline = pipeline_of(TENSORRT_PATTERNS)

    def draw(data: st.DataObject) -> Run:
        case = data.draw(modules())
        return lambda: _usable(lambda: check_module(pipeline, case, Properties()))

    return draw


# --- one mutant ---------------------------------------------------------------------------------------------------


def run_mutant(mutant: Mutant, *, max_examples: int = 2000, seed: int = _SEED) -> MutantResult:
    """Look for a mutant in this process.

    Args:
        mutant: the mutant.
        max_examples: how many examples to draw.
        seed: of the search.
    """
    start = time.perf_counter()
    failed: list[Run] = []
    count = 0

    def result(status: str, property_: str = "", message: str = "") -> MutantResult:
        seconds = round(time.perf_counter() - start, 2)
        subject, lines = str(mutant.subject), message.strip().splitlines()
        shown = lines[0][:300] if lines else ""
        return MutantResult(
            mutant.name, mutant.class_, subject, status, count, seconds, property_, shown, mutant.equivalent
        )

    error: Exception | None = None
    try:
        with mutated(mutant):
            draw = _draws(mutant.subject)

            def attempt(data: st.DataObject) -> None:
                nonlocal count
                run = draw(data)
                count += 0 if failed else 1
                try:
                    run()
                except Exception as raised:
                    if _is_control(raised):
                        raise
                    failed[:] = [run]
                    raise

            try:
                _search(attempt, max_examples, seed)
            except Exception as raised:  # noqa: BLE001 - a mutant may fail in any way
                error = raised
    except StaleMutantError as stale:
        return result("stale", message=str(stale))
    if error is None:
        return result("survived")
    found = error.property if isinstance(error, Finding) else type(error).__name__
    if failed and mutant.subject.kind not in ("text", "types"):
        try:
            failed[0]()
        except Exception as also:  # noqa: BLE001 - whatever it is, the mutant is not the reason
            if not _is_control(also):
                return result("unsound", found, f"the unchanged code fails as well: {also}")
    return result("found", found, str(error))


def _search(attempt: Callable[[st.DataObject], None], max_examples: int, seed: int) -> None:
    test: Callable[[], None] = given(st.data())(attempt)
    settings = hypothesis_settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
    )
    hypothesis_seed(seed)(settings(test))()


def _is_control(error: Exception) -> bool:
    """Return whether hypothesis raised it to end an example."""
    return type(error).__module__.startswith("hypothesis") and type(error).__name__ in (
        "UnsatisfiedAssumption",
        "StopTest",
        "Frozen",
    )


# --- all mutants --------------------------------------------------------------------------------------------------


def run_all(
    mutants: Sequence[Mutant], *, processes: int = 1, max_examples: int = 2000, limit: float = _LIMIT
) -> Iterator[MutantResult]:
    """Look for each mutant in a process of its own and yield the results as they come.

    Args:
        mutants: the mutants.
        processes: how many run at once.
        max_examples: how many examples to draw for each.
        limit: seconds for each.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(mutants))
    running: dict[Connection, tuple[Mutant, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(sender, mutant, max_examples))
            process.start()
            sender.close()
            running[receiver] = (mutant, process, time.perf_counter())
        for ready in wait(list(running), timeout=1.0):
            assert isinstance(ready, Connection)
            mutant, process, started = running.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                yield _lost(mutant, "found", started, "the process died")
            process.join()
        for receiver, (mutant, process, started) in list(running.items()):
            if time.perf_counter() - started > limit:
                process.kill()
                process.join()
                del running[receiver]
                yield _lost(mutant, "timeout", started, f"no end after {limit:.0f} s")


def _lost(mutant: Mutant, status: str, started: float, message: str) -> MutantResult:
    seconds = round(time.perf_counter() - started, 2)
    subject = str(mutant.subject)
    return MutantResult(
        mutant.name, mutant.class_, subject, status, 0, seconds, "", message, equivalent=mutant.equivalent
    )


def _child(sender: Connection, mutant: Mutant, max_examples: int) -> None:
    torch.set_num_threads(1)
    with contextlib.closing(sender):
        sender.send(run_mutant(mutant, max_examples=max_examples))


def choose(only: Sequence[str] = (), classes: Sequence[str] = ()) -> list[Mutant]:
    """Return the mutants whose names contain one of `only`, of the given classes; all by default.

    Raises:
        InputError: when there is none.
    """
    found = [
        m for m in MUTANTS if (not only or any(n in m.name for n in only)) and (not classes or m.class_ in classes)
    ]
    if not found:
        known = sorted({m.class_ for m in MUTANTS})
        raise InputError("no mutant is of that name and class", remedy=f"the classes are {', '.join(known)}")
    return found


def score_table(results: Sequence[MutantResult]) -> Table:
    """Return the score by class: mutants shown to be equivalent do not count."""
    table = Table(title="mutants found")
    for column in ("class", "found", "of", "score", "examples: median", "most", "equivalent", "other"):
        table.add_column(column, justify="left" if column == "class" else "right")
    classes = sorted({r.class_ for r in results})
    for class_ in (*classes, "all"):
        of_class = [r for r in results if class_ in ("all", r.class_)]
        counted = [r for r in of_class if not r.equivalent]
        needed = sorted(r.examples for r in counted if r.status == "found")
        other = sum(r.status in ("stale", "timeout", "unsound") for r in counted)
        table.add_row(
            class_,
            str(len(needed)),
            str(len(counted)),
            f"{100 * len(needed) / len(counted):.1f} %" if counted else "-",
            str(needed[len(needed) // 2]) if needed else "-",
            str(needed[-1]) if needed else "-",
            str(len(of_class) - len(counted)),
            str(other),
        )
    return table


def known_results(report: Path | None, mutants: Sequence[Mutant], max_examples: int) -> list[MutantResult]:
    """Return what a report says of mutants that were found, or survived as many examples.

    Raises:
        InputError: when no report is named.
    """
    if report is None:
        raise InputError("there is no report to resume from", remedy="name one with --report")
    wanted = {mutant.name: mutant for mutant in mutants}
    known = [MutantResult(**entry) for entry in json.loads(report.read_text())] if report.exists() else []
    enough = {"found": 0, "survived": max_examples}
    kept = [r for r in known if r.name in wanted and r.status in enough and r.examples >= enough[r.status]]
    return [attrs.evolve(r, equivalent=wanted[r.name].equivalent) for r in kept]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run mutants as the command line says; return 1 where one that counts was not found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.mutants", description="Test the fuzz suite by faults.")
    parser.add_argument("--processes", type=int, default=1, help="mutants at once")
    parser.add_argument("--max-examples", type=int, default=2000, help="examples for each mutant")
    parser.add_argument("--limit", type=float, default=_LIMIT, help="seconds for each mutant")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="mutants whose name contains this")
    parser.add_argument("--class", action="append", default=[], dest="classes", metavar="CLASS", help="of this class")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--resume", action="store_true", help="keep what the report says of as many examples")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        mutants = choose(options.only, options.classes)
        results = known_results(options.report, mutants, options.max_examples) if options.resume else []
    except InputError as error:
        console.print(str(error), markup=False)
        return 2
    torch.set_num_threads(1)
    left = [mutant for mutant in mutants if all(mutant.name != result.name for result in results)]
    for result in run_all(left, processes=options.processes, max_examples=options.max_examples, limit=options.limit):
        results.append(result)
        what = f"{result.property or result.message}" if result.status != "survived" else result.equivalent
        line = f"{len(results)}/{len(mutants)} {result.status:9} {result.examples:5} examples {result.seconds:6.1f} s"
        console.print(f"{line}  {result.name}  [{what}]", markup=False, highlight=False, soft_wrap=True)
        if options.report is not None:
            options.report.write_text(json.dumps([attrs.asdict(r) for r in results], indent=1) + "\n")
    console.print(score_table(results))
    for result in results:
        if result.status != "found":
            reason = f"equivalent: {result.equivalent}" if result.equivalent else result.message
            console.print(f"{result.status}: {result.name} ({reason})", markup=False, soft_wrap=True)
    return int(any(r.status != "found" and not r.equivalent for r in results))
