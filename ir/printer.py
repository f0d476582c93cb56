"""The text form of a program."""
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ir.program import Program
def print_program(program: Program) -> str:
    return repr(program)
