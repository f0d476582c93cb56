"""The oracle for modules: `transform` must keep everything observable, through all captures."""

from __future__ import annotations

import copy
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from typing import Any, ClassVar

import attrs
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.passes.shape_prop import ShapeProp
from typing_extensions import override

from compiler.driver import TransformResult, transform
from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.observation import foreign_seeded, seeded
from compiler.usercode.tensors import foreign_state
from fuzz.modules.case import ModuleCase
from fuzz.modules.hold import Arguments, Comparison
from fuzz.modules.kinds import family_of
from fuzz.modules.observation import Seen, cast_tree, module_differences, observe_module, snapshot
from fuzz.modules.outside import globals_of, left_by_tracing
from fuzz.programs.budget import Budget
from fuzz.programs.case import Outcome, outcome_of
from fuzz.programs.check import check_text
from fuzz.programs.emission import check_emission
from fuzz.programs.kinds import other_than_its_kind
from fuzz.programs.observation import quiet
from fuzz.programs.properties import Finding, Properties, Unusable
from ir.errors import GraphwrightError, ValidationError
from ir.program import Program
from ir.text.printer import print_program
from ir.types import TensorType
from passes.manager.manager import Pass, PassContext, PassManager
from passes.rewrite.driver import RewriteLog

EQUAL, SOME_REFUSED, REFUSED, NOT_TRACED = "equal", "equal, some calls refused", "refused", "not traced by PyTorch"
"""The fates of a module without a `Finding`."""
SELDOM = 8
"""One of so many cases, by its seed, is also exported again, pickled, loaded with other weights and compiled twice."""
OTHER_SIZES = (1, 3, 5)
"""The sizes to try where the compiler kept a size symbolic."""
_ROUNDS_ON_ITS_WAY = re.compile(r"torch\.(b?float16|float32)")


@attrs.frozen
class Watch(Pass):
    """Records the input program of the passes, and the log that they write to."""

    name: ClassVar[str] = "watch"
    before: list[str] = attrs.field(factory=list, eq=False)
    operators: list[str] = attrs.field(factory=list, eq=False)
    logs: list[RewriteLog] = attrs.field(factory=list, eq=False)

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Record the program and the log."""
        self.before.append(print_program(program))
        self.operators.extend(sorted({op.name for op in program.graph.operations()}))
        self.logs.append(context.log)


def check_module(pass_: Pass, case: ModuleCase, properties: Properties) -> Outcome:
    """Transform a module through its captures, and compare each result with it.

    Compared are two calls with gradients on, two with gradients off, one with gradients taken, one after a training
    step, one in the other mode, one after the switch back, and calls in surroundings that the source asks about
    (autocast, inference mode, inputs with other strides). Of each call: structure, values, dtypes, shapes, strides,
    sharing of storage, inputs and state afterwards, random numbers, effects outside. Also compared are the text form,
    the checkpoint and calls at other sizes where sizes are symbolic. The user's module, the objects that it reaches and
    the random states must be unchanged. Modules in float32 and float64 are compared in float64. Others may be twice as
    far from float64 as the original.

    Args:
        pass_: the pass that is applied to the program of the module.
        case: the module.
        properties: the properties to check; `exact` and `idempotent` do not apply to modules.

    Returns:
        The effects of the pass in all captures together; refusals by the compiler count for the rule "transform".

    Raises:
        Finding: when a property does not hold.
        Unusable: when the module itself does not run, or is in training and `properties` exclude that.
    """
    if not properties.modes and (case.training or case.modes):
        raise Unusable
    outcome = Outcome(Counter(), Counter(), Counter(), changed=False)
    with quiet(), seeded(0), foreign_seeded(0):
        for way in case.ways:
            case.renew()
            try:
                done = _Way(way, pass_, case, properties).check()
            except Finding as finding:
                raise Finding(finding.property, f"{way}: {finding.message}", way) from finding
            outcome = attrs.evolve(
                outcome,
                fired=outcome.fired + done.fired,
                refused=outcome.refused + done.refused,
                variants=outcome.variants + done.variants,
                changed=outcome.changed or done.changed,
                fates=outcome.fates + done.fates,
                operators=tuple(sorted({*outcome.operators, *done.operators})),
            )
    return outcome


def lowered_and_changed(pass_: Pass, case: ModuleCase) -> tuple[str, str]:
    """Return the program of a module before and after the passes; empty if there is none."""
    watch, text = Watch(), ""
    with quiet(), seeded(0):
        args, kwargs = case.arguments()
        try:
            # without the compiler's own check, which would refuse a wrong pass
            result = transform(
                case.build(),
                args,
                kwargs,
                pipeline=PassManager((watch, pass_)),
                check=False,
                strict=True,
                dynamic_shapes=case.dynamic_shapes,
            )
            text = print_program(result.program)
        except Exception:  # noqa: BLE001 - the counterexample may be about it
            text = ""
    return watch.before[0] if watch.before else "", text


class _Way:
    """One capture of a case."""

    def __init__(self, way: str, pass_: Pass, case: ModuleCase, properties: Properties) -> None:
        self.way, self.case, self.properties = way, case, properties
        self.watch = Watch()
        self.manager = PassManager((self.watch, pass_))
        self.wide = case.dtype in (torch.float32, torch.float64)
        self.dtype = torch.float64 if self.wide else case.dtype
        self.arguments = self._arguments()

    def check(self) -> Outcome:
        """Transform the module and compare; raise a `Finding` if something differs."""
        # not run before, so that the compiler is the first to fill its state outside
        model = self.case.build().to(self.dtype)
        given = self._given(copy.deepcopy(model) if self.way == "fx" else model)
        if given is None:
            self._run_original()
            return self._outcome(
                f"{'torch.fx' if self.way == 'fx' else 'torch.export'} does not take it", fate=NOT_TRACED
            )
        result = self._transformed(given, model)
        self._run_original()
        if isinstance(result, str):
            return self._outcome(result)
        other = other_than_its_kind(result.program, result.program)
        if other is not None:
            raise Finding("kind", other)
        if isinstance(given, ExportedProgram):
            self.case.renew()  # torch.export leaves fake tensors in caches
            model = self.case.build().to(self.dtype)
        elif self.way == "fx":
            model = given
        mixed = _ROUNDS_ON_ITS_WAY.search(self.case.source) is not None
        comparison = Comparison(
            model,
            result,
            self.arguments,
            self.properties,
            double=self.wide,
            mixed=mixed,
            guarded=family_of(self.case.kind).guarded,
            witness=given.module() if isinstance(given, ExportedProgram) else None,
        )
        try:
            comparison.hold_ordinary_calls()
        except Unusable:
            if comparison.witness is None:
                raise
            return self._outcome("torch.export makes another module of it", fate=NOT_TRACED)
        comparison.hold_checkpoint()
        if comparison.witness is None:
            comparison.hold_calls()
            comparison.hold_in_other_surroundings(self.case.source)
        if self.properties.modes:
            comparison.hold_in_the_other_mode()
        if self.properties.text:
            self._hold_text(result)
        if self.way == "export":
            self._hold_at_other_sizes(comparison)
            if self.case.seed % SELDOM == 0:
                self._hold_deterministic(model, result)
                comparison.hold_saved()
                comparison.hold_with_other_weights(self.case.seed + 1)
                comparison.hold_exported()
        return self._outcome(None, result, SOME_REFUSED if comparison.refused else EQUAL)

    def _outcome(self, refusal: str | None, result: TransformResult | None = None, fate: str = REFUSED) -> Outcome:
        log = self.watch.logs[0] if self.watch.logs else RewriteLog()
        outcome = outcome_of(log, result is not None and print_program(result.program) != self.watch.before[0])
        if refusal is not None:
            outcome.refused["transform", f"{self.way}: {refusal}"] += 1
        fates = Counter({(self.case.kind, fate): 1})
        return attrs.evolve(outcome, operators=tuple(self.watch.operators), fates=fates)

    # ---- the original ----

    def _arguments(self, sizes: dict[tuple[str, int], int] | None = None) -> Arguments:
        args, kwargs = cast_tree(self.case.arguments(sizes), self.dtype)
        return args, kwargs

    def _run_original(self) -> None:
        """Run a new module of the case.

        Raises:
            Unusable: when it does not run.
        """
        self.case.renew()
        try:
            observe_module(self.case.build().to(self.dtype), *self.arguments, gradients=self.properties.gradients)
        except Exception as error:
            raise Unusable from error

    def _given(self, model: nn.Module) -> nn.Module | ExportedProgram | None:
        """Return the input of the compiler: the module, or its trace; None where tracing fails."""
        if self.way == "export":
            return model
        # the tracers fail in many ways
        if self.way == "fx":
            try:
                return fx.symbolic_trace(model)  # this mutates buffers
            except Exception:  # noqa: BLE001
                return None
        args, kwargs = copy.deepcopy(self.arguments)
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=self.case.dynamic_shapes)
            return program.run_decompositions() if self.way == "decomposed" else program
        except Exception:  # noqa: BLE001
            return None

    # ---- the result ----

    def _transformed(self, given: nn.Module | ExportedProgram, model: nn.Module) -> TransformResult | str:
        """Return the result, or why the compiler refuses the module."""
        arguments: tuple[Any, ...] = ()
        options: dict[str, Any] = {"strict": True}  # a rule that raises is a finding
        if self.way == "export":
            arguments = copy.deepcopy(self.arguments)
            options["dynamic_shapes"] = self.case.dynamic_shapes
        elif isinstance(given, fx.GraphModule) and self.case.seed % 4:  # else types are unknown
            _note_shapes(given, self.arguments)
        watched = given if isinstance(given, nn.Module) else model
        before, randomness = snapshot(watched), (torch.random.get_rng_state(), foreign_state())
        result: TransformResult | str
        try:
            result = transform(given, *arguments, pipeline=self.manager, **options)
        except ValidationError as error:
            result = _reason(error)
            if _is_taken(given, *copy.deepcopy(arguments), **options):  # so the pass did it; here it is compared
                result = transform(given, *arguments, pipeline=self.manager, check=False, **options)
        except GraphwrightError as error:
            if self.watch.before:
                raise Finding("no error", f"{type(error).__name__}: {error}") from error
            result = _reason(error)
        except Exception as error:
            self._run_original()
            raise Finding("no error", f"{type(error).__name__}: {error}") from error
        if snapshot(watched) != before:
            raise Finding("the module is left alone", "it was changed")
        if not torch.equal(randomness[0], torch.random.get_rng_state()) or foreign_state() != randomness[1]:
            raise Finding("random numbers", "transform drew some")
        if self.way == "export":
            self._hold_original(model)
        return result

    def _hold_original(self, model: nn.Module) -> None:
        """Check that the user's module behaves as before, and reaches no values from tracing."""
        left = left_by_tracing(model, globals_of(model))
        if left:
            raise Finding("the user's objects", f"tracing left {', '.join(left)} in what the module reaches")
        try:
            after = observe_module(copy.deepcopy(model), *self.arguments, surroundings=torch.enable_grad)
        except Exception as error:
            self._run_original()
            raise Finding("the user's objects", f"the original raises after it: {error}") from error
        if not isinstance(self.case.module, str):
            return  # the state of its file cannot be renewed
        self.case.renew()
        try:
            fresh = self.case.build().to(self.dtype)
            usual = [
                observe_module(copy.deepcopy(fresh), *self.arguments, surroundings=torch.enable_grad) for _ in range(2)
            ]
        except Exception as error:
            raise Unusable from error
        if any(_unlike(*usual)):
            return  # it has state outside, and each result differs
        for property_, message in _unlike(usual[0], after):
            raise Finding("the user's objects", f"the original is another one after it: {property_}: {message}")

    def _hold_text(self, result: TransformResult) -> None:
        """Check that the text form parses, and is emitted as the same module."""
        parsed = check_text(result.program, print_program(result.program))
        check_emission(result.program, parsed, result.model)

    def _hold_at_other_sizes(self, comparison: Comparison) -> None:
        """Compare at other sizes where a size is symbolic; the result may refuse one by an error of ours."""
        for name, dim in self.case.dynamic:
            if _is_open(comparison.result, self.case, name, dim):
                for size in OTHER_SIZES:
                    with suppress(Unusable):
                        comparison.hold_at(self._arguments({(name, dim): size}))

    def _hold_deterministic(self, model: nn.Module, result: TransformResult) -> None:
        given = copy.deepcopy(self.arguments)
        again = transform(model, *given, pipeline=self.manager, dynamic_shapes=self.case.dynamic_shapes)
        if again.model.code != result.model.code:
            raise Finding("determinism", "a second compilation makes other code")


def _note_shapes(model: nn.Module, arguments: Arguments) -> None:
    """Give a traced graph the metadata of `ShapeProp`, without a run of the module itself."""
    assert isinstance(model, fx.GraphModule)
    twin = copy.deepcopy(model)
    # it takes no keyword arguments, and prints its errors; then types are unknown
    with suppress(Exception), redirect_stderr(io.StringIO()):
        ShapeProp(twin).propagate(*copy.deepcopy(arguments[0]))
    found = {node.name: node.meta for node in twin.graph.nodes}  # without unused nodes
    for node in model.graph.nodes:
        node.meta = found.get(node.name, node.meta)


def _reason(error: GraphwrightError) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"


def _is_taken(*arguments: Any, **options: Any) -> bool:
    """Return whether the compiler accepts a module without any pass."""
    try:
        transform(*arguments, pipeline=PassManager(()), **options)
    except GraphwrightError:
        return False
    return True


def _unlike(a: Seen, b: Seen) -> Iterator[tuple[str, str]]:
    return module_differences(a, b, ParameterMap({}), Budget())


def _is_open(result: TransformResult, case: ModuleCase, name: str, dim: int) -> bool:
    index = [spec.name for spec in case.inputs].index(name)
    type_ = result.program.graph.inputs[index].type
    return isinstance(type_, TensorType) and type_.shape is not None and not isinstance(type_.shape[dim], int)
