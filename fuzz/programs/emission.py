"""The text form has all that the emitter reads: a program and its parsed text are emitted as equal modules."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from compiler.codegen import Emitted, emit
from compiler.equality.observation import same_bits, seeded
from fuzz.programs.observation import observe, quiet
from fuzz.programs.properties import Finding
from ir.core import Graph
from ir.errors import GraphwrightError, InputError
from ir.program import OutputLeaf, Program


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


def check_emitted_run(program: Program, inputs: Sequence[Any]) -> None:
    """Run the module that a program is emitted as, and compare its results with those of the program, bit by bit.

    A program that trains is left out: no drawn program has modules, whose modes the emitted ones would have.

    Raises:
        Finding: when a result differs, or the module does not run where the program does.
    """
    if _trains(program.graph):
        return
    try:
        module = copy.deepcopy(emit(program).module)
        expected = observe(program, inputs).results
    except GraphwrightError:
        return
    try:
        with seeded(0), torch.no_grad(), quiet():
            returned = module(*[x.detach().clone() if isinstance(x, torch.Tensor) else x for x in inputs])
    except InputError:
        return  # the guard asks for more than a program does
    except Exception as error:
        raise Finding("emission", f"the module raises {type(error).__name__}: {error}\n{module.code}") from error
    leaves = program.convention.outputs or tuple(map(OutputLeaf, range(len(expected))))
    for number, (found, leaf) in enumerate(zip(pytree.tree_leaves(returned), leaves, strict=True)):
        own = leaf.constant if leaf.value is None else expected[leaf.value]
        if isinstance(own, torch.Tensor) and not (isinstance(found, torch.Tensor) and same_bits(found, own)):
            raise Finding("emission", f"result {number} of the module is not that of the program\n{module.code}")


def _trains(graph: Graph) -> bool:
    return any(op.in_training or (op.body is not None and _trains(op.body)) for op in graph.operations())
