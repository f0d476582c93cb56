"""Programs that are given instead of models."""

from __future__ import annotations

from collections.abc import Sequence

from ir.errors import InputError
from ir.program import Program
from ir.verify import verify


def check_program(program: Program) -> None:
    """Demand a program that can be run: well-formed, with data of all weights that it reads, and its callables.

    Raises:
        VerificationError: when it breaks an invariant of the IR.
        InputError: when a weight or an opaque callable is missing.
    """
    verify(program)
    missing = [name for name, weight in program.weights.items() if weight.data is None and not weight.value.is_unused]
    if missing:
        raise InputError(
            f"{_listed(missing)} without data: a program that was parsed from text has none",
            location=program.location,
            remedy="give it: `load_weights(program, state_dict)`, or read text and weights by `load_program(path)`",
        )
    absent = [name for name, callee in program.opaques.items() if callee is None]
    if absent:
        raise InputError(
            f"the program calls {names_shown(absent)}, and there is no such module or function",
            location=program.location,
            remedy=f"give it: `load_program(path, opaques={{{absent[0]!r}: module}})`",
        )


def _listed(names: Sequence[str]) -> str:
    return f"weight {names_shown(names)} is" if len(names) == 1 else f"weights {names_shown(names)} are"


def names_shown(names: Sequence[str]) -> str:
    """Return names for an error: the first few, and how many more there are."""
    return ", ".join(f"`{name}`" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
