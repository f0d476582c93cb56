"""Which parts of an exported program follow `train()` and `eval()`: the code that asked for the mode is gone."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType

from torch.export import ExportedProgram

from compiler.capture.opaque import code_names, functions_of
from compiler.usercode.locations import is_user_file, module_of
from ir.core import Operation
from ir.errors import InputError
from ir.opdef import Trait
from ir.program import Program, Weight

_ATTENTION = "torch.nn.modules.activation.MultiheadAttention"
_SEQUENTIAL = "torch.nn.modules.container.Sequential"
_MAX_FUNCTIONS = 200


def lock_of_exported(program: Program, exported: ExportedProgram) -> str:
    """Return why a module emitted from an exported program must stay in its mode, or an empty text.

    PyTorch's own layers are known to follow it. For other code that seems to depend on the mode, nothing says how.

    Args:
        program: the lowered program.
        exported: its source.
    """
    if exported.dialect != "TRAINING":
        return "the exported program was decomposed, and nothing of it tells what follows the mode"
    for op in program.graph.operations():
        for inner in (op, *(op.body.operations() if op.body is not None else ())):
            reason = _reason_of(inner)
            if reason:
                return f"{inner.name} at {inner.location} {reason}"
    returned = [value for value in program.graph.outputs if value is not None]
    for value in returned:
        maker = value.defining_op
        if maker is None or not maker.opdef.has(Trait.DROPOUT) or maker.in_training:
            continue
        if returned.count(value) > 1:
            return f"{maker.name} at {maker.location} is returned twice: one of the two may be what it was given"
    modules, children = _modules(exported)
    called = [entry.fqn for entry in exported.module_call_graph if entry.fqn]
    for path, name in modules.items():
        reason = _reason_of_class(name, children.get(path, set()))
        if not reason and name == _SEQUENTIAL:
            hidden = [fqn for fqn in called if fqn.rpartition(".")[0] == path and fqn not in modules]
            names = {fqn.rpartition(".")[2] for fqn in hidden} - children.get(path, set())
            reason = _hidden(names)
        if reason:
            return f"`{path}` ({name}) {reason}" if path else f"the root module ({name}) {reason}"
    return ""


def mode_of_exported(program: Program, said: bool | None) -> bool | None:
    """Return the mode that an exported program was captured in, or None where it is unknown.

    Args:
        program: the lowered program.
        said: the mode according to the user.

    Raises:
        InputError: when a layer contradicts the user.
    """
    modes = [mode for _, mode in _modes_of_layers(program)]
    if modes and said is not None and any(modes) is not said:
        shown, other = ("training", "eval") if any(modes) else ("eval", "training")
        raise InputError(
            f"training={said}, and layers of the exported program are in {shown} mode",
            remedy=f"leave out training=, or export the model in {other} mode",
        )
    return any(modes) if modes else said


def modes_of_exported(program: Program, mode: bool | None) -> dict[str, bool]:
    """Return module path -> `training`, as far as an exported program shows it.

    Args:
        program: the lowered program.
        mode: that of the root module; None if unknown.
    """
    whole = {} if mode is None else {"": mode}
    return whole | {path: flag for path, flag in _modes_of_layers(program) if path}


def _modes_of_layers(program: Program) -> Iterator[tuple[str, bool]]:
    """Yield path and mode of each layer whose mode shows."""
    for op in program.graph.operations():
        if _tells_the_mode(op):
            yield op.location.module_path, op.in_training


def shared_modules(program: Program, exported: ExportedProgram) -> dict[str, str]:
    """Return alias -> first path of shared modules, as far as an exported program shows it.

    Two paths count as one module if all parameters and buffers below them are the same tensors, and the graph shows one
    class.
    """
    tied = [weight for weight in program.weights.values() if weight.aliases]
    if not tied:
        return {}
    below: dict[str, dict[str, Weight]] = {}
    for weight in program.weights.values():
        for key in (weight.name, *weight.aliases):
            path, _, rest = key.rpartition(".")
            while path:
                below.setdefault(path, {})[rest] = weight
                path, _, last = path.rpartition(".")
                rest = f"{last}.{rest}"
    classes, _ = _modules(exported)
    found: dict[str, str] = {}
    for weight in tied:
        for alias in weight.aliases:
            pairs = zip(_paths_above(weight.name), _paths_above(alias), strict=False)
            for first, path in sorted(pairs, key=lambda pair: len(pair[1])):
                names = {classes[each] for each in (first, path) if classes.get(each)}
                if first != path and len(names) == 1 and below[first] == below[path]:
                    found.setdefault(path, first)
                    break
    return found


def _paths_above(name: str) -> list[str]:
    """Return the paths of the modules that contain a tensor, innermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _tells_the_mode(op: Operation) -> bool:
    return op.opdef.follows_mode and bool(op.attributes["follows_mode"])


def _reason_of(op: Operation) -> str:
    home, follows = op.location.module_class, op.attributes.get("follows_mode")
    draws = op.opdef.has(Trait.RANDOM) and all(op.attributes.get(name, 1) != 0 for name in ("p", "dropout"))
    has_statistics = "running_mean" in op.opdef.operand_index and op.operand("running_mean") is not None
    if op.opdef.follows_mode and not follows and (draws or has_statistics):
        return "may depend on it: no layer of PyTorch made it"
    if op.name == "aten.batch_norm" and follows and op.attributes["momentum"] == 0:
        return "has no momentum, or one of None: the graph does not tell which"
    if op.name == "aten.scaled_dot_product_attention" and (op.attributes["dropout_p"] or home == _ATTENTION):
        return "drops weights in one of the modes, and the other one is not known"
    return ""


def _modules(exported: ExportedProgram) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return path -> class of the modules in the graph, and path -> names of their submodules."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    for node in exported.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and id(stack) not in seen:
            seen.add(id(stack))
            for depth in range(1, len(stack) + 1):
                path, name = module_of({"nn_module_stack": dict(list(stack.items())[:depth])})
                found.setdefault(path, name)
    children: dict[str, set[str]] = {}
    for path in (*found, *(key.rpartition(".")[0] for key in exported.state_dict)):
        while path:
            path, _, name = path.rpartition(".")
            children.setdefault(path, set()).add(name)
    return found, children


def _hidden(names: set[str]) -> str:
    return f"has a module {min(names)!r} that does not appear in the graph in this mode" if names else ""


def _reason_of_class(name: str, children: set[str]) -> str:
    """Return why the behaviour of a module may depend on the mode.

    Args:
        name: its class.
        children: names of its submodules that the graph shows.
    """
    if name == _SEQUENTIAL:
        hidden = set(map(str, range(len(children)))) - children
        return _hidden(hidden)
    if not name or name.startswith("torch."):
        return ""
    cls = _find(name)
    if cls is None:
        return "has code that is not known here, and that may ask for the mode"
    for function in _reached(cls):
        if "training" in set(code_names(function.__code__)):
            return f"asks for the mode in {function.__qualname__}"
        if not {"train", "eval"}.isdisjoint(code_names(function.__code__)):
            return f"sets a mode in {function.__qualname__}"
    if any(method in vars(base) for base in cls.__mro__ for method in ("train", "eval") if not _is_torchs(base)):
        return "has a train() or eval() of its own"
    methods = {name for base in cls.__mro__ for name in vars(base)}
    for base in cls.__mro__:
        for function in () if _is_torchs(base) else functions_of(base):
            unknown = [called for called in _called_on_self(function) if called not in methods | children]
            if unknown:
                return f"calls self.{unknown[0]}, which does not appear in the graph in this mode"
    return ""


def _called_on_self(function: FunctionType) -> Iterator[str]:
    """Yield each `name` that a method calls as `self.name(...)`."""
    previous = ""
    for instruction in dis.get_instructions(function):
        name = str(instruction.argval)
        is_call = instruction.opname == "LOAD_METHOD" or (
            instruction.opname == "LOAD_ATTR" and "NULL|self" in instruction.argrepr
        )
        if is_call and previous == "self":
            yield name
        previous = name if instruction.opname.startswith("LOAD_FAST") else ""


def _find(name: str) -> type | None:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:cut]))
        if found is not None:
            for part in parts[cut:]:
                found = getattr(found, part, None)
            return found if isinstance(found, type) else None
    return None


def _reached(cls: type) -> Iterator[FunctionType]:
    """Yield the functions of a class, and the user's functions that they call by name."""
    pending = [function for base in cls.__mro__ if not _is_torchs(base) for function in functions_of(base)]
    seen: set[int] = set()
    while pending and len(seen) < _MAX_FUNCTIONS:
        function = pending.pop(0)
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        names = set(code_names(function.__code__))
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            is_module = isinstance(value, ModuleType)
            values = [vars(value)[n] for n in sorted(names & vars(value).keys())] if is_module else [value]
            pending.extend(v for v in values if isinstance(v, FunctionType) and is_user_file(v.__code__.co_filename))


def _is_torchs(cls: type) -> bool:
    return cls.__module__ == "builtins" or cls.__module__.startswith("torch.")
