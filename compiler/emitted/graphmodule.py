"""The `fx.GraphModule`s that are emitted: they keep their class, tree and names through copying and pickling.

Plain `fx.GraphModule` rebuilds its module tree in the order of the graph's nodes, drops what no node names, and
pickles by tracing its code anew. Here the tree is given and kept, and the graph is pickled as a list of nodes.
"""

from __future__ import annotations

import builtins
import operator
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

from compiler.emitted.forward_code import SignatureCodeGen
from ir.attributes import map_leaves
from ir.caches import cached
from ir.errors import CodegenError, InputError
from ir.program import Surrounding

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - Python 3.10 has none

_TREE = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""The attributes that hold an `nn.Module`'s own tree and state."""

_MADE_BY_FX = ("_graph", "_code", "_lineno_map", "_prologue_start", "shape_env", "_tracer_cls", "_tracer_extras")


class TreeGraphModule(fx.GraphModule):
    """A GraphModule that keeps a given module tree, with its order and everything it holds.

    Args:
        root: holds the children, parameters and buffers, which are taken over.
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


class SwitchedModule(nn.Module):
    """A module whose `train()` and `eval()` do what those of the original do, or raise."""

    _mode_locked: str | None = None
    """Why the modes of the whole module cannot change, if they cannot."""
    _mode_remedy: str = ""
    """What to do instead; by default to transform the original in the other mode."""
    _mode_unknown: bool = False
    """Whether they are not known, of a module that cannot change them."""
    _modes_after: Mapping[str, tuple[tuple[str, bool], ...]] = MappingProxyType({})
    """The switch (of `ir.program.SWITCHES`) -> paths of modules in it and the modes that they have afterwards, where
    not its own."""
    _unlike_after: frozenset[str] = frozenset()
    """The switches after which some module is in another mode than in the capture, of the original or here."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all submodules, as `train` of the original does.

        Raises:
            InputError: when a mode would change and the captured graph holds for one mode only.
        """
        off = "train_false" if "train_false" in self._modes_after else "eval"
        return self._switch(bool(mode), "train" if mode else off)

    def eval(self) -> Self:
        """Set the mode of all submodules, as `eval` of the original does; raises as `train` does."""
        return self._switch(False, "eval")

    def _switch(self, mode: bool, switch: str) -> Self:
        if self._mode_locked is not None:
            if self._mode_unknown:
                raise InputError(
                    "this module is valid only in the mode it was exported in, which the graph does not show: "
                    f"{self._mode_locked}",
                    remedy="`transform(exported, training=...)` says it: then only the switch to the other mode raises",
                )
            if mode != self.training:
                now, then = ("training", "eval") if self.training else ("eval", "training")
                raise InputError(
                    f"this module is valid in {now} mode only and cannot be put into {then} mode: {self._mode_locked}",
                    remedy=self._mode_remedy
                    or f"put the original model into {then} mode and transform that; leaf_modules= keeps a "
                    "submodule in both modes",
                )
            after = dict(self._modes_after.get(switch, ()))
            groups = [(path, m) for path, m in self.named_modules() if isinstance(m, SwitchedModule)]
            if switch in self._unlike_after or any(m.training != after.get(path, mode) for path, m in groups):
                raise InputError(
                    "this module holds for the modes that its modules had when it was captured, and "
                    f"{'train' if mode else 'eval'}() would change some of them: {self._mode_locked}",
                    remedy="put the original model into the modes that are wanted and transform that",
                )
        _set_mode(self, mode)
        for path, flag in self._modes_after.get(switch, ()):
            self.get_submodule(path).training = flag
        return self


def _set_mode(module: SwitchedModule, mode: bool) -> None:
    """Set the mode of a module and all below, without the `train()` of containers."""
    module.training = mode
    for child in module.children():
        if isinstance(child, Container):
            _set_mode(child, mode)
        else:
            child.train(mode)


class Container(SwitchedModule):
    """A module of the original that only holds what is below its path, and a mode."""

    def _get_name(self) -> str:
        return "Module"


class SwitchedLayer(SwitchedModule):
    """A layer of PyTorch whose `train()` and `eval()` are those of the original's class."""

    _layer: type[nn.Module]
    """The class of PyTorch."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _restored_layer, (self._layer, self.__dict__.copy())


@cached()
def _switched_class(layer: Any) -> type[SwitchedLayer]:
    names = {"__module__": layer.__module__, "__qualname__": layer.__qualname__, "_layer": layer}
    return type(layer.__name__, (SwitchedLayer, layer), names)


def with_switches(layer: nn.Module) -> None:
    """Give a layer of PyTorch switches that do what those of the original do."""
    if not isinstance(layer, SwitchedModule):
        cls: Any = type(layer)
        layer.__class__ = _switched_class(cls)


def _restored_layer(layer: Any, state: dict[str, Any]) -> SwitchedLayer:
    found = _switched_class(layer)
    module = found.__new__(found)
    module.__dict__.update(state)
    return module


class EmittedParts(SwitchedModule):
    """What the root of an emitted module does beside `forward`."""

    _order: Mapping[str, int] = MappingProxyType({})
    """Key of a parameter -> its place among those of the original, in whose order parameters are listed."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters in the order of the original's: an optimizer's state knows them by their number."""
        found = list(super().named_parameters(prefix, recurse, remove_duplicate))
        start = len(prefix) + 1 if prefix else 0
        found.sort(key=lambda item: self._order.get(item[0][start:], len(self._order)))
        return iter(found)

    def lock_mode(self, reason: str, *, is_unknown: bool = False, remedy: str = "") -> None:
        """Keep the module in its mode: `train()` and `eval()` raise where they would change it, below the root too.

        Args:
            reason: why.
            is_unknown: whether it is not known which mode that is, so that each switch raises.
            remedy: what to do instead.
        """
        for module in self.modules():
            if isinstance(module, SwitchedModule):
                module._mode_locked = reason
                module._mode_unknown = is_unknown
                module._mode_remedy = remedy

    def refuse(self, surroundings: Mapping[str, Surrounding]) -> None:
        """Make calls in these surroundings raise."""
        self.get_submodule("_guard").surroundings = dict(surroundings)  # type: ignore[assignment]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
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


class EmittedModule(EmittedParts, TreeGraphModule):
    """The module that a program is emitted as.

    Its parameters are new `nn.Parameter` objects over the storage of the original ones. So no memory is spent on
    a second copy, while gradients, `requires_grad` and what `.to()` assigns are its own. An optimizer step on it
    mutates the shared storage; `copy.deepcopy` it first where the original must not change.
    """

    _weight_names: Mapping[str, str] = MappingProxyType({})
    """Key of a parameter or buffer -> name of the program's weight that it is."""
    _kept: tuple[str, ...] = ()
    """Paths of opaque modules."""


class FusedRegion(TreeGraphModule):
    """A fused region without a hand-written class: its `forward` is generated from the body, its parts are children."""

    kind: str = ""
    """The region's kind: `conv_bn_act`."""
    quantization_points: tuple[str, ...] = ()
    """Names of the operands that a quantizer puts quantize/dequantize pairs on."""


def _public_class(module: fx.GraphModule) -> type[TreeGraphModule]:
    """Return the class below the one that fx makes for each instance."""
    return next(cls for cls in type(module).__mro__ if "GraphModuleImpl" not in cls.__qualname__)


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
        args, kwargs = (map_leaves(each, _encode_leaf) for each in (node.args, node.kwargs))
        nodes.append((node.name, node.op, target, args, kwargs))
    codegen = graph._codegen
    return nodes, codegen.data if isinstance(codegen, SignatureCodeGen) else None


def _encode_leaf(item: Any) -> Any:
    if isinstance(item, fx.Node):
        return _NodeName(item.name)
    return _FunctionName(str(item)) if isinstance(item, torch.memory_format) else item  # torch.save cannot write one


def _decode_graph(encoded: tuple[Any, ...]) -> fx.Graph:
    nodes, signature = encoded
    graph = fx.Graph()
    if signature is not None:
        graph.set_codegen(SignatureCodeGen(*signature))
    made: dict[str, fx.Node] = {}

    def decode(leaf: Any) -> Any:
        if isinstance(leaf, _NodeName):
            return made[leaf]
        return _decode_function(leaf) if isinstance(leaf, _FunctionName) else leaf

    for name, op, target, args, kwargs in nodes:
        args, kwargs = (fx.node.map_aggregate(each, decode) for each in (args, kwargs))
        made[name] = graph.create_node(op, decode(target), args, kwargs, name=name)
    return graph


@fx.has_side_effect
def write_unless_itself(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Write `value` into `target`, unless it is `target` itself, which a leaf would refuse."""
    return target if value is target else torch.ops.aten.copy_.default(target, value)


@fx.has_side_effect
def assign_buffer(buffers: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    """Assign a buffer, as `self.name = value` of the original does: the old tensor is not mutated.

    Tracers (`torch.export`, `torch.compile`, `torch.jit.trace`, FX) keep mutations of buffers and lose assignments: for
    them, the buffer is mutated.

    Args:
        buffers: those of the module that holds it.
        name: its name there.
        value: the new tensor.
    """
    old = buffers[name]
    if _assignments_seen.get() or not _is_traced(value):
        buffers[name] = value
    elif value is not old:
        if old.requires_grad:
            old.detach_()  # the history of the call before, which the new value has if it needs it
        torch.ops.aten.copy_.default(old, value)


def before_assignment(value: torch.Tensor) -> torch.Tensor:
    """Return the value of a buffer that is about to be assigned; a copy under tracers, which mutate the buffer."""
    return value.clone() if _is_traced(value) and not _assignments_seen.get() else value


def call_with(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a module with keywords that are no names of Python, so that a call cannot spell them."""
    return module(*args, **kwargs)


_assignments_seen: ContextVar[bool] = ContextVar("assignments_seen", default=False)


@contextmanager
def assignments_seen() -> Iterator[None]:
    """Let emitted modules assign buffers under a tracer that sees assignments."""
    token = _assignments_seen.set(True)
    try:
        yield
    finally:
        _assignments_seen.reset(token)


def _is_traced(value: Any) -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or isinstance(value, fx.Proxy)
        or get_proxy_mode() is not None
    )


def _encode_function(function: Any) -> Any:
    """Return the path of a function if it has one, else the function itself, for pickle to judge."""
    if isinstance(function, torch._ops.OpOverload):
        return _FunctionName(f"torch.ops.{function}")
    name = getattr(function, "__name__", "")
    for module in (operator, builtins, torch, nn.functional, torch._C._nn):
        if getattr(module, name, None) is function:
            return _FunctionName(f"{module.__name__}.{name}")
    return function


def _decode_function(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise CodegenError(
            f"the pickled module calls {path}, which does not exist here",
            remedy="import the library that registers it first, or unpickle with the versions that pickled it",
        ) from error
