"""The check of a rule on its examples: it fires on them and is right, and refuses near misses for their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuzz.calls.tensors import random_tensor
from fuzz.programs.case import Case, positional_convention
from fuzz.programs.erasure import erase_inputs
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.rules.rule_pass import ApplyRules
from fuzz.rules.variation import bounds_of
from fuzz.search.counterexample import UnsoundError, explain
from fuzz.search.judge import judge
from fuzz.search.soundness import Soundness
from ir.core import Value
from ir.errors import GraphwrightError, PatternError
from ir.program import Program
from ir.verify import verify
from passes.rewrite.example import Example
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Match, Pattern
from passes.rewrite.remarks import Refusal


def hold_examples(rules: Sequence[Pattern], properties: Properties) -> None:
    """Apply each rule to its examples, as `hold_example` does.

    Raises:
        UnsoundError: when a rule does not do what an example says.
        PatternError: when an example is no program.
    """
    for rule in rules:
        given = rule.examples
        if not isinstance(given, (tuple, list)) or not all(isinstance(example, Example) for example in given):
            raise PatternError(f"{rule.name}.examples is {given!r}", remedy="write `examples = (Example(...),)`")
        for example in given:
            hold_example(rule, example, properties)


def hold_example(rule: Pattern, example: Example, properties: Properties) -> None:
    """Apply a rule to one of its examples, with random numbers for inputs and weights.

    Raises:
        UnsoundError: when the rule does not fire, or fires on a near miss or refuses it for another reason; and when a
            property does not hold, with the counterexample.
        PatternError: when the example is not a program.
    """
    try:
        program = example.program()
        verify(program)
    except GraphwrightError as error:
        shown = "" if isinstance(error, PatternError) else f"\n{example}"
        message = f"{rule.name}: {error.message}{shown}"
        raise PatternError(message, location=error.location, remedy=error.remedy) from error
    program.convention = positional_convention(program.graph)
    inputs = [_numbers(value, number) for number, value in enumerate(program.graph.inputs)]
    if example.unknown:
        erase_inputs(program, example.unknown)
    for number, weight in enumerate(program.weights.values()):
        weight.data = _numbers(weight.value, number)
    case = Case.of(program, inputs)
    pass_ = ApplyRules((rule,))
    try:
        fired = judge(pass_, case, properties).fired[rule.name]
    except Finding as finding:
        raise UnsoundError(explain(rule.name, pass_, (rule,), properties, case, finding, 0)) from finding
    except Unusable as error:
        message = f"{rule.name}: an example does not run on random numbers: {error.__cause__ or error}\n{example}"
        raise PatternError(message, remedy="integers are drawn from 0 to 4; change its sizes or dtypes") from error
    reasons = refusals(rule, program)
    said = "; ".join(reasons) or "it does not match"
    if not example.refused and not fired:
        raise _unlike(f"{rule.name} does not fire on its example: {said}", example)
    if example.refused and fired:
        raise _unlike(f"{rule.name} fires on its near miss", example)
    if example.refused and not any(example.refused in reason for reason in reasons):
        raise _unlike(f"{rule.name} refuses its near miss for another reason: {said}", example)


def refusals(rule: Pattern, program: Program) -> list[str]:
    """Return why a rule refuses its matches in a program, each reason once."""
    reasons: dict[str, None] = {}
    for op in program.graph.operations():
        for variant in compile_rule(rule):
            found = variant.try_match(op) if variant.accepts(op.opdef) else None
            answer = rule.check(found) if isinstance(found, Match) else found
            if answer is not None:
                reasons[answer.reason if isinstance(answer, Refusal) else answer] = None
    return list(reasons)


def _numbers(value: Value, seed: int) -> Any:
    type_ = value.tensor_type
    assert type_.shape is not None and type_.dtype is not None
    shape = [int(d) for d in type_.shape if d is not None]
    try:
        return random_tensor(shape, type_.dtype, seed, bounds_of(value))
    except (NotImplementedError, RuntimeError) as error:  # of dtypes without random numbers, and of huge sizes
        message = f"no tensor can be drawn for %{value.name} of type {type_} of an example: {error}"
        raise PatternError(message, remedy="choose another dtype or smaller sizes") from error


def _unlike(message: str, example: Example) -> UnsoundError:
    remedy = "correct the example, or the rule's `check`"
    return UnsoundError(None, message, Soundness(), details=f"\n\n{example}\n", remedy=remedy)
