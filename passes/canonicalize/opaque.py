"""Opaque modules that return their argument (stochastic depth in eval mode) are removed where nothing will train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from ir.core import Operation, Value
from ir.errors import InputError
from ir.ops.nn_ops import OPAQUE, decode_call, opaque_results
from ir.program import Program
from passes.manager.manager import Pass, PassContext
from passes.rewrite.rewriter import Rewriter


@attrs.frozen
class DropOpaqueIdentities(Pass):
    """Removes opaque calls of modules in eval mode that return an argument itself.

    Only for a program that will never train: in training the module may do something else.
    """

    name: ClassVar[str] = "drop-opaque-identities"

    @override
    def run(self, program: Program, context: PassContext) -> None:
        """Run once over the program."""
        rewriter = Rewriter(program)
        for op in list(program.graph.operations()):
            if op.opdef is not OPAQUE or not self.scope.holds(op):
                continue
            replacement = _returned_operand(op, program.opaques.get(op.attributes["callee"]))
            if replacement is not None:
                rewriter.replace_value(op.result, replacement)
                rewriter.erase(op)


def _returned_operand(op: Operation, callee: Any) -> Value | None:
    """Return the operand that the call provably returns, for all shapes and values.

    The proof is a call on tensors without data that asks nothing of them: no function of PyTorch, not even for a size.
    """
    if not isinstance(callee, nn.Module) or len(op.results) != 1 or not _is_plain(callee):
        return None
    operands = [torch.empty(0, device="meta") for _ in op.operand_values]
    module = copy.copy(callee)
    before = dict(vars(module))
    try:
        args, kwargs = decode_call(op.attributes, operands, _unresolved)
        with _Untouched():
            results = opaque_results(module(*args, **kwargs), op.attributes["returns"])
    except Exception:  # noqa: BLE001 - it touched a tensor, or the user's code raises: then nothing is proved
        return None
    after = vars(module)
    if after.keys() != before.keys() or any(after[key] is not value for key, value in before.items()):
        return None
    found = [value for value, tensor in zip(op.operand_values, operands, strict=True) if results[0] is tensor]
    return found[0] if len(results) == 1 and found and found[0].type == op.result.type else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is in eval mode and has no children, state or hooks, so that a call can be tried."""
    hooks = (table for name, table in vars(module).items() if name.endswith("_hooks"))
    return not (
        module.training
        or any(True for _ in module.children())
        or any(True for _ in module.parameters())
        or any(True for _ in module.buffers())
        or any(hooks)
    )


def _unresolved(attribute: Any) -> Any:
    if attribute is None or isinstance(attribute, int | float | str):
        return attribute
    raise InputError(f"the argument {attribute} depends on sizes")


class _Touched(Exception):  # noqa: N818 - control flow inside this module, no error
    """The code asked something of a tensor."""


class _Untouched(TorchFunctionMode):
    """Every function of PyTorch raises."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise _Touched
