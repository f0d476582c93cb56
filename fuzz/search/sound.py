"""`assert_sound` and `find_counterexample`: a rule or pass on programs that are drawn for it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.errors import Flaky, FlakyStrategyDefinition, Unsatisfiable
from typing_extensions import override

from fuzz.modules.case import ModuleCase, forget_loaded
from fuzz.programs.case import Case, Outcome
from fuzz.programs.erasure import erase_types
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.programs.strategy import draw_inputs, programs
from fuzz.rules.instances import Instance, instances
from fuzz.rules.orders import ORDERS, InOrder, demanded
from fuzz.rules.reverse import Inflated
from fuzz.rules.rule_pass import ApplyRules, index_of
from fuzz.search.canonical import TRIED, fires_on_none, hold_canonical, meets_canonical
from fuzz.search.constants import only_common_constants
from fuzz.search.counterexample import Counterexample, UnsoundError, explain
from fuzz.search.examples import hold_examples
from fuzz.search.judge import AnyCase, in_a_search, judge
from fuzz.search.soundness import Soundness
from ir.errors import GraphwrightError, InputError
from ir.program import Program
from ir.verify import verify
from passes.canonicalize import Canonicalize
from passes.canonicalize.identity import INFERENCE_RULES
from passes.canonicalize.respelled import respelled_operators, spelled_otherwise
from passes.fold.constants import FoldConstants
from passes.manager.manager import Pass
from passes.rewrite.matching import compile_rule
from passes.rewrite.pattern import Pattern, instantiate, missing_method
from passes.rewrite.remarks import GraphwrightWarning

_NUMBERS = st.integers(0, 2 * ORDERS - 1)
_SHRINKING = 60.0
"""Seconds for shrinking a counterexample."""
_ROUNDS, _EACH_ROUND = 10, 100
"""How many searches follow for a rule that did not fire, and with how many programs each."""

Subject = type[Pattern] | Pattern | Sequence[type[Pattern] | Pattern] | Pass


@attrs.frozen(eq=False)
class Target:
    """A prepared subject: the pass, its rules if it consists of rules, and the properties that must hold."""

    name: str
    pass_: Pass
    rules: tuple[Pattern, ...]
    properties: Properties
    on: st.SearchStrategy[Any] | None = None
    """The strategy for its programs; None for the default one."""
    orders: bool = False
    """Whether its rules and its independent passes are tried in drawn orders and scopes."""

    @classmethod
    def of(cls, subject: Any, properties: Properties | None = None) -> Target:
        """Return the target that a subject of `assert_sound` stands for.

        Raises:
            InputError: when the subject is neither a pattern (class, object or sequence of them) nor a pass.
        """
        if isinstance(subject, Pass):
            # the strict properties are known to hold for this pass only
            exact = isinstance(subject, Canonicalize) and not subject.inference
            folds = isinstance(subject, FoldConstants)
            modes = not _is_for_inference(subject)
            chosen = properties or Properties(
                exact=exact or folds, idempotent=exact, canonical=exact, modes=modes, converted=folds
            )
            return cls(str(subject), subject, (), chosen)
        if isinstance(subject, type) and issubclass(subject, Pass):
            raise InputError(
                f"{subject.__qualname__} is a class of passes", remedy=f"pass an object: {subject.__qualname__}()"
            )
        if isinstance(subject, Pattern) or (isinstance(subject, type) and issubclass(subject, Pattern)):
            subject = (subject,)
        if not isinstance(subject, Sequence) or isinstance(subject, str) or not subject:
            raise InputError(
                f"{subject!r} is neither a pattern nor a pass",
                remedy="pass a Pattern class, a sequence of them, or a Pass such as a PassManager",
            )
        rules = instantiate(list(subject))
        for rule in rules:
            if type(rule).rewrite is Pattern.rewrite:
                raise missing_method(rule, "rewrite")
        index_of(rules)  # an ill-formed pattern is an error, not a finding
        exact = all(rule.exact for rule in rules)
        return cls(
            ", ".join(rule.name for rule in rules),
            ApplyRules(rules),
            rules,
            properties or Properties(exact=exact, modes=not any(map(_is_for_inference, rules))),
        )


def _is_for_inference(subject: Pass | Pattern) -> bool:
    """Return whether a pass or rule, or a part of it, assumes that the program will never train."""
    if isinstance(subject, Pattern):
        return subject.is_for_inference or isinstance(subject, INFERENCE_RULES)
    if getattr(subject, "inference", False) or subject.is_for_inference:
        return True
    return any(map(_is_for_inference, getattr(subject, "passes", ())))


def assert_sound(
    subject: Subject,
    *,
    on: st.SearchStrategy[Any] | None = None,
    properties: Properties | None = None,
    settings: settings | None = None,
    orders: bool = False,
) -> Soundness:
    """Check that a rule, several rules or a pass preserve the meaning of programs.

    A pattern is checked on its examples, and on programs that are built from it (`fuzz.instances`): variations of its
    examples, programs that it must match, and near misses that differ in one point. A conversion or fusion is also
    tried on the canonical forms of some of them, since its input is canonical. A pass is tried on whole programs.
    Changed programs are compared with the original as `Properties` says: values, dtypes, shapes, strides, sharing,
    gradients, statistics, random numbers, the text form.

    Args:
        subject: a Pattern class or object, a sequence of them, or a Pass (a PassManager).
        on: a strategy in place of the default one, for `Program`s, `Instance`s, or modules (`modules()`), which go
            through both captures.
        properties: the properties that must hold; by default equal bits for exact rules, and rounding for others.
        settings: of hypothesis; the active profile by default.
        orders: whether rules and independent passes are also tried in other orders, and in drawn scopes.

    Returns:
        Statistics: how often each rule fired and was refused, and alternatives that never fired.

    Warns:
        GraphwrightWarning: when a conversion or fusion matches an operator that canonicalization replaces.

    Raises:
        UnsoundError: when a property does not hold. It carries the smallest `Counterexample` that was found; its text
            shows the program before and after, the rewrite at fault, and a file. Also when a rule never fires (of
            several, when none fires on what `on` draws), a pass changes no program, a conversion or fusion fires on
            no canonical program, or a rule contradicts its examples.
        InputError: when the subject is neither a rule nor a pass, `on` draws something else, or a rule is not
            deterministic.
    """
    target = attrs.evolve(Target.of(subject, properties), orders=orders)
    for rule in target.rules:
        respelled = respelled_operators(rule) if rule.is_conversion or rule.is_fusion else {}
        if respelled:
            missing = spelled_otherwise(respelled)
            warnings.warn(
                f"{rule.name} is tried as it is, but matches no canonical program: there is no {missing} in one",
                GraphwrightWarning,
                stacklevel=2,
            )
    hold_examples(target.rules, target.properties)
    seen, found = search(target, on, settings)
    found = found or _insist_on_all(target, on, seen)
    if found is not None:
        raise UnsoundError(found)
    if target.rules and on is None:
        seen.never = tuple(_never(target.rules, seen))
    return seen


def _insist_on_all(target: Target, on: st.SearchStrategy[Any] | None, seen: Soundness) -> Counterexample | None:
    """Search until each rule has fired; return a counterexample if one is found.

    Raises:
        UnsoundError: when a rule never fires, or a pass changed nothing: then it was not tested.
    """
    if not target.rules and not seen.changed:
        raise UnsoundError(None, f"{target.name} changed none of {seen.examples} programs", seen)
    if target.rules and on is not None and not seen.fired:
        raise UnsoundError(None, f"{target.name} never fired on {seen.examples} programs", seen)
    if not target.rules or on is not None:
        return None
    silent = []
    for rule in target.rules:
        found = None if seen.fired[rule.name] else _insist(rule, target, seen)
        if found is not None:
            return found
        if not seen.fired[rule.name]:
            silent.append(rule.name)
    if silent:
        message = f"{', '.join(silent)} never fired on {seen.instances} programs built to match"
        if not seen.instances:
            message += ": none could be built from its pattern that runs"
        raise UnsoundError(None, message, seen)
    for rule in filter(meets_canonical, target.rules):
        found = None if seen.canonical[rule.name] else _insist(rule, target, seen, canonical=True)
        if found is not None:
            return found
        if not seen.canonical[rule.name]:
            raise fires_on_none(rule, seen)
    return None


def _insist(rule: Pattern, target: Target, seen: Soundness, *, canonical: bool = False) -> Counterexample | None:
    """Search on, without near misses, until a rule fires; our rarest one fires once in some hundred programs.

    With `canonical`, search until it fires on a canonical program. If no program could be built with one seed, no
    other seed is tried.
    """
    counts = seen.canonical if canonical else seen.fired
    for seed in range(_ROUNDS):
        more, found = search(target, None, search_settings(_EACH_ROUND), seed=seed, drawing=instances(rule, near=False))
        seen.merge(more)
        if found is not None or counts[rule.name] or not more.examples or seen.fired[rule.name] > TRIED:
            return found
    return None


def find_counterexample(
    subject: Subject,
    *,
    on: st.SearchStrategy[Any] | None = None,
    properties: Properties | None = None,
    max_examples: int = 1000,
    seed: int | None = None,
) -> Counterexample | None:
    """Return the smallest counterexample that a search finds, or None.

    Args:
        subject: as for `assert_sound`.
        on: as for `assert_sound`.
        properties: as for `assert_sound`.
        max_examples: how many programs to draw.
        seed: of the search; without one, searches differ.

    Raises:
        UnsoundError: when nothing is found because a rule never fired, or a pass changed no program; and when a rule
            does not fire as its examples say.
        InputError: when the subject is neither a rule nor a pass, `on` draws something else, or `max_examples` is 0.
    """
    if max_examples < 1:
        raise InputError(f"max_examples is {max_examples}", remedy="ask for one program at least")
    target = Target.of(subject, properties)
    try:
        hold_examples(target.rules, target.properties)
    except UnsoundError as error:
        if error.counterexample is None:
            raise
        return error.counterexample
    seen, found = search(target, on, search_settings(max_examples), seed=seed)
    return found or _insist_on_all(target, on, seen)


def search_settings(max_examples: int) -> settings:
    """Return the settings for a standalone search: no database, no deadline."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )


def check(subject: Subject, case: AnyCase, properties: Properties | None = None) -> Outcome:
    """Apply a subject to one case and check the properties of the result.

    Raises:
        Finding: when a property does not hold.
    """
    target = Target.of(subject, properties)
    return judge(target.pass_, case, target.properties)


def drawn_cases(target: Target, on: st.SearchStrategy[Any] | None) -> st.SearchStrategy[Any]:
    """Return the strategy for the programs of a target: `on`, or its default one."""
    chosen = target.on if on is None else on
    if chosen is not None:
        return chosen
    if not target.rules:
        return programs(half=True, training=True)
    return st.one_of([instances(rule) for rule in target.rules])


class _Attempted(tuple[Any, Sequence[torch.Tensor], int]):
    """What is tried, tensors for its inputs, and the number of an order."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return "an attempt"  # hypothesis asks for the text of what fails, and warns of a long one


def search(
    target: Target,
    on: st.SearchStrategy[Any] | None,
    chosen: settings | None,
    *,
    seed: int | None = None,
    drawing: st.SearchStrategy[Any] | None = None,
) -> tuple[Soundness, Counterexample | None]:
    """Try a target on drawn programs; return the statistics, and the smallest counterexample.

    Args:
        target: the target.
        on: the strategy to draw from; None for the target's own.
        chosen: settings of hypothesis; None for the active profile.
        seed: of the search; None leaves it to the settings.
        drawing: a strategy of ours in place of the target's own.
    """
    if on is not None and not isinstance(on, st.SearchStrategy):
        raise InputError(f"`on` is {on!r}, not a strategy", remedy="call it: on=modules(), on=programs()")
    seen = Soundness()
    last: list[tuple[AnyCase, Finding, Pass]] = []
    first: list[int] = []
    since: list[float] = []
    strategy = drawn_cases(target, on) if drawing is None else drawing

    def held(pass_: Pass, case: AnyCase, program: Program | None = None) -> Outcome:
        try:
            return judge(pass_, case, in_a_search(demanded(target.properties, pass_), case), program)
        except Finding as finding:
            last[:] = [(case, finding, pass_)]
            since.append(time.monotonic())
            first.append(seen.examples)  # later checks only shrink the case
            raise

    @st.composite
    def attempts(draw: st.DrawFn) -> _Attempted:
        """Return a strategy for all that an attempt draws: what is tried, tensors for its inputs, and an order."""
        if last and time.monotonic() - since[0] > _SHRINKING:
            reject()  # the last failing case counts
        drawn = draw(strategy)
        inputs: Sequence[torch.Tensor] = ()
        if not isinstance(drawn, ModuleCase):
            program = _program_of(drawn)
            if on is not None:
                _verify_drawn(program)
            inputs = draw_inputs(draw, program, finite=not target.properties.non_finite)
            if target.properties.unknown and not isinstance(drawn, Inflated):
                erase_types(draw, program, unknown=drawn.unknown if isinstance(drawn, Instance) else "")
        return _Attempted((drawn, inputs, draw(_NUMBERS) if target.orders else 0))

    def attempt(attempted: _Attempted) -> None:
        drawn, inputs, number = attempted
        case, program = drawn, None
        operators: Sequence[str] = ()
        if not isinstance(drawn, ModuleCase):
            program = _program_of(drawn)
            case = drawn.case(inputs) if isinstance(drawn, Inflated) else Case.of(program, inputs)
            operators = sorted({op.name for op in program.graph.operations()})
        pass_ = InOrder(target.pass_, number) if target.orders else target.pass_
        try:
            outcome = held(pass_, case, program)
        except Unusable:
            reject()
        if isinstance(drawn, Instance):
            hold_canonical(target.rules, case, outcome.fired, seen, lambda canonical: held(pass_, canonical).fired)
        seen.examples += 1
        seen.add(outcome, operators or outcome.operators)
        if isinstance(drawn, Instance) and drawn.change is None:
            seen.instances += 1

    test: Callable[[], None] = given(attempts())(attempt)
    chosen = chosen or settings()
    # the time of a program says nothing about a rule; and the report is ours: hypothesis would also explain and print
    # the drawn values
    phases = [phase for phase in chosen.phases if phase is not Phase.explain]
    # the first program fills caches (inference rules, tables of operators): later ones are not slow to generate
    unhealthy = [*chosen.suppress_health_check, HealthCheck.too_slow]
    if on is None:
        unhealthy.append(HealthCheck.filter_too_much)  # a pattern may be hard to meet
    test = settings(
        chosen,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=unhealthy,
    )(test)
    if seed is not None:
        test = hypothesis_seed(seed)(test)
    try:
        with only_common_constants():
            test()
    except (Finding, Flaky) as error:
        # a subject that fails at random, or keeps state between runs, is flaky: the failure counts
        if not last and isinstance(error, FlakyStrategyDefinition) and on is None and target.rules:
            raise InputError(
                f"{target.name} does not always say the same of one match",
                remedy="let `pattern` and `check` ask of the match alone, and keep nothing",
            ) from error
        if not last:
            raise
        case, finding, pass_ = last[0]
        return seen, explain(target.name, pass_, target.rules, target.properties, case, finding, first[0])
    except Unsatisfiable:
        pass  # no program could be built, as the statistics show
    finally:
        forget_loaded()
    return seen, None


def _program_of(drawn: Any) -> Program:
    """Return the program that was drawn.

    Raises:
        InputError: when it is something else.
    """
    program = drawn.program if isinstance(drawn, (Instance, Inflated)) else drawn
    if not isinstance(program, Program):
        raise InputError(
            f"`on` draws {program!r}, which is not a program",
            remedy="draw from programs(), instances() or modules()",
        )
    return program


def _verify_drawn(program: Program) -> None:
    """Verify a program of the user's strategy, whose types may be written by hand.

    Raises:
        InputError: when it is ill-formed.
    """
    try:
        verify(program)
    except GraphwrightError as error:
        raise InputError(
            f"`on` draws a program that is ill-formed: {error.message}",
            location=error.location,
            remedy="correct the strategy; `graphwright.ir.verify` says the same of a program",
        ) from error


def _never(rules: Sequence[Pattern], seen: Soundness) -> list[str]:
    return [
        f"{rule.name}, alternative {variant.order} of {len(variants)}"
        + (f" ({', '.join(variant.names)})" if variant.names else "")
        for rule in rules
        for variants in (sorted(compile_rule(rule), key=attrgetter("order")),)
        for variant in variants
        if not seen.variants[rule.name, variant.order]
    ]
