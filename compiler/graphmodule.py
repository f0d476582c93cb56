"""The `fx.GraphModule`s that are emitted: they keep their class, tree and names through copying and pickling.

Plain `fx.GraphModule` rebuilds its module tree in the order of the graph's nodes, drops what no node names, and
pickles by tracing its code anew. Here the tree is given and kept, and the graph is pickled as a list of nodes.
"""

from __future__ import annotations

import builtins
import importlib
import json
import keyword
import operator
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen, PythonCode, _format_target
from torch.utils import _pytree as pytree

from ir.errors import CodegenError, InputError

_TREE = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""The attributes that hold an `nn.Module`'s own tree and state."""

_TAKEN = "_taken"
"""What generated code calls `taken`."""

_MADE_BY_FX = ("_graph", "_code", "_lineno_map", "_prologue_start", "shape_env", "_tracer_cls", "_tracer_extras")


# fx writes functions under the name of the module that they say they are from
_HOMES: dict[str, Any] = {"torch._C._nn": nn.functional, "torch.functional": torch}
_PRIVATE = re.compile(r"\b(torch\._C\._nn|torch\.functional)\.(\w+)")
_SUBSCRIPT = re.compile(r"^(    \w+ = \w+)\[(.*?slice\(.*?)\](;  .*)?$", re.MULTILINE)
_SLICE = re.compile(r"slice\(([^(),]+), ([^(),]+), ([^(),]+)\)")


def _public_name(found: re.Match[str]) -> str:
    """Return the public name of the function that fx wrote as `torch._C._nn.gelu`."""
    home = _HOMES[found[1]]
    function = getattr(home, found[2], None)
    same = function is not None and function is getattr(sys.modules[found[1]], found[2], None)
    return f"{home.__name__}.{found[2]}" if same else found[0]


def _subscript(found: re.Match[str]) -> str:
    """Return `x[:, 1:3]` for what fx wrote as `x[(slice(None, None, None), slice(1, 3, None))]`."""
    inner = found[2]
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1]
    return f"{found[1]}[{_SLICE.sub(_colons, inner)}]{found[3] or ''}"


def _colons(found: re.Match[str]) -> str:
    start, stop, step = ("" if part == "None" else part for part in found.groups())
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"


class SignatureCodeGen(CodeGen):
    """Writes a `forward` with the kinds of parameters that Python knows.

    Args:
        positional: the number of parameters before the keyword-only ones.
        names: of the parameters; for arguments that `**kwargs` takes their keywords.
        positional_only: how many parameters no name is given for.
        defaults: number of a parameter -> its default.
        absent: numbers of the parameters that the capture passed no argument for.
        variable: name of the `**kwargs`.
        keywords: how many parameters, the last ones, `**kwargs` takes.
        keeps_order: whether these have to be given in the order of their `names`.
    """

    def __init__(
        self,
        positional: int,
        names: tuple[str, ...] = (),
        positional_only: int = 0,
        defaults: Mapping[int, Any] | None = None,
        absent: tuple[int, ...] = (),
        variable: str = "",
        keywords: int = 0,
        keeps_order: bool = False,
    ) -> None:
        super().__init__()
        self.positional = positional
        self.names = names
        self.positional_only = positional_only
        self.defaults = dict(defaults or {})
        self.absent = absent
        self.variable = variable
        self.keywords = keywords
        self.keeps_order = keeps_order

    @property
    def data(self) -> tuple[Any, ...]:
        """The arguments that make an equal one."""
        options = (self.positional_only, self.defaults, self.absent, self.variable, self.keywords, self.keeps_order)
        return self.positional, self.names, *options

    def process_inputs(self, *args: Any) -> Any:
        """Return the arguments of all parameters, for an interpreter.

        `torch.export` interprets an `fx.GraphModule` with the values of all keyword arguments passed by position, in
        the order of the call. Otherwise as many arguments as the capture had are taken for the same parameters; the
        guard checks them.
        """
        keywords = _keywords_of_export(args)
        if keywords:
            return self._bind(args[: len(args) - len(keywords)], keywords)
        missing = self.absent
        if not missing or len(args) != len(self.names) - len(missing):
            return args
        rest = iter(args)
        return tuple(self.defaults[i] if i in missing else next(rest) for i in range(len(self.names)))

    def _bind(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the arguments of all parameters, by their names."""
        first = len(self.names) - self.keywords
        named = dict(keywords)
        given = [
            named.pop(self.names[i]) if self.names[i] in named else self.defaults[i] for i in range(len(args), first)
        ]
        return *args, *given, *(taken(named, self.names[first:], self.keeps_order) if self.variable else ())

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        """Return the `def` line, and one that takes the arguments out of `**kwargs`."""
        start = 1 if free_vars and free_vars[0] == "self" else 0
        last = free_vars[len(free_vars) - self.keywords :]
        del free_vars[len(free_vars) - self.keywords :]
        if self.positional_only:
            free_vars.insert(start + self.positional_only, "/")
        cut = start + self.positional + bool(self.positional_only)
        if cut < len(free_vars):
            free_vars[cut:cut] = ["*"]
        if self.variable:
            free_vars.append(f"**{self.variable}")
        definition = super().gen_fn_def(free_vars, maybe_return_annotation, expanded_def=expanded_def)
        if not self.variable:
            return definition
        names = ", ".join(re.match(r"\w+", each)[0] for each in last)  # type: ignore[index]
        keys = self.names[len(self.names) - self.keywords :]
        order = ", keeps_order=True" if self.keeps_order else ""
        return f"{definition}\n    [{names}] = {_TAKEN}({self.variable}, {keys!r}{order})"

    def _gen_python_code(self, nodes: Any, root_module: str, *args: Any, **kwargs: Any) -> PythonCode:
        code = super()._gen_python_code(nodes, root_module, *args, **kwargs)
        code.src = _SUBSCRIPT.sub(_subscript, _PRIVATE.sub(_public_name, code.src))
        if self.variable:
            code.globals[_TAKEN] = taken
        for node in nodes:
            if node.op == "placeholder" and node.name != node.target:
                _unshadow(code, node.name, node.target)
            elif node.op in ("call_module", "get_attr") and not all(map(_is_plain, node.target.split("."))):
                old, new = _format_target(root_module, node.target), _attribute(root_module, node.target)
                code.src = re.sub(rf"(?<== ){re.escape(old)}(?![\w.])", new.replace("\\", r"\\"), code.src)
        return code


def taken(given: Mapping[str, Any], keys: tuple[str, ...], keeps_order: bool = False) -> list[Any]:
    """Return the arguments that `**kwargs` took, as they were captured.

    Args:
        given: what the caller gave.
        keys: the captured keywords.
        keeps_order: whether they have to come in this order: the code of the original walks through them.

    Raises:
        InputError: when the keywords are others, or come in another order.
    """
    if isinstance(given, fx.Proxy) or tuple(given) == keys or (not keeps_order and set(given) == set(keys)):
        return [given[key] for key in keys]
    wanted, found = (", ".join(map(repr, each)) for each in (keys, given))
    if set(given) == set(keys):
        raise other_order("the keyword arguments", given, keys)
    raise InputError(
        f"the keyword arguments are {found or 'none'}, and the model was captured with {wanted}",
        remedy="pass the same ones as in the example inputs",
    )


def other_order(name: str, given: Iterable[Any], keys: Iterable[Any]) -> InputError:
    """Return the error for a mapping whose keys come in another order than the captured one, where that matters."""
    wanted, found = (", ".join(map(repr, each)) for each in (keys, given))
    return InputError(
        f"{name} came in the order {found}, and the model was captured with {wanted}: it walks through them, so"
        " another order may give another result",
        remedy=f"pass them in the order {wanted}, or transform the model with the other order in the example",
    )


def _keywords_of_export(args: tuple[Any, ...]) -> Mapping[str, Any]:
    """Return the keyword arguments of which `torch.export` passes the values alone to the interpreter.

    The names are in its frame and nowhere else; without them, arguments in another order would be mixed up.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, fx.graph.__name__):
        frame = frame.f_back
    caller = frame.f_back
    if frame.f_code is not fx.Interpreter.run.__code__ or caller is None:
        return {}
    if caller.f_globals.get("__name__") != torch.export._trace.__name__:
        return {}
    keywords = caller.f_locals.get("kwargs")
    if not isinstance(keywords, dict) or not keywords or len(keywords) > len(args):
        return {}
    values = args[len(args) - len(keywords) :]
    return keywords if all(a is b for a, b in zip(values, keywords.values(), strict=True)) else {}


def _is_plain(name: str) -> bool:
    """Whether Python code can write an attribute as it is: the parser normalizes names (NFKC), so `µ` becomes `μ`."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def _attribute(root: str, target: str) -> str:
    """Return the expression for a submodule at a path of which a part is no plain name."""
    for name in target.split("."):
        root = f"{root}.{name}" if _is_plain(name) else f"getattr({root}, {json.dumps(name)})"
    return root


def _unshadow(code: PythonCode, name: str, parameter: str) -> None:
    """Give a global that the code uses another name, where a parameter of `forward` hides it (`torch`, `device`)."""
    head, assignment, body = code.src.partition(f"    {name} = {parameter}\n")
    used = re.compile(rf"(?<![\w.'\"]){re.escape(parameter)}\b(?!\s*=(?!=))")
    if parameter in code.globals:
        hidden = code.globals[parameter]
    elif hasattr(builtins, parameter):
        hidden = getattr(builtins, parameter)
    else:
        return
    if used.search(body):
        code.globals[f"_global_{parameter}"] = hidden
        code.src = head + assignment + used.sub(f"_global_{parameter}", body)


class TreeGraphModule(fx.GraphModule):
    """A GraphModule with a given module tree, in its own order, with everything it holds.

    Args:
        root: holds the children, parameters and buffers; they are taken over as they are.
        graph: the graph of `forward`.
        class_name: the name shown by `print`.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(root, graph, class_name)
        for name in _TREE:
            self.__dict__[name] = root.__dict__[name]
        self.training = root.training
        self._class_name = class_name

    def __deepcopy__(self, memo: dict[int, Any]) -> TreeGraphModule:
        for value in self.__dict__.values():
            if isinstance(value, pytree.TreeSpec):
                memo[id(value)] = value  # immutable, and PyTorch warns when one is copied
        return super().__deepcopy__(memo)  # type: ignore[return-value]

    def _deepcopy_init(self) -> Callable[..., None]:
        return _init_copy

    def __copy__(self) -> TreeGraphModule:
        state = {k: v.copy() if k in _TREE else v for k, v in self.__dict__.items() if k not in _MADE_BY_FX}
        return _rebuild(_public_class(self), type(self).__name__, state, self.graph)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {k: _encode_spec(v) for k, v in self.__dict__.items() if k not in _MADE_BY_FX}
        return _unpickle, (_public_class(self), type(self).__name__, state, _encode_graph(self.graph))


class EmittedModule(TreeGraphModule):
    """The module that a program is emitted as.

    Its parameters are new `nn.Parameter` objects over the storage of the original ones. So no memory is spent on
    a second copy, while gradients, `requires_grad` and what `.to()` assigns are its own. An optimizer step on it
    writes the storage that it shares; `copy.deepcopy` it first where the original has to stay as it is.
    """

    _mode_locked: str | None = None
    """Why the module cannot leave its mode, if it cannot."""
    _modes_after: Mapping[str, tuple[tuple[str, bool], ...]] = MappingProxyType({})
    """The switch ("train" or "eval") -> paths of modules and the modes that they have afterwards, where not its own."""

    def train(self, mode: bool = True) -> EmittedModule:
        """Set the mode of all submodules, as `train` of the original does.

        Raises:
            InputError: when the mode would change and the captured graph holds for one mode only.
        """
        if self._mode_locked is not None and bool(mode) != self.training:
            now, then = ("training", "eval") if self.training else ("eval", "training")
            raise InputError(
                f"this module holds for {now} mode only and cannot be put into {then} mode: {self._mode_locked}",
                remedy=f"put the original model into {then} mode and transform that",
            )
        super().train(mode)
        for path, flag in self._modes_after.get("train" if mode else "eval", ()):
            self.get_submodule(path).training = flag
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EmittedModule:
        # nn.Module converts each buffer where it is registered, which would part buffers that are registered twice
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in self.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    places.setdefault(id(buffer), []).append((module, name))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for (first, key), *others in places.values():
            for module, name in others:
                module._buffers[name] = first._buffers[key]
        return self


class FusedRegion(TreeGraphModule):
    """A fused region without a hand-written class: its `forward` is generated from the body, its parts are children."""

    kind: str = ""
    """The region's kind: `conv_bn_act`."""
    quantization_points: tuple[str, ...] = ()
    """Names of the operands that a quantizer puts quantize/dequantize pairs on."""


def _public_class(module: fx.GraphModule) -> type[TreeGraphModule]:
    """Return the class below the one that fx makes for each instance."""
    for cls in type(module).__mro__:
        if cls.__qualname__.rpartition(".")[2] != "GraphModuleImpl" and "GraphModuleImpl" not in cls.__qualname__:
            return cls
    raise AssertionError("unreachable")


def _init_copy(module: TreeGraphModule, root: nn.Module, graph: fx.Graph) -> None:
    """Initialize a deep copy: called by `GraphModule.__deepcopy__` with a bare module that holds the copied state."""
    state = root.__dict__
    # the class is new for each instance: only the state knows its name
    TreeGraphModule.__init__(module, root, graph, state["_class_name"])
    for name, value in state.items():
        if name not in module.__dict__ and name not in _MADE_BY_FX:
            module.__dict__[name] = value


def _rebuild(cls: type[TreeGraphModule], name: str, state: dict[str, Any], graph: fx.Graph) -> TreeGraphModule:
    root = nn.Module()
    root.__dict__.update(state)
    module = cls.__new__(cls)
    TreeGraphModule.__init__(module, root, graph, name)
    module.__dict__.update(state)
    return module


def _unpickle(
    cls: type[TreeGraphModule], name: str, state: dict[str, Any], encoded: tuple[Any, ...]
) -> TreeGraphModule:
    state = {k: v.decode() if isinstance(v, _SpecData) else v for k, v in state.items()}
    return _rebuild(cls, name, state, _decode_graph(encoded))


class _SpecData:
    """A pytree structure as plain data: PyTorch warns when a TreeSpec itself is pickled."""

    __slots__ = ("children", "context", "type")

    def __init__(self, spec: pytree.TreeSpec) -> None:
        self.type, self.context = spec.type, spec.context
        self.children = [_SpecData(child) for child in spec.children()]

    def decode(self) -> pytree.TreeSpec:
        """Return the structure."""
        if self.type is None:
            return pytree.tree_structure(0)
        return pytree.TreeSpec(self.type, self.context, [child.decode() for child in self.children])


def _encode_spec(value: Any) -> Any:
    return _SpecData(value) if isinstance(value, pytree.TreeSpec) else value


# Graphs as plain data. Nodes refer to each other by name; functions are written as the path under which they are found.


class _NodeName(str):
    """A reference to a node inside encoded arguments."""

    __slots__ = ()


class _FunctionName(str):
    """A reference to a function, a torch operator or a memory format, by its path."""

    __slots__ = ()


def _encode_graph(graph: fx.Graph) -> tuple[Any, ...]:
    nodes = []
    for node in graph.nodes:
        target = _encode_function(node.target) if node.op == "call_function" else node.target
        nodes.append((node.name, node.op, target, _encode_argument(node.args), _encode_argument(node.kwargs)))
    codegen = graph._codegen
    return nodes, codegen.data if isinstance(codegen, SignatureCodeGen) else None


def _encode_argument(item: Any) -> Any:
    if isinstance(item, fx.Node):
        return _NodeName(item.name)
    if isinstance(item, torch.memory_format):
        return _FunctionName(str(item))  # torch.save cannot write one
    if isinstance(item, (list, tuple)):
        parts = [_encode_argument(part) for part in item]
        if isinstance(item, tuple):
            return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
        return parts
    if isinstance(item, dict):
        return {key: _encode_argument(value) for key, value in item.items()}
    if isinstance(item, slice):
        return slice(_encode_argument(item.start), _encode_argument(item.stop), _encode_argument(item.step))
    return item


def _decode_graph(encoded: tuple[Any, ...]) -> fx.Graph:
    nodes, signature = encoded
    graph = fx.Graph()
    if signature is not None:
        graph.set_codegen(SignatureCodeGen(*signature))
    made: dict[str, fx.Node] = {}

    def decode(item: Any) -> Any:
        if isinstance(item, _NodeName):
            return made[item]
        if isinstance(item, _FunctionName):
            return _decode_function(item)
        if isinstance(item, (list, tuple)):
            parts = [decode(part) for part in item]
            return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
        if isinstance(item, dict):
            return {key: decode(value) for key, value in item.items()}
        if isinstance(item, slice):
            return slice(decode(item.start), decode(item.stop), decode(item.step))
        return item

    for name, op, target, args, kwargs in nodes:
        if isinstance(target, _FunctionName):
            target = _decode_function(target)
        made[name] = graph.create_node(op, target, decode(tuple(args)), decode(dict(kwargs)), name=name)
    return graph


def _encode_function(function: Any) -> Any:
    """Return the path of a function where one leads to it, or else the function itself, for pickle to judge."""
    if isinstance(function, torch._ops.OpOverload):
        return _FunctionName(f"torch.ops.{function}")
    name = getattr(function, "__name__", "")
    for module in (operator, builtins, torch, nn.functional, torch._C._nn):
        if getattr(module, name, None) is function:
            return _FunctionName(f"{module.__name__}.{name}")
    return function


def _decode_function(path: str) -> Any:
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise CodegenError(
        f"the pickled module calls {path}, which does not exist here",
        remedy="import the library that registers it first, or unpickle with the versions that pickled it",
    )
