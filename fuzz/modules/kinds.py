"""Kinds of Python around a graph, and what is wanted of modules with them."""

from __future__ import annotations

import attrs


@attrs.frozen
class Family:
    """What is wanted of modules of a kind: equal or refused, but never silently different."""

    want: str
    """"equal", where each refusal is counted; "refused"; or "either"."""
    guarded: bool = False
    """Whether the emitted module may refuse calls in other surroundings than those of the example."""


FAMILIES: dict[str, Family] = {
    "keywords": Family("equal"),
    "variadic keywords": Family("either", guarded=True),
    "re-assigned buffer": Family("equal"),
    "shared module": Family("equal"),
    "own layer": Family("equal"),
    "overridden mode": Family("equal"),
    "forward without call": Family("equal"),
    "asked mode": Family("equal"),
    "batch norm elsewhere": Family("equal"),
    "foreign randomness": Family("refused"),
    "hidden state": Family("refused"),
    "question that matters": Family("either", guarded=True),
    "idle question": Family("equal"),
    "grad region": Family("either", guarded=True),
    "own derivative": Family("equal"),
    "own backward": Family("refused"),
    "cache": Family("either"),
    "hook with effects": Family("refused"),
    "pure hook": Family("equal"),
    "transposed weight": Family("equal"),
    "in place through a view": Family("equal"),
    "names": Family("refused"),
    "reserved names": Family("equal"),
    "size from data": Family("equal"),
    "autocast region": Family("equal", guarded=True),
}
"""Family -> what is wanted; a kind is written `family: variant`."""


def family_of(kind: str) -> Family:
    """Return what is wanted of a kind; a module without one must be equal."""
    return FAMILIES[kind.partition(":")[0]] if kind else Family("equal")
