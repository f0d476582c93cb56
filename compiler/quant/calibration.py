"""Calibration data: what the user gives becomes inputs of the program's graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader
from typing_extensions import override

from ir.attributes import attributes_equal
from ir.errors import GraphwrightError, InputError
from ir.evaluate import bind_symbols
from ir.parameters import NO_DEFAULT, ParameterKind
from ir.program import InputLeaf, Program
from ir.types import TensorType

FORMS = (
    "pass an iterable of inputs (a tensor, a tuple of the arguments, or a dict of them by name), or a function of the "
    "model"
)

Batch = tuple[Any, ...]
"""One call: a tensor or number for each input of the graph."""


class CalibrationError(GraphwrightError):
    """The calibration data does not fit the model, or there is none."""


@attrs.define(eq=False)
class CallReader:
    """Turns arguments of a call into inputs of the graph of a program, and its outputs into the result of the call."""

    program: Program
    _signature: inspect.Signature | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        parameters = [
            inspect.Parameter(
                spec.name,
                getattr(inspect.Parameter, spec.kind.name),
                default=inspect.Parameter.empty if spec.default is NO_DEFAULT else spec.default,
            )
            for spec in self.program.convention.parameters
        ]
        self._signature = inspect.Signature(parameters) if parameters else None

    @property
    def leaves(self) -> tuple[InputLeaf, ...]:
        """The leaves of the captured call."""
        inputs = self.program.graph.inputs
        return self.program.convention.inputs or tuple(InputLeaf(v.name, i) for i, v in enumerate(inputs))

    @property
    def num_arguments(self) -> int:
        """The number of arguments of the captured call."""
        spec = self.program.convention.in_spec
        return len(self.leaves) if spec is None else sum(len(part.children()) for part in spec.children())

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str) -> Batch:
        """Return the inputs of the graph; `what` names the call in errors.

        Raises:
            CalibrationError: when the arguments are not those of the captured call, in number, structure, shape, dtype
                or constants, or hold NaN.
        """
        values = self._flat(args, kwargs, what)
        inputs = self.program.graph.inputs
        batch: list[Any] = [None] * len(inputs)
        for leaf, value in zip(self.leaves, values, strict=True):
            if leaf.value is not None:
                self._check(leaf, inputs[leaf.value].type, value, what)
                batch[leaf.value] = value
            elif not attributes_equal(value, leaf.constant):
                raise CalibrationError(
                    f"{what}: argument `{leaf.name}` is {value!r}; the model was captured with {leaf.constant!r}",
                    remedy="transform the model with the arguments that it is to be used with",
                )
        try:
            bind_symbols(self.program, batch)
        except InputError as error:
            raise CalibrationError(
                f"{what}: {error.message}",
                remedy="give inputs of the size that the model was captured with, or, if the model allows others, "
                "capture it with a dynamic size: `dynamic_shapes=` of `transform`, or `--dynamic-batch`",
            ) from error
        return tuple(batch)

    def _flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str) -> list[Any]:
        spec = self.program.convention.in_spec
        if spec is None:
            if kwargs or len(args) != len(self.leaves):
                raise self._misfit(what, f"it has {len(args) + len(kwargs)} arguments")
            return list(args)
        args_spec, kwargs_spec = spec.children()
        given = self._as_captured(args, kwargs, len(args_spec.children()), kwargs_spec.context, what)
        try:
            return spec.flatten_up_to(given)
        except ValueError as error:
            raise self._misfit(what, f"its structure is another one ({error})") from error

    def _as_captured(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_args: int, names: Sequence[str], what: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments by position and by name as the captured call has them."""
        if self._signature is None:
            return args, {name: kwargs[name] for name in names if name in kwargs} if set(names) == {*kwargs} else {
                **kwargs
            }
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise self._misfit(what, str(error)) from error
        bound.apply_defaults()
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            if kind.name == ParameterKind.VAR_POSITIONAL.name:
                positional += value
            elif kind.name == ParameterKind.VAR_KEYWORD.name:
                named.update(value)
            elif len(positional) < num_args and kind.name != ParameterKind.KEYWORD_ONLY.name:
                positional.append(value)
            elif name in names:
                named[name] = value
            elif name in kwargs or len(args) > len(positional):
                raise self._misfit(what, f"it passes `{name}`")
        if len(positional) != num_args or {*named} != {*names}:
            raise self._misfit(what, f"it passes {len(args)} by position, and {', '.join(kwargs) or 'none'} by name")
        return tuple(positional), {name: named[name] for name in names}

    def _misfit(self, what: str, problem: str) -> CalibrationError:
        names = ", ".join(leaf.name for leaf in self.leaves)
        return CalibrationError(
            f"{what} does not fit the captured call, which takes {names or 'nothing'}: {problem}",
            remedy="give each element as the tensor itself, a tuple of the arguments, or a dict of them by name; of "
            "labels beside the inputs, pass the inputs alone: `(x for x, label in data)`",
        )

    def _check(self, leaf: InputLeaf, type_: Any, value: Any, what: str) -> None:
        if not isinstance(type_, TensorType):
            return
        name = f"{what}: `{leaf.name}`"
        if not isinstance(value, torch.Tensor):
            raise CalibrationError(
                f"{name} is a {type(value).__qualname__}, not a tensor", remedy="convert it: torch.as_tensor(value)"
            )
        if type_.dtype is not None and value.dtype != type_.dtype:
            raise CalibrationError(
                f"{name} has dtype {value.dtype}; the model was captured with {type_.dtype}",
                remedy="convert the data as the model's own preprocessing does: `x.float() / 255`, or `x.to(dtype)`",
            )
        if value.is_meta or value.layout is not torch.strided:
            what = "on the meta device" if value.is_meta else f"of layout {value.layout}"
            raise CalibrationError(f"{name} is {what}", remedy="give dense tensors with data: `x.to_dense()`")
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise CalibrationError(f"{name} holds NaN", remedy="leave such inputs out of the calibration data")

    def result(self, outputs: Sequence[Any]) -> Any:
        """Return the outputs of the graph in the structure of the model's result."""
        convention = self.program.convention
        leaves = [leaf.constant if leaf.value is None else outputs[leaf.value] for leaf in convention.outputs]
        if not convention.outputs:
            leaves = list(outputs)
        return leaves[0] if convention.out_spec is None else pytree.tree_unflatten(leaves, convention.out_spec)


class CalledModel(nn.Module):
    """The model that a calibration function calls: it computes what the model does, and is observed meanwhile."""

    def __init__(self, reader: CallReader, run: Callable[[Batch], Sequence[Any]]) -> None:
        super().__init__()
        self._reader = reader
        self._run = run
        self.calls = 0
        self.eval()

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        self.calls += 1
        batch = self._reader.read(args, kwargs, f"call {self.calls} of the calibration")
        return self._reader.result(self._run(batch))


def calibrate(reader: CallReader, data: Any, run: Callable[[Batch], Sequence[Any]]) -> int:
    """Run every call of the calibration data; return how many.

    Args:
        reader: reads the calls.
        data: an iterable of inputs, or a function that is given a model to call. An element is a tensor (the only
            argument), a tuple or list of the arguments by position, or a dict of them by name. What a `DataLoader`
            gives beyond the arguments of the captured call (labels) is left out.
        run: runs the graph on its inputs, and returns its outputs.

    Raises:
        CalibrationError: when the data has another form, is empty, or does not fit the model.
    """
    if isinstance(data, (nn.Module, str, bytes, torch.Tensor, Mapping)):
        raise CalibrationError(f"calibration data is a {type(data).__qualname__}", remedy=FORMS)
    if isinstance(data, Iterable):
        calls = 0
        for calls, element in enumerate(data, 1):
            args, kwargs = _arguments(reader, element, calls, drops_rest=isinstance(data, DataLoader))
            run(reader.read(args, kwargs, f"element {calls} of the calibration data"))
        if not calls:
            raise CalibrationError(
                "the calibration data is empty",
                remedy="give at least one input; an iterator that was read before has none left",
            )
        return calls
    if not callable(data) or isinstance(data, type):
        raise CalibrationError(f"calibration data is a {type(data).__qualname__}", remedy=FORMS)
    model = CalledModel(reader, run)
    returned = data(model)
    if isinstance(returned, Iterator):
        raise CalibrationError(
            "the calibration function returned an iterator instead of calling the model",
            remedy="call the model in the function: `def calibrate(model): model(x)`; or pass what it returns",
        )
    if not model.calls:
        raise CalibrationError("the calibration function did not call the model", remedy="call it: `model(x)`")
    return model.calls


def _arguments(
    reader: CallReader, element: Any, number: int, *, drops_rest: bool
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(element, Mapping) and all(isinstance(key, str) for key in element):
        return (), element
    if isinstance(element, (tuple, list)):
        args = tuple(element)
        return (args[: reader.num_arguments] if drops_rest else args), {}
    if isinstance(element, torch.Tensor):
        return (element,), {}
    raise CalibrationError(
        f"element {number} of the calibration data is a {type(element).__qualname__}",
        remedy="give each element as a tensor, a tuple of the arguments, or a dict of them by name",
    )
