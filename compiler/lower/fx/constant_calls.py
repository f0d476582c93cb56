"""Which functions a lowering may call: those that only compute, and the same each time."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

_BUILTINS = (
    "abs all any bool complex dict divmod float frozenset getattr hasattr int isinstance issubclass len list max min "
    "pow range round set slice sorted str sum tuple"
)
_OF_PYTHON: frozenset[Any] = frozenset(
    {
        *(getattr(builtins, name) for name in _BUILTINS.split()),
        *(function for name, function in vars(math).items() if callable(function) and not name.startswith("_")),
        *(getattr(operator, name) for name in operator.__all__),
    }
) - {operator.setitem, operator.delitem, operator.call}
_OF_TORCH: frozenset[Any] = frozenset(
    {
        torch.Size,
        torch.Tensor,
        torch._check,
        torch._check_is_size,
        torch.broadcast_shapes,
        torch.can_cast,
        torch.device,
        torch.finfo,
        torch.iinfo,
        torch.promote_types,
        torch.sym_float,
        torch.sym_int,
        torch.sym_ite,
        torch.sym_max,
        torch.sym_min,
        torch.sym_not,
        torch.sym_sqrt,
        torch.sym_sum,
    }
)


def only_computes(function: Callable[..., Any]) -> bool:
    """Return whether a function of Python or torch has no effect, and depends on its arguments alone."""
    try:
        return function in _OF_PYTHON or function in _OF_TORCH or type(function) is type(torch.FloatTensor)
    except TypeError:  # it cannot be hashed
        return False


def makes_tensors(function: Callable[..., Any]) -> bool:
    """Return whether a function of torch is an operator of ATen that returns tensors."""
    packet = _packet_of(function)
    return packet is not None and any(
        schema.returns and all("Tensor" in str(result.type) for result in schema.returns)
        for schema in packet._schemas.values()
    )


def draws_numbers(function: Callable[..., Any]) -> bool:
    """Return whether a function of torch is an operator of ATen that draws random numbers."""
    packet = _packet_of(function)
    return packet is not None and any(
        torch.Tag.nondeterministic_seeded in getattr(packet, overload).tags for overload in packet.overloads()
    )


def _packet_of(function: Callable[..., Any]) -> torch._ops.OpOverloadPacket | None:
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    if isinstance(function, torch._ops.OpOverloadPacket):
        return function
    # the names of Python functions say nothing: torch.manual_seed is an operator of TorchScript
    name = function.__name__ if type(function) is type(torch.zeros) else ""
    found = getattr(torch.ops.aten, name, None)
    return found if isinstance(found, torch._ops.OpOverloadPacket) else None
