"""What the op table says of operators is true of them."""

from __future__ import annotations

import ir.optable  # noqa: F401 - lays the rows
from ir.opdef import _ROWS

NAMES_WITH_RULE = sorted(name for name, row in _ROWS.items() if row.infer is not None)
