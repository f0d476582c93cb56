"""The text form has all that the emitter reads: a program and its parsed text are emitted as equal modules."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import fx, nn

from compiler.codegen import Emitted, emit
from fuzz.programs.check import Finding
from ir.errors import GraphwrightError
from ir.program import Program


def check_emission(program: Program, parsed: Program, module: fx.GraphModule | None = None) -> None:
    """Emit both programs and compare the modules, apart from their weights.

    Args:
        program: the program.
        parsed: its parsed text, with the data of the weights; it gets the opaque callables.
        module: the result of `transform` for the program, to be compared too.

    Raises:
        Finding: when the modules differ.
    """
    parsed.opaques.update(program.opaques)
    try:
        emitted = emit(program)
    except GraphwrightError:
        return
    try:
        other = emit(parsed)
    except GraphwrightError as error:
        raise Finding("text", f"nothing can be emitted from what was printed: {error}") from error
    whole = emitted.module if module is None else module
    facts = (*_of_module(whole), *_of_parts(emitted)), (*_of_module(other.module), *_of_parts(other))
    for (what, mine), (_, theirs) in zip(*facts, strict=True):
        if mine != theirs:
            raise Finding("text", f"what is emitted from what was printed has another {what}: {mine} != {theirs}")


def _of_module(module: fx.GraphModule) -> Iterator[tuple[str, object]]:
    yield "signature", str(inspect.signature(module.forward))
    yield "lock on the mode", getattr(module, "_mode_locked", None)
    yield "code", module.code


def _of_parts(emitted: Emitted) -> Iterator[tuple[str, object]]:
    """Yield everything else about a module except the data of its weights."""
    module = emitted.module
    guard = module.get_submodule("_guard")
    yield "guard", [repr(getattr(guard, name)) for name in ("checks", "ranges", "relations")]
    yield "surroundings", getattr(guard, "surroundings", None)
    yield "modes after a switch", getattr(module, "_modes_after", None)
    yield "tree", [(path, part.training, _shown(part)) for path, part in module.named_modules()]
    yield "parameters", [(name, _described(tensor)) for name, tensor in module.named_parameters(remove_duplicate=False)]
    yield "buffers", [(name, _described(tensor)) for name, tensor in module.named_buffers(remove_duplicate=False)]
    yield "state", list(module.state_dict())
    yield "parameter map", list(emitted.parameter_map.items())


def _shown(module: nn.Module) -> str:
    return f"{type(module).__qualname__}({module.extra_repr()})"


def _described(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad
