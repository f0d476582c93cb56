"""The comparison of a module with its transformed form: everything observable must be the same."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import attrs
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from compiler.driver import TransformResult
from compiler.emitted.parameter_map import ParameterMap
from compiler.equality.unit_strides import is_definite
from compiler.usercode.difference import tensor_difference
from fuzz.modules.case import randomize
from fuzz.modules.observation import Seen, cast_tree, is_computed, module_differences, observe_module
from fuzz.modules.outside import globals_of
from fuzz.programs.budget import Budget
from fuzz.programs.definite import channels_last, transposed
from fuzz.programs.properties import Finding, Properties, Unusable
from fuzz.programs.rounding import Rounding
from ir.errors import GraphwrightError, InputError

Runs = dict[str, Seen]
"""Label of a call -> its observation."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""
Run = Callable[[nn.Module, Arguments], Runs]
"""Runs a module, which is a copy; its arguments are not mutated."""

_NOT_OF_THE_MODULE = (RuntimeError, ValueError, IndexError, NotImplementedError)
"""Errors of kernels for operands that they do not accept."""


@attrs.frozen(eq=False)
class Comparison:
    """A module, the result of its transformation, and the arguments of their calls.

    In float64, rounding is measured. In another precision, the result may be twice as far from float64 as the module.
    The methods raise:

        Finding: where a property does not hold.
        Unusable: where the module itself does not run.
    """

    model: nn.Module
    result: TransformResult
    arguments: Arguments
    properties: Properties = attrs.field(factory=Properties)
    double: bool = True
    """Whether the module is in float64."""
    mixed: bool = False
    """Whether it rounds to another precision."""
    guarded: bool = False
    """Whether the result may refuse calls in other surroundings than those of the example by an InputError."""
    witness: nn.Module | None = None
    """The source of the result, if that is not the module itself. If they differ in ordinary calls, nothing is
    compared."""
    refused: list[str] = attrs.field(factory=list)
    """Labels of the runs that the result refused."""

    def hold_ordinary_calls(self) -> None:
        """Compare two ordinary calls in a row: gradients are on, and no input requires one.

        Raises:
            Unusable: also when the witness differs from the original.
        """
        outside = globals_of(self.model)

        def run(module: nn.Module, arguments: Arguments) -> Runs:
            first = observe_module(module, *arguments, surroundings=torch.enable_grad)
            # the first call may fill a cache
            return {
                "call 1": first,
                "call 2": observe_module(module, *arguments, surroundings=torch.enable_grad, outside=outside),
            }

        if self.witness is not None and self._is_unlike_the_witness(run):
            raise Unusable
        self.hold("in an ordinary call", run)

    def hold_calls(self) -> None:
        """Compare two calls in a row without gradients, one with them, and one after a step of training."""
        self.hold("", self.run, may_refuse=self.guarded)

    def hold_in_other_surroundings(self, source: str) -> None:
        """Compare calls in the surroundings that the source asks about: autocast, inference mode, strides, keywords."""
        if "is_autocast" in source:
            self.hold("under autocast", _under(lambda: torch.autocast("cpu", torch.bfloat16)), may_refuse=self.guarded)
        if "is_inference" in source:
            self.hold("in inference mode", _under(torch.inference_mode), may_refuse=self.guarded)
        args, kwargs = self.arguments
        if "is_contiguous(" in source or ".stride(" in source:
            for name, change in (("channels_last", channels_last), ("transposed", transposed), ("contiguous", _packed)):
                given = tuple(map(change, args)), {key: change(value) for key, value in kwargs.items()}
                self.hold(f"of {name} inputs", _under(torch.enable_grad), arguments=given, may_refuse=self.guarded)
        if len(kwargs) > 1:
            given = args, dict(reversed(kwargs.items()))
            self.hold("keywords in reverse", _under(torch.enable_grad), arguments=given, may_refuse=self.guarded)

    def run(self, model: nn.Module, arguments: Arguments) -> Runs:
        """Observe two calls in a row, one with gradients, and one after a step of training."""
        twin = copy.deepcopy(model)
        runs = {f"call {call}": observe_module(twin, *arguments) for call in (1, 2)}
        if self.properties.gradients:
            twin = copy.deepcopy(model)
            runs["gradients"] = observe_module(twin, *arguments, gradients=True)
            with torch.no_grad():
                for name, parameter in twin.named_parameters():
                    slope = runs["gradients"].slopes.get(name)
                    if slope is not None and bool(slope.isfinite().all()):
                        parameter.sub_(slope, alpha=1e-3)
            runs["after a step"] = observe_module(twin, *arguments)
        return runs

    def hold_in_the_other_mode(self) -> None:
        """Compare a call after `train()` or `eval()`, and one after the switch back; the result may refuse."""
        mode = not self.model.training
        name = "training" if mode else "eval"

        def there(module: nn.Module, arguments: Arguments) -> Runs:
            return _once(module.train() if mode else module.eval(), arguments)

        def back(module: nn.Module, arguments: Arguments) -> Runs:
            module = module.train() if mode else module.eval()
            return _once(module.eval() if mode else module.train(), arguments)

        with suppress(Unusable):  # batch norm needs more than one value per channel in training
            self.hold(f"in {name} mode", there, may_refuse=True)
        with suppress(Unusable):
            self.hold(f"in {name} mode and back", back, may_refuse=True)
        for path in self._switched():
            self._hold_switch_of(path)

    def _switched(self) -> list[str]:
        """Return paths of modules that the result has too: other paths of shared ones, containers, normalizations."""
        paths = {path for path, _ in self.result.model.named_modules(remove_duplicate=False)}
        modules = [(p, m) for p, m in self.model.named_modules(remove_duplicate=False) if p and p in paths]
        first = dict(self.model.named_modules())
        # an exported program does not record that two paths are one module
        shared = [path for path, _ in modules if path not in first and self.witness is None]
        norms = [p for p, m in modules if p in first and isinstance(m, _BatchNorm)]
        groups = [p for p, m in modules if p in first and next(m.children(), None) is not None]
        return [*shared[:2], *groups[:2], *norms[:1]]

    def _hold_switch_of(self, path: str) -> None:
        """Compare a call after `train()` or `eval()` of a submodule; the result may refuse."""

        mode = not self.model.get_submodule(path).training  # an exported program only guesses it

        def below(module: nn.Module, arguments: Arguments) -> Runs:
            module.get_submodule(path).train(mode)
            return _once(module, arguments)

        with suppress(Unusable):
            self.hold(f"after a switch of {path}", below, may_refuse=True)

    def hold_at(self, arguments: Arguments) -> None:
        """Compare a call with other arguments, which the result may refuse by an InputError."""
        shapes = [tuple(x.shape) for x in arguments[0] if isinstance(x, torch.Tensor)]

        def run(module: nn.Module, arguments: Arguments) -> Runs:
            return {"": observe_module(module, *arguments, gradients=self.properties.gradients)}

        self.hold(f"at {shapes}", run, arguments=arguments, may_refuse=True)

    def hold_checkpoint(self) -> None:
        """Check that common keys of one shape hold equal tensors, since a checkpoint may come from either."""
        original = self.model.state_dict()
        for key, value in self.result.model.state_dict().items():
            other = original.get(key)
            if not isinstance(other, torch.Tensor) or other.shape != value.shape:
                continue  # loading a checkpoint reports this
            problem = tensor_difference(other, value, exact=True)
            if problem is not None:
                raise Finding("checkpoint", f"{key} is not what the original has under this key: {problem}")

    def hold_saved(self) -> None:
        """Compare a call of the result after it was saved and loaded."""
        buffer = io.BytesIO()
        torch.save(self.result.model, buffer)
        buffer.seek(0)
        self.hold("saved and loaded", _once, emitted=torch.load(buffer, weights_only=False))

    def hold_with_other_weights(self, seed: int) -> None:
        """Compare a call with other weights, converted by the parameter map."""
        other, emitted = copy.deepcopy(self.model), copy.deepcopy(self.result.model)
        randomize(other, seed)
        kept = dict(self.model.named_buffers())
        for name, buffer in other.named_buffers():
            if name not in other.state_dict():  # not in checkpoints
                buffer.data.copy_(kept[name])
        try:
            converted = self.result.parameter_map.convert(other.state_dict())
            emitted.load_state_dict(converted)
        except (GraphwrightError, RuntimeError) as error:
            raise Finding("parameter map", str(error)) from error
        self._hold_reverted(other.state_dict(), converted)
        self.hold("with other weights", _once, model=other, emitted=emitted)

    def _hold_reverted(self, checkpoint: Mapping[str, Any], converted: Mapping[str, Any]) -> None:
        """Check that a checkpoint comes back from what it was converted to; what is for inference may refuse."""
        names = self.result.parameter_map
        try:
            reverted = names.revert(converted)
        except InputError as error:
            if names.untrained:
                return
            raise Finding("parameter map", f"a checkpoint does not come back: {error}") from error
        for name, tensor in checkpoint.items():
            if isinstance(tensor, torch.Tensor) and not self._is_lost(name):
                back = reverted.get(name)
                problem = "nothing has its name" if back is None else tensor_difference(tensor, back, exact=False)
                if problem is not None:
                    raise Finding(
                        "parameter map", f"{name} does not come back from the converted checkpoint: {problem}"
                    )

    def _is_lost(self, name: str) -> bool:
        """Return whether the emitted module has nothing of a tensor of the original."""
        return all(name not in sources for sources in self.result.parameter_map.values())

    def hold_exported(self) -> None:
        """Export the result with `torch.export`, and compare the exported program with it."""
        try:
            program = torch.export.export(copy.deepcopy(self.result.model), *copy.deepcopy(self.arguments))
        except Exception as error:
            if not self._original_exports():
                return
            raise Finding("export", f"the emitted module: {type(error).__name__}: {error}") from error
        emitted = observe_module(copy.deepcopy(self.result.model), *self.arguments, surroundings=torch.enable_grad)
        exported = observe_module(program.module(), *self.arguments, surroundings=torch.enable_grad)
        if len(emitted.results) != len(exported.results):
            lengths = f"{len(exported.results)} results, where it has {len(emitted.results)}"
            raise Finding("export", f"the emitted module, exported, has {lengths}")
        for i, (x, y) in enumerate(zip(emitted.results, exported.results, strict=True)):
            problem = tensor_difference(x, y, exact=False)
            if problem is not None:
                raise Finding("export", f"result {i} of the emitted module, exported: {problem}")

    def _original_exports(self) -> bool:
        """Return whether `torch.export` accepts the module itself: not batch norm without momentum in training."""
        try:
            torch.export.export(copy.deepcopy(self.model), *copy.deepcopy(self.arguments))
        except Exception:  # noqa: BLE001 - it fails in many ways
            return False
        return True

    def hold(
        self,
        what: str,
        run: Run,
        *,
        arguments: Arguments | None = None,
        model: nn.Module | None = None,
        emitted: nn.Module | None = None,
        may_refuse: bool = False,
    ) -> None:
        """Run the module and the result, and raise a `Finding` if they differ.

        Args:
            what: a label of the run.
            run: runs a copy of a module.
            arguments: instead of the usual ones.
            may_refuse: whether the result may refuse the run by an InputError, which ends the comparison.
            model: instead of the module.
            emitted: instead of the result's module.
        """
        model = self.model if model is None else model
        emitted = self.result.model if emitted is None else emitted
        given = self.arguments if arguments is None else arguments
        try:
            before = run(copy.deepcopy(model), given)
        except _NOT_OF_THE_MODULE as error:
            raise Unusable from error
        except AttributeError as error:
            if isinstance(model, GraphModule):
                raise Unusable from error  # torch.fx writes names as they are, and Python reads them normalized (NFKC)
            raise
        try:
            after = run(copy.deepcopy(emitted), given)
        except Exception as error:
            if may_refuse and isinstance(error, InputError):
                self.refused.append(what)
                return
            raise Finding("it still runs", f"{what}: {type(error).__name__}: {error}".removeprefix(": ")) from error
        for label, seen in before.items():
            if label == "after a step" and (is_computed(self.result.parameter_map) or self._keeps_tables()):
                continue  # derived values do not follow their weights, here or in the original
            budget = self._budget(run, label, model, given)
            for property_, message in module_differences(seen, after[label], self.result.parameter_map, budget):
                if property_ in ("strides", "sharing") and not self.properties.strides:
                    continue
                if property_ == "strides" and not _strides_are_definite(model, given):
                    continue
                place = ", ".join(filter(None, (what, label)))
                raise Finding(property_, f"{place}: {message}")

    def _keeps_tables(self) -> bool:
        """Return whether the original keeps computed values, which may depend on old weights."""
        return any(remark.kind == "left out" for remark in self.result.remarks)

    def _is_unlike_the_witness(self, run: Run) -> bool:
        """Return whether the source of the result already differs from the module."""
        assert self.witness is not None
        try:
            before = run(copy.deepcopy(self.model), self.arguments)
            shown = run(copy.deepcopy(self.witness), self.arguments)
        except _NOT_OF_THE_MODULE:
            return True
        budget = Budget[Seen]()
        return any(
            any(module_differences(seen, shown[label], ParameterMap({}), budget)) for label, seen in before.items()
        )

    def _budget(self, run: Run, label: str, model: nn.Module, arguments: Arguments) -> Budget[Seen]:
        other_dtype = torch.float32 if self.double else torch.float64

        def in_another_precision() -> Seen:
            args, kwargs = cast_tree(arguments, other_dtype)
            return run(copy.deepcopy(model).to(other_dtype), (args, kwargs))[label]

        return Budget(
            Rounding(lambda: run(copy.deepcopy(model), arguments)[label]),
            in_another_precision if self.mixed or not self.double else None,
            torch.float64 if self.double else torch.float32,
            values=self.properties.values,
            bounds=self.result.bounds,
        )


def _packed(x: Any) -> Any:
    return x.contiguous() if isinstance(x, torch.Tensor) else x


def _under(surroundings: Callable[[], AbstractContextManager[Any]]) -> Run:
    return lambda module, arguments: {"": observe_module(module, *arguments, surroundings=surroundings)}


def _once(module: nn.Module, arguments: Arguments) -> Runs:
    return {"": observe_module(module, *arguments, surroundings=torch.enable_grad)}


def _strides_are_definite(model: nn.Module, arguments: Arguments) -> bool:
    """Return whether the strides of the results are not accidental.

    They must not depend on gradients (`nn.MultiheadAttention` has a fast path), nor on strides of size-1 dimensions.
    """

    def strides(mode: AbstractContextManager[Any], *, gradients: bool = False) -> list[Any]:
        with mode:
            seen = observe_module(copy.deepcopy(model), *arguments, gradients=gradients)
        return [None if look is None else look.facts[2] for look in seen.looks]

    return strides(nullcontext(), gradients=True) == strides(nullcontext()) and is_definite(strides)
