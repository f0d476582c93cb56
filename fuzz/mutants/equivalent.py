"""Mutants that were judged equivalent: they survived, and change no meaning."""

from __future__ import annotations

_TARGETS: dict[str, dict[str, str]] = {}

EQUIVALENT: dict[str, str] = {
    f"{t}: {change}": why for t, changes in _TARGETS.items() for change, why in changes.items()
}
"""Name -> why it changes no meaning."""
