"""`check`: a file in the engines, compared with the program that it was written from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import sympy
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.onnx.files import onnx_model
from compiler.onnx.inference import current_weights
from compiler.onnx.traced import example_sizes
from compiler.onnx.writer import OnnxModel
from compiler.runtime.boundaries import Difference, Reference, cut, differences, reference_of
from compiler.runtime.engines import Engine, EngineError, checked_threads, engine_class
from compiler.runtime.kernels import Kernel, kernels_of, promised_nodes
from compiler.runtime.limits import NO_VNNI, check_limits, has_vnni
from compiler.runtime.module import file_of
from ir.errors import GraphwrightError, InputError
from ir.program import Program
from ir.types import TensorType

_ROUNDS = 5
_FLIPPED = 100
"""One integer of a part in so many may be a step apart: sums near a tie, biases of 32 bits. One never tells much."""
_NEAR = 60.0
"""Decibels: on the same integers, float arithmetic gives nearer outputs than that, a wrong kernel none so near."""


@attrs.frozen
class EngineCheck:
    """What the check found in one engine.

    Attributes:
        engine: its name.
        version: its version.
        differences: for each part between integers, how far its integers are from the reference's.
        kernels: what the engine runs for each node that reads integers only.
        sqnr: in decibels, for each output: the signal over the difference from the emitted module (with fake
            quantization, where it is quantized); infinite where they are equal.
        sqnr_float: likewise, from the float result; None where the result is the float one.
        sqnr_parts: likewise, from the emitted module, for each floating output, where the part before it is given the
            reference's integers; empty without integers.
        seconds: the least time of a call.
        seconds_float: likewise, of the float result in the same run and engine.
    """

    engine: str
    version: str
    differences: tuple[Difference, ...]
    kernels: tuple[Kernel, ...]
    sqnr: Mapping[str, float]
    sqnr_float: Mapping[str, float] | None
    sqnr_parts: Mapping[str, float]
    seconds: float
    seconds_float: float | None
    note: str = ""
    """What of this host may explain differences."""

    @property
    def lsb(self) -> int:
        """The largest difference of a part, in steps."""
        return max((each.lsb for each in self.differences), default=0)

    @property
    def equal(self) -> float:
        """The share of integers that are equal."""
        elements = sum(each.elements for each in self.differences)
        return 1 - sum(each.different for each in self.differences) / elements if elements else 1.0

    @property
    def apart(self) -> tuple[str, ...]:
        """The modules whose integers are more than a step apart, or not equal too often, and the outputs that are far.

        Without such, the engine computes what the file says.
        """
        modules = [
            each.module for each in self.differences if each.lsb > 1 or each.different > 1 + each.elements // _FLIPPED
        ]
        return tuple(dict.fromkeys([*modules, *[name for name, value in self.sqnr_parts.items() if value < _NEAR]]))

    @property
    def in_float(self) -> tuple[Kernel, ...]:
        """The nodes that read integers only, and that the engine computes in float all the same."""
        return tuple(kernel for kernel in self.kernels if not kernel.is_integer)

    @property
    def speedup(self) -> float | None:
        """How often the time of a call fits into that of the float result."""
        return None if self.seconds_float is None else self.seconds_float / self.seconds

    def __str__(self) -> str:
        return "\n".join(_lines(self))


@attrs.frozen
class CheckReport:
    """What the check found, by engine; `print` shows it, worst parts first."""

    engines: Mapping[str, EngineCheck]

    def __getitem__(self, engine: str) -> EngineCheck:
        return self.engines[engine]

    @property
    def is_exact(self) -> bool:
        """Whether every engine computes what the file says: no part of it is `apart`."""
        return not any(each.apart for each in self.engines.values())

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {name: _as_json(each) for name, each in self.engines.items()}

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.engines.values()))


def _as_json(check: EngineCheck) -> dict[str, Any]:
    held: dict[str, Any] = attrs.asdict(check)
    held["speedup"] = check.speedup
    held["apart"] = list(check.apart)
    for key in ("sqnr", "sqnr_float", "sqnr_parts"):
        if held[key] is not None:
            held[key] = {name: value if math.isfinite(value) else None for name, value in held[key].items()}
    return held


_WORST = 5


def _lines(check: EngineCheck) -> list[str]:
    lines = [f"{check.engine} {check.version}"]
    if check.differences:
        elements = sum(each.elements for each in check.differences)
        lines.append(
            f"  {len(check.differences)} parts between integers: {check.equal:.4%} of {elements} integers equal, "
            f"at most {check.lsb} LSB apart"
        )
        worst = sorted(check.differences, key=lambda each: (-each.lsb, -each.different / max(each.elements, 1)))
        lines += [
            f"    {each.module}: {each.different} of {each.elements}, up to {each.lsb} LSB"
            for each in worst[:_WORST]
            if each.different
        ]
    if check.kernels:
        integer = len(check.kernels) - len(check.in_float)
        lines.append(f"  integer kernels: {integer} of {len(check.kernels)} promised")
        lines += [f"    {each.node}: {each.kernel or 'not found'}" for each in check.in_float]
    for name, value in check.sqnr.items():
        text = "equal to the module" if value == math.inf else f"{value:.1f} dB to the module"
        if check.sqnr_float is not None:
            other = check.sqnr_float[name]
            text += ", equal to float" if other == math.inf else f", {other:.1f} dB to float"
        if check.sqnr_parts.get(name, _NEAR) < _NEAR:
            text += f"; {check.sqnr_parts[name]:.1f} dB to the module from the same integers"
        lines.append(f"  {name}: {text}")
    line = f"  {check.seconds * 1e3:.2f} ms a call"
    if check.seconds_float is not None:
        line += f", float {check.seconds_float * 1e3:.2f} ms: {check.speedup:.2f} times as fast"
    apart = [f"  apart from the file's meaning: {', '.join(check.apart)}"] if check.apart else []
    return [*lines, line, *apart, *([f"  {check.note}"] if check.note else [])]


def check_in_engines(
    program: Program,
    module: nn.Module,
    engines: Sequence[str],
    *,
    source: tuple[Program, nn.Module] | None = None,
    example: tuple[torch.Tensor, ...] | None = None,
    inputs: tuple[Any, ...] | torch.Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> CheckReport:
    """Run the file of a module in engines, and compare.

    Args:
        program: the program.
        module: the module it was emitted as.
        engines: names of engines.
        source: program and module of the float result, where this one is quantized.
        example: the tensors of a call, in the order of the graph's inputs, where no call is given; by default random.
        inputs: the positional arguments of a call, or its only one.
        kwargs: its keyword arguments.
        threads: how many threads a call uses; by default as many as PyTorch does.

    Raises:
        InputError: the inputs do not fit, there is no such engine, or a file cannot hold the model.
        MissingPackageError: the extra of an engine is not installed.
        EngineError: an engine does not run the file.
    """
    classes = {name: engine_class(name) for name in engines}
    if not classes:
        raise InputError("no engine is named", remedy='use `check("onnxruntime", "openvino")`')
    if inputs is None and not kwargs:
        given = random_inputs(program) if example is None else example
    else:
        given = _flat(program, () if inputs is None else inputs, kwargs or {})
    threads = checked_threads(threads)
    written = onnx_model(program, module)
    for name, cls in classes.items():
        check_limits(name, cls.limits, written.program)
    reference = reference_of(program, _on_cpu(current_weights(program, module)), given)
    plain = None if source is None else onnx_model(*source)
    truth = None
    if source is not None:
        truth = reference_of(source[0], _on_cpu(current_weights(*source)), given).outputs
    found = {
        name: _checked(cls, written, reference, plain=plain, truth=truth, threads=threads)
        for name, cls in classes.items()
    }
    return CheckReport(found)


def _checked(cls: type[Engine], written: OnnxModel, reference: Reference, **options: Any) -> EngineCheck:
    try:
        return _check(cls, written, reference, **options)
    except GraphwrightError:
        raise
    except Exception as error:
        raise EngineError.of(cls.name, f"does not run the file of {written.program.name}", error) from error


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def random_inputs(program: Program) -> tuple[torch.Tensor, ...]:
    """Return random numbers for the inputs of a program: normal ones, zeros for integers, true for booleans."""
    generator = torch.Generator().manual_seed(0)
    sizes = {symbol: sympy.Integer(size) for symbol, size in example_sizes(program).items()}

    def made(type_: Any) -> torch.Tensor:
        shape = [dim if isinstance(dim, int) else int(dim.xreplace(sizes)) for dim in type_.shape]
        if type_.dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(type_.dtype)
        return (
            torch.ones(shape, dtype=torch.bool) if type_.dtype == torch.bool else torch.zeros(shape, dtype=type_.dtype)
        )

    return tuple(made(value.tensor_type) for value in program.graph.inputs)


def _flat(
    program: Program, args: tuple[Any, ...] | torch.Tensor, kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a call, in the order of the graph's inputs."""
    convention = program.convention
    given = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    leaves, spec = pytree.tree_flatten((given, dict(kwargs)))
    places = convention.inputs
    if len(leaves) != len(places) or (convention.in_spec is not None and spec != convention.in_spec):
        raise InputError(
            "the inputs are not passed as in the call that the model was transformed with",
            remedy="give `inputs=` and `kwargs=` the structure of the example inputs",
        )
    found: dict[int, torch.Tensor] = {}
    for place, leaf in zip(places, leaves, strict=True):
        if place.value is None:
            continue
        type_ = program.graph.inputs[place.value].type
        if not isinstance(leaf, torch.Tensor) or (isinstance(type_, TensorType) and leaf.dtype != type_.dtype):
            what = f"of {leaf.dtype}" if isinstance(leaf, torch.Tensor) else f"a {type(leaf).__name__}"
            raise InputError(
                f"the input `{place.name}` is {what}, and the model was transformed with {type_}",
                remedy=f"pass a tensor of that dtype: `torch.as_tensor({place.name}, dtype={type_.dtype})`"
                if isinstance(type_, TensorType)
                else "pass a tensor",
            )
        found[place.value] = leaf.detach().cpu()
    return tuple([found[number] for number in range(len(program.graph.inputs))])


def _check(
    cls: type[Engine],
    written: OnnxModel,
    reference: Reference,
    *,
    plain: OnnxModel | None,
    truth: tuple[torch.Tensor, ...] | None,
    threads: int,
) -> EngineCheck:
    file = file_of(written)
    engine = cls(file, threads, "f32")
    outputs = _run(engine, reference.inputs, len(reference.outputs))
    names = written.interface.outputs
    parts: list[Difference] = []
    parts_near: dict[str, float] = {}
    if reference.integers:
        part_file, integers = cut(written, reference)
        given = (*reference.inputs, *reference.integers)
        found = _run(cls(part_file, threads, "f32"), given, len(integers) + len(names))
        parts = differences(integers, reference, found[: len(integers)])
        near = zip(names, found[len(integers) :], reference.outputs, strict=True)
        parts_near = {name: sqnr(a, b) for name, a, b in near if b.is_floating_point()}
    calls = [lambda: _run(engine, reference.inputs, len(names))]
    if plain is not None:
        float_engine = cls(file_of(plain), threads, "f32")
        calls.append(lambda: _run(float_engine, reference.inputs, len(names)))
    seconds = _times(calls)
    check = EngineCheck(
        cls.name,
        engine.version,
        tuple(parts),
        tuple(kernels_of(cls.name, file, promised_nodes(written.model))),
        _decibels(names, outputs, reference.outputs),
        None if truth is None else _decibels(names, outputs, truth),
        parts_near,
        seconds[0],
        seconds[1] if plain is not None else None,
    )
    return attrs.evolve(check, note=NO_VNNI) if check.apart and not has_vnni() else check


def _decibels(
    names: Sequence[str], found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
) -> dict[str, float]:
    return {name: sqnr(a, b) for name, a, b in zip(names, found, expected, strict=True)}


def _run(engine: Engine, inputs: Sequence[torch.Tensor], outputs: int) -> list[torch.Tensor]:
    return engine.run(inputs, lambda: [None] * outputs)


def _times(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the least time of each call, in rounds of all of them."""
    least = [math.inf] * len(calls)
    for _ in range(_ROUNDS):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[number] = min(least[number], time.perf_counter() - start)
    return least


def sqnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the power of a signal over that of its error, in decibels; infinite where they are equal.

    Infinities and NaN in the same places are equal, in others infinitely far.
    """
    a, b = found.double(), expected.double()
    differ = (a != b) & ~(a.isnan() & b.isnan())
    if not bool(differ.any()):
        return math.inf
    error = float(((a - b)[differ] ** 2).sum())
    power = float((b[b.isfinite()] ** 2).sum())
    return 10 * math.log10(power / error) if power and error and math.isfinite(error) else -math.inf
