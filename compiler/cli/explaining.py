"""`--explain`: what became of a place in the model, and how far a rule got there."""

from __future__ import annotations

import argparse

from rich.console import Console

from compiler.cli.arguments import UsageError
from compiler.driver import TransformResult


def add_explain(group: argparse._ArgumentGroup) -> None:
    """Add the options `--explain` and `--rule`."""
    group.add_argument(
        "--explain",
        metavar="PLACE",
        nargs="?",
        const="",
        help="print what became of a module (path or glob), an operator, a value of the IR or a line (net.py:12), and "
        "why; without PLACE of all of the model",
    )
    group.add_argument("--rule", metavar="RULE", help="with --explain: how far this rule got there")


def check_explain(options: argparse.Namespace) -> None:
    """Demand that `--rule` comes with `--explain`, which is not for a machine to read.

    Raises:
        UsageError: otherwise.
    """
    if options.rule is not None and options.explain is None:
        raise UsageError("--rule needs --explain: write `--explain PLACE --rule RULE`")
    if options.explain is not None and options.json == "-":
        raise UsageError("--explain and --json both write to standard output: give --json a file")


def show_explanation(options: argparse.Namespace, result: TransformResult, console: Console) -> None:
    """Print what `--explain` asks for."""
    if options.explain is not None:
        explanation = result.explain(options.explain or None, rule=options.rule)
        console.print(str(explanation), markup=False, highlight=False, soft_wrap=True)
