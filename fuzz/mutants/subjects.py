"""The examples on which mutants are tried, each with the check of its subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from hypothesis import reject
from hypothesis import strategies as st

from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.targets.tensorrt import TENSORRT_PATTERNS
from fuzz.calls.inference import TypedCall, inference_fault, inferred, typed_call
from fuzz.modules.check import check_module
from fuzz.modules.strategy import modules
from fuzz.mutants.mutation import Subject
from fuzz.programs.case import Case, positional_convention
from fuzz.programs.check import check_case, check_text
from fuzz.programs.erasure import with_erased_types
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.programs.strategy import input_tensors, programs
from fuzz.rules.instances import instances
from fuzz.rules.names import find_rule
from fuzz.search.quantized import QUANTIZABLE, QuantizedCase, check_quantized, check_removed, quantized_cases
from fuzz.search.sound import Target
from ir.builder import Builder
from ir.core import Operation, Value
from ir.errors import EvaluationError, InputError
from ir.evaluate import evaluate
from ir.program import Program
from ir.text.printer import print_program
from ir.types import TensorType, type_of_tensor, types_agree
from passes.canonicalize import Canonicalize
from passes.manager.manager import PassContext
from passes.quant.unify import unify_quantizers
from passes.rewrite.rewriter import Rewriter

Run = Callable[[], None]
"""Checks one drawn example; can be called again."""
Draw = Callable[[st.DrawFn], Run]


def draws(subject: Subject) -> Draw:
    """Return how to draw an example for a subject.

    Raises:
        InputError: when the subject is of no known kind, or its rule does not exist.
    """
    if subject.kind in ("rule", "pass"):
        return draws_of_cases(subject)
    if subject.kind == "quant":
        return draws_of_quantized(subject)
    found = {"text": _draw_text, "types": _draw_types, "modules": _draw_module}.get(subject.kind)
    if found is None:
        raise InputError(f"{subject} is not a subject", remedy="write rule, pass, quant, text, types or modules")
    return found(subject)


@attrs.frozen(eq=False)
class Rewritten:
    """What a program became."""

    text: str
    """Of the program, or of the error where there is none."""
    count: int | None = None
    """How many rewrites there were; of a pass, how many operations it erased."""
    weights: int = 0
    """How many weights a pass erased."""
    program: Program | None = None


@attrs.frozen(eq=False, repr=False)
class Drawn:
    """A program that was drawn for a rule or pass, and the check of both."""

    target: Target
    case: Case

    def __call__(self) -> None:
        """Check the properties of the target on the program."""
        _usable(lambda: check_case(self.target.pass_, self.case, self.target.properties))

    def rewritten(self) -> Rewritten:
        """Return what the program becomes."""
        context = PassContext()
        program = self.case.build()
        operations, weights = _size(program)
        try:
            with quiet():
                self.target.pass_.run(program, context)
        except Exception as error:  # noqa: BLE001 - a mutant may fail in any way
            return Rewritten(f"{type(error).__name__}: {error}")
        text, left = print_program(program), _size(program)
        if self.target.rules:
            return Rewritten(text, context.log.counts.total(), program=program)
        return Rewritten(text, operations - left[0], weights - left[1], program)

    def finished(self, made: Rewritten) -> str:
        """Return what becomes of a program that was rewritten: what a mutant left undone is done.

        Conversions and fusions are followed by canonicalization, where other spellings of the same are one.
        """
        rules = self.target.rules
        follows = bool(rules) and all(rule.is_conversion or rule.is_fusion for rule in rules)
        if made.program is None:
            return made.text
        try:
            with quiet():
                for pass_ in (self.target.pass_, Canonicalize()) if follows else (self.target.pass_,):
                    pass_.run(made.program, PassContext())
        except Exception as error:  # noqa: BLE001 - a mutant may have made any program
            return f"{type(error).__name__}: {error}"
        return print_program(made.program)


def _size(program: Program) -> tuple[int, int]:
    """Return the numbers of operations and of weights."""
    return sum(1 for _ in program.graph.operations()), len(program.weights)


def draws_of_cases(subject: Subject) -> Callable[[st.DrawFn], Drawn]:
    """Return how to draw a program for a rule or pass; with several rules, each program is for one of them."""
    whole = programs(operators=subject.operators, half=True, training=True)
    symbolic = programs(operators=subject.operators, symbolic=True)
    if subject.kind == "rule":
        targets = [Target.of(find_rule(name)) for name in subject.names]
        drawings = [instances(target.rules[0]) for target in targets]
    else:
        pipeline = parse_pipeline(subject.names[0])
        targets = [Target.of(pipeline.passes[0] if len(pipeline.passes) == 1 else pipeline)]
        drawings = [instances(find_rule(name)()) for name in subject.names[1:]]

    def drawn(draw: st.DrawFn) -> Drawn:
        number = draw(st.integers(0, len(targets) - 1)) if len(targets) > 1 else 0
        made = draw(drawings[number]) if drawings else None
        program = draw(whole if draw(st.integers(0, 3)) < 3 else symbolic) if made is None else made.program
        if made is None:
            _fuse_some(draw, program)
        inputs = draw(input_tensors(program))
        draw(with_erased_types(program, unknown="" if made is None else made.unknown))
        return Drawn(targets[number], Case.of(program, inputs))

    return drawn


def _fuse_some(draw: st.DrawFn, program: Program) -> None:
    """Make regions of a few operations, or of none; the last one may get a twin, with its operand and another body."""
    made: list[Operation] = []
    for _ in range(draw(st.integers(0, 2))):
        ops = [op for op in program.graph.operations() if op.results and op.body is None]
        if ops:
            op = ops[draw(st.integers(0, len(ops) - 1))]
            made.append(Rewriter(program).fuse("drawn", [op], outputs=op.results))
    twin: bool = draw(st.booleans())
    if made and twin and len(made[-1].operands) == len(made[-1].results) == 1:
        graph, build = program.graph, Builder(program.graph)
        op = build.op("aten.logical_not", made[-1].operands[0])
        region = Rewriter(program).fuse("drawn", [op], outputs=op.results)
        graph.set_outputs([*graph.outputs, build.op("aten.clone", region.result).result])
        program.convention = positional_convention(graph)


def _usable(action: Callable[[], Any]) -> None:
    try:
        action()
    except Unusable:
        reject()


@attrs.frozen(eq=False, repr=False)
class Quantized:
    """A program that was drawn for the placement of quantizers, and its check."""

    case: QuantizedCase

    def __call__(self) -> None:
        """Check what is placed, and that the program is as before once it is removed."""
        _usable(lambda: check_quantized(self.case))
        _usable(lambda: check_removed(self.case))

    def rewritten(self) -> Rewritten:
        """Return what the program becomes, and how much of it is in integers."""
        try:
            with quiet():
                program, placement = self.case.place()
                unify_quantizers(program, self.case.table)
        except Exception as error:  # noqa: BLE001 - a mutant may fail in any way
            return Rewritten(f"{type(error).__name__}: {error}")
        told = "\n".join(map(str, placement.places))
        return Rewritten(f"{print_program(program)}\n{told}", len(placement.placed), program=program)

    def finished(self, made: Rewritten) -> str:
        """Return what was made: there is nothing to finish."""
        return made.text


def draws_of_quantized(subject: Subject) -> Callable[[st.DrawFn], Quantized]:
    """Return how to draw a program that is quantized by a target's table."""
    strategy = quantized_cases(operators=subject.operators or QUANTIZABLE)
    return lambda draw: Quantized(draw(strategy))


def _draw_text(subject: Subject) -> Draw:
    strategy = programs(operators=subject.operators)

    def run(program: Program) -> None:
        text = print_program(program)
        if print_program(check_text(program, text)) != text:
            raise Finding("text", "what was parsed prints differently")

    def drawn(draw: st.DrawFn) -> Run:
        program = draw(strategy)
        return lambda: run(program)

    return drawn


def _draw_types(subject: Subject) -> Draw:
    """Calls of single operators, also refused ones; one example in four is a whole program, which is evaluated."""
    strategy = programs(operators=subject.operators)
    has_rules = bool(inferred(subject.operators))

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

    def drawn(draw: st.DrawFn) -> Run:
        if has_rules and draw(st.integers(0, 3)):
            return CheckedCall(draw_inferred(draw, subject))
        program = draw(strategy)
        inputs = draw(input_tensors(program))
        return lambda: run(program, inputs)

    return drawn


def draw_inferred(draw: st.DrawFn, subject: Subject) -> TypedCall:
    """Draw a call of one of a subject's operators that have a rule of type inference."""
    return typed_call(draw, draw(st.sampled_from(inferred(subject.operators))))


@attrs.frozen(eq=False, repr=False)
class CheckedCall:
    """A call that was drawn for type inference, and its check."""

    call: TypedCall

    def __call__(self) -> None:
        """Check what inference answers."""
        fault = inference_fault(self.call)
        if fault is not None:
            raise Finding("types", fault)


def _fits(value: Value, tensor: torch.Tensor) -> bool:
    return isinstance(value.type, TensorType) and types_agree(value.type, type_of_tensor(tensor))


def _draw_module(subject: Subject) -> Draw:
    pipeline = pipeline_of(TENSORRT_PATTERNS)

    def drawn(draw: st.DrawFn) -> Run:
        case = draw(modules())
        return lambda: _usable(lambda: check_module(pipeline, case, Properties()))

    return drawn
