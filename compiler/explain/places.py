"""What `explain` is asked about: a module, a line of the user's code, an operator, a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from compiler.explain.replay import Record
from ir.core import Operation, Value
from ir.errors import InputError
from ir.spelling import did_you_mean
from ir.text.printer import named_values
from passes.rewrite.scope import names_place, with_parents

_HINT = (
    'give a module path or a glob ("layer2.0.conv1", "layer4.*"), an operator ("aten.gelu"), a value of the printed '
    'program ("%relu_2"), or a line ("net.py:12")'
)


def text_of(at: Any, program: Any) -> str:
    """Return the text by which a place was given; for a value or an operation of the result, the name of the value.

    Raises:
        InputError: when it is none of these.
    """
    if isinstance(at, Operation):
        if not at.results:
            raise InputError(f"{at!r} has no result, by which it could be named", remedy=_HINT)
        at = at.results[0]
    if isinstance(at, Value):
        name = next((name for name, value in named_values(program.graph).items() if value is at), None)
        if name is None:
            raise InputError(f"{at!r} is not a value of `result.program`", remedy=_HINT)
        return name
    if not isinstance(at, str) or not at:
        raise InputError(f"{at!r} is no place", remedy=_HINT)
    return at


def operations_at(at: str, record: Record, modules: Iterable[str]) -> list[Operation]:
    """Return the operations of the captured program, or else of the result, that a text means.

    Args:
        at: the text.
        record: a run of the pipeline.
        modules: the paths of the model's modules.

    Raises:
        InputError: when it means nothing; the error names what is near.
    """
    final = list(record.program.graph.operations())
    if at.startswith("%"):
        return _defining(at, record)
    for ops in (record.captured, final):
        found = [op for op in ops if any(_means(at, op, place) for place in op.location.parts)]
        if found:
            return found
    operators = [op for op in final if op.name == at]
    captured = [op for op in record.captured if at in (op.name, op.opdef.short_name)]
    if captured:
        return captured
    if operators:
        return _ancestors(operators, record)
    paths = set(modules) | {path for op in record.captured for path in with_parents(op.location.module_path)}
    if at in paths:
        return []
    known = [*sorted(filter(None, paths)), *dict.fromkeys(op.name for op in record.captured)]
    raise InputError(f"nothing in the model is {at!r}", remedy=did_you_mean(at, known, _HINT))


def _means(at: str, op: Operation, place: Any) -> bool:
    if names_place(at, place) and (place.module_path or at == "*"):
        return True
    file, _, line = at.rpartition(":")
    return bool(file) and line == str(place.line) and file in (place.file, PurePath(place.file).name)


def _defining(at: str, record: Record) -> list[Operation]:
    after = named_values(record.program.graph)
    value = after.get(at)
    if value is not None and (op := value.defining_op) is not None:
        return _ancestors([op], record)
    value = value or record.names.get(at)
    if value is None:
        known = [*after, *record.names]
        raise InputError(
            f"no value of the program is called {at}",
            remedy=did_you_mean(at, known, "`print(result.program)` shows all"),
        )
    if value.defining_op is None:
        what = "a weight" if value.is_weight else "an input"
        raise InputError(f"{at} is {what} of the model, which no operation computes", remedy=_HINT)
    return [value.defining_op]


def _ancestors(ops: Sequence[Operation], record: Record) -> list[Operation]:
    """Return the captured operations from which some of the result came; those themselves that came from none."""
    found: dict[Operation, None] = {}
    made = {op: record.descendants(op)[1] for op in record.captured}
    for op in ops:
        sources = [captured for captured, heirs in made.items() if op in heirs]
        found.update(dict.fromkeys(sources or [op]))
    return list(found)
