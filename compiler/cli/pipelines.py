"""The options that say what is done to a model: patterns or a pipeline, and the target."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from compiler.cli.arguments import UsageError, add_load
from compiler.pipeline import parse_pipeline, pipeline_of
from compiler.targets import STANDARD_PATTERNS, TARGETS
from passes.manager.manager import Pass, PassManager
from passes.rewrite.pattern import Pattern


def add_pipeline(group: argparse._ArgumentGroup) -> None:
    """Add `--patterns`, `--pipeline`, `--target` and `--load`."""
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--patterns",
        metavar="NAMES",
        help="patterns to apply: class names, or the lists all (default), conversions, fusions, none; with commas",
    )
    what.add_argument("--pipeline", metavar="TEXT", help="passes to run instead, in the text form of a PassManager")
    group.add_argument(
        "--target",
        choices=sorted(TARGETS),
        default="tensorrt",
        help="the runtime, whose lists are meant (default: %(default)s)",
    )
    add_load(group, ", beside those of MODEL.py")


def pipeline_of_options(
    options: argparse.Namespace, patterns: Sequence[type[Pattern]], passes: Sequence[type[Pass]]
) -> PassManager:
    """Return the pipeline that the options mean; `patterns` and `passes` are those of the user's files.

    Raises:
        UsageError: when there is no such pattern.
        ParseError: when the text of the pipeline is ill-formed.
    """
    if options.pipeline is not None:
        return parse_pipeline(options.pipeline, passes=passes, patterns=patterns)
    names = "all" if options.patterns is None else options.patterns
    return pipeline_of(select_patterns(names, TARGETS[options.target].lists, patterns))


def select_patterns(
    names: str, lists: Mapping[str, Sequence[type[Pattern] | Pattern]], extra: Sequence[type[Pattern]] = ()
) -> tuple[type[Pattern] | Pattern, ...]:
    """Return the patterns in a comma-separated text, each once, in order.

    Args:
        names: class names, and keys of `lists`.
        lists: named lists of patterns.
        extra: pattern classes in addition to the standard ones.

    Raises:
        UsageError: when there is no such pattern.
    """
    known = {pattern.__name__: pattern for pattern in (*STANDARD_PATTERNS, *extra)}
    chosen: dict[type[Pattern] | Pattern, None] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        if name not in lists and name not in known:
            raise UsageError(f"there is no pattern {name!r}; known: {', '.join([*lists, *known])}")
        for pattern in lists.get(name) or (() if name in lists else (known[name],)):
            chosen.setdefault(pattern)
    return tuple(chosen)
