"""What PyTorch assumes of dynamic sizes while it captures and decomposes a program for a file.

Some decompositions are chosen by the sizes that the trace happens to have (`if size % 2 == 0`). PyTorch notes each such
choice as a guard, which it neither looks at again nor writes into the file: that is wrong for all other sizes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_stack
from types import FrameType
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compiler.capture.lean_tracing import PRIMS
from compiler.capture.patches import patched
from compiler.onnx.traced import operation_of
from ir.core import Operation
from ir.errors import CodegenError
from ir.expressions import format_expression
from ir.program import Program, SymbolRange

_TRIED = 60
"""Combinations of sizes under which each assumption is looked at."""
_NEAR, _FAR = 6, 300
"""How far above the least size of a range these are."""
_KERNELS = torch._subclasses.fake_impls.__file__

Places = Mapping[tuple[ShapeEnv, sympy.Basic], Operation | None]
"""Where PyTorch made a guard that matters; other guards are not in it."""


@contextmanager
def noted_guards(program: Program) -> Iterator[Places]:
    """Note the guards that PyTorch makes inside of the `with` block, each with the operation that it is for."""
    found: dict[tuple[ShapeEnv, sympy.Basic], Operation | None] = {}
    original = ShapeEnv._log_guard
    operations = list(program.graph.operations())

    def log_guard(env: ShapeEnv, prefix: str, relation: sympy.Basic, forcing_spec: bool) -> None:
        frames = [frame for frame, _ in walk_stack(sys._getframe(1))]
        is_kept = "suppressed" not in prefix
        if is_kept and (isinstance(relation, sympy.Eq) or not any(map(_changes_no_number, frames))):
            found.setdefault((env, relation), operation_of(frames, operations))
        original(env, prefix, relation, forcing_spec)

    with patched(ShapeEnv, _log_guard=log_guard):
        yield found


def _changes_no_number(frame: FrameType) -> bool:
    """Return whether code asks how a tensor lies in memory or for the fastest kernel, or asserts a guard."""
    code = frame.f_code
    if code is torch._assert.__code__:
        return True
    if code.co_filename == PRIMS:
        return "contiguous" in code.co_name or "stride" in code.co_name
    return code.co_filename == _KERNELS and code.co_name == "conv"


def dynamic_sizes(exported: ExportedProgram, program: Program) -> Iterator[tuple[torch.SymInt, Any]]:
    """Yield each dynamic size of an input in PyTorch's trace, and the dimension of the program that it is."""
    names = exported.graph_signature.user_inputs
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for name, value in zip(names, program.graph.inputs, strict=True):
        sizes = nodes[str(name)].meta["val"].shape
        for size, dim in zip(sizes, value.tensor_type.shape or (), strict=True):
            if isinstance(size, torch.SymInt):
                yield size, dim


def check_assumptions(exported: ExportedProgram, program: Program, places: Places) -> None:
    """Refuse a file that is right for some of the sizes of a program only.

    Raises:
        CodegenError: PyTorch took a choice that holds for the sizes of its trace, and not for others in the ranges.
            Sizes of 0 and 1, which it never assumes, are not looked at, here and where they are computed.
    """
    sizes = {size.node._expr: (size.node.shape_env, dim) for size, dim in dynamic_sizes(exported, program)}
    ours = {inner: sympy.sympify(dim) for inner, (_, dim) in sizes.items()}
    cases = list(_cases(program)) if sizes else []
    envs = {env for env, _ in sizes.values()}
    for (env, guard), op in places.items():
        relation = guard.xreplace(ours)
        if env not in envs or not relation.free_symbols <= program.symbols.keys() or _is_of_small_sizes(relation):
            continue
        for case in cases:
            if relation.xreplace(case) == sympy.false:
                raise _wrong(relation, case, op, program)


def _cases(program: Program) -> Iterator[dict[sympy.Symbol, sympy.Integer]]:
    """Yield sizes of at least 2 within the ranges and relations of a program."""
    source = random.Random(0)
    for number in range(_TRIED):
        reach = _FAR if number % 2 else _NEAR
        case = {symbol: sympy.Integer(_drawn(bounds, reach, source)) for symbol, bounds in program.symbols.items()}
        if all(relation.xreplace(case) == sympy.true for relation in program.constraints):
            yield case


def _drawn(bounds: SymbolRange, reach: int, source: random.Random) -> int:
    least = max(bounds.lower, 2)
    most = least + reach if bounds.upper is None else min(bounds.upper, least + reach)
    return source.randint(least, max(least, most))


def _is_of_small_sizes(relation: sympy.Basic) -> bool:
    """Return whether a guard says that something is not 0, or not 1."""
    if isinstance(relation, sympy.Ne):
        return any(each in (0, 1) for each in relation.args)
    return isinstance(relation, sympy.Gt | sympy.Lt | sympy.Ge | sympy.Le) and relation.lts in (0, 1)


def _wrong(
    relation: sympy.Basic, case: Mapping[sympy.Symbol, sympy.Integer], op: Operation | None, program: Program
) -> CodegenError:
    sizes = ", ".join(f"{symbol}={case[symbol]}" for symbol in sorted(relation.free_symbols, key=str))
    return CodegenError(
        f"{'the program' if op is None else op.name} would be written for sizes where {format_expression(relation)} "
        f"only, and they may be others ({sizes})",
        location=program.location if op is None else op.location,
        remedy="transform the model with fixed sizes in place of the dynamic ones (no `dynamic_shapes=`), or with a "
        "range (`Dim(name, min=, max=)`) that has these sizes only",
    )
