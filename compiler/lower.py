"""From a captured model to a program."""

from __future__ import annotations

from compiler.capture import Captured
from compiler.lower_export import ExportLowering
from ir.errors import CaptureError
from ir.program import Program


def lower(captured: Captured) -> Program:
    """Return the program of a captured model: types, locations and weights in place, in-place operators gone.

    Raises:
        CaptureError: when something in the captured graph cannot be expressed; it names the place in the user's code.
    """
    if captured.exported is not None:
        return ExportLowering(
            captured.exported, captured.module, captured.symbol_names, captured.opaques
        ).lower()
    raise CaptureError("nothing was captured")
