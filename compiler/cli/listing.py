"""The list of all patterns and passes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from passes.manager.manager import Pass
from passes.manager.options import OF_ALL, own_options_of, takes_passes
from passes.rewrite.pattern import Pattern


def list_everything(patterns: Sequence[type[Pattern]], passes: Sequence[type[Pass]], console: Console) -> None:
    """Print patterns with their equations, and passes with their options and first lines."""

    def show(title: str, entries: Sequence[tuple[str, str]]) -> None:
        if not entries:
            return
        console.print(title, style="bold")
        for name, text in entries:
            console.print(f"  {name}", style="cyan", markup=False, highlight=False)
            for line in textwrap.wrap(text, max(40, console.width - 6)):
                console.print(f"      {line}", markup=False, highlight=False)
        console.print()

    rules = [pattern() for pattern in patterns]
    show("conversions", [(rule.name, rule.equation) for rule in rules if rule.is_conversion])
    show("fusions", [(rule.name, rule.equation) for rule in rules if rule.is_fusion])
    show("other patterns", [(r.name, r.equation) for r in rules if not (r.is_conversion or r.is_fusion)])
    show(
        f"passes (each also with {', '.join(OF_ALL)}, and with tolerance where it runs others)",
        [(_pass_text(cls), (cls.__doc__ or "").strip().split("\n")[0]) for cls in passes],
    )


def _pass_text(cls: type[Pass]) -> str:
    """Return a pass's name with its options and their defaults: `canonicalize{inference=false}`."""
    options = [f"{field.name.replace('_', '-')}={_default_text(field)}" for field in own_options_of(cls)]
    passes = "(PASSES)" if takes_passes(cls) else ""
    return f"{cls.name}{passes}{'{' + ' '.join(options) + '}' if options else ''}"


def _default_text(field: Any) -> str:
    if field.metadata.get("patterns"):
        return "NAMES"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
