"""What a file calls the tensors among the arguments and the results of a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch.utils import _pytree as pytree

from compiler.onnx.traced import outputs_of
from ir.program import Program
from ir.spelling import free_name


@attrs.frozen
class Interface:
    """Names of inputs and outputs, and what they are in a call of the module.

    Attributes:
        inputs: names of the graph's inputs, in order.
        outputs: names of the distinct outputs of the graph, in order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    constants: tuple[tuple[str, str], ...]
    """Arguments that are no tensors, with the values that the file was made for."""
    results: tuple[tuple[str, str], ...]
    """Each leaf of the result, as Python writes the way to it, and the output it is (or the constant)."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON: what the model's metadata holds."""
        return {
            "inputs": dict(zip(self.inputs, self.input_types, strict=True)),
            "outputs": dict(zip(self.outputs, self.output_types, strict=True)),
            "constants": dict(self.constants),
            "results": dict(self.results),
        }


def interface_of(program: Program) -> Interface:
    """Return the interface of a program: inputs are called as the arguments are, outputs by their place in the result.

    A single result is `output`; an entry of a mapping is called as its key, one of a tuple `output_<number>`.
    """
    convention, graph = program.convention, program.graph
    given = {leaf.value: leaf.name for leaf in convention.inputs if leaf.value is not None}
    taken: set[str] = set()
    inputs = _distinct([given.get(i) or value.name or f"input_{i}" for i, value in enumerate(graph.inputs)], taken)
    outputs = outputs_of(program)
    leaves = convention.outputs
    paths = _result_paths(program)
    called: dict[int, str] = {}
    for (path, _), leaf in zip(paths, leaves, strict=True):
        value = None if leaf.value is None else graph.outputs[leaf.value]
        if value is not None:
            called.setdefault(outputs.index(value), path)
    names = [_output_name(called.get(i, ""), i, len(outputs)) for i in range(len(outputs))]
    named = _distinct(names, taken)
    results = []
    for (_, text), leaf in zip(paths, leaves, strict=True):
        value = None if leaf.value is None else graph.outputs[leaf.value]
        results.append((text, repr(leaf.constant) if value is None else named[outputs.index(value)]))
    return Interface(
        inputs,
        named,
        tuple(str(value.type) for value in graph.inputs),
        tuple(str(value.type) for value in outputs),
        tuple((leaf.name, repr(leaf.constant)) for leaf in convention.inputs if leaf.value is None),
        tuple(results),
    )


def _result_paths(program: Program) -> list[tuple[str, str]]:
    """Return, for each leaf of the result, the name that its place suggests, and the place as Python writes it."""
    spec, leaves = program.convention.out_spec, program.convention.outputs
    if spec is None:
        return [("", "")] if len(leaves) == 1 else [(f"output_{i}", f"[{i}]") for i in range(len(leaves))]
    tree = pytree.tree_unflatten(list(range(len(leaves))), spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    if len(paths) != len(leaves):
        return [(f"output_{i}", f".{i}") for i in range(len(leaves))]
    return [(_suggested(path), pytree.keystr(path)) for path in paths]


def _suggested(path: Sequence[Any]) -> str:
    keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    name = "_".join(keys)
    return f"output_{name}" if name and name[0].isdigit() else name


def _output_name(name: str, number: int, count: int) -> str:
    return name or ("output" if count == 1 else f"output_{number}")


def _distinct(names: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    found = []
    for name in names:
        unique = free_name(name, taken.__contains__)
        taken.add(unique)
        found.append(unique)
    return tuple(found)
