"""A record of what a run of a model asks about its surroundings, and of the functions that it calls."""

from __future__ import annotations

import functools
import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from compiler.capture.boundary.fast_path import is_fast, questions_of
from compiler.capture.boundary.runs import Twin
from compiler.capture.patches import mode_watched, patched
from compiler.usercode.locations import OURS, frame_of_user, is_inside, is_user_file
from ir.locations import Location

_OF_THE_THREAD = {
    "is_grad_enabled": "grad",
    "is_inference_mode_enabled": "inference",
    "is_autocast_enabled": "autocast",
    "is_autocast_cpu_enabled": "autocast",
    "is_autocast_xla_enabled": "autocast",
    "get_autocast_dtype": "autocast",
    "get_autocast_cpu_dtype": "autocast",
    "get_autocast_gpu_dtype": "autocast",
}
"""Functions that return a setting of the thread -> the question."""
_OF_A_TENSOR = {
    "is_contiguous": "layout",
    "stride": "layout",
    "suggest_memory_format": "layout",
    "requires_grad": "requires_grad",
    "grad_fn": "requires_grad",
    "is_leaf": "requires_grad",
    "is_inference": "inference",
}
_OF_A_DTYPE = frozenset(
    {"dtype", "float", "half", "bfloat16", "double", "to", "type", "type_as", "is_floating_point", "element_size"}
    | {f"{name}_like" for name in ("zeros", "ones", "empty", "full", "rand", "randn", "randint")}
    | {f"new_{name}" for name in ("zeros", "ones", "empty", "full", "tensor", "empty_strided")}
)
"""Functions whose result depends on the dtype of a tensor, which autocast may have changed."""
_WRITES = frozenset(
    {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow")}
    | {f"{name}_" for name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "pow", "copy", "lerp")}
    | {f"{name}_" for name in ("addcmul", "addcdiv", "index_add", "index_copy", "masked_scatter", "scatter_add")}
    | {"__setitem__"}
)
"""Functions that mutate a tensor with values of other tensors, in its own dtype."""
_ABOUT = frozenset(
    {"size", "dim", "ndimension", "nelement", "numel", "stride", "storage_offset", "is_contiguous", "data_ptr", "type"}
    | {"element_size", "__len__", "get_device", "is_floating_point", "is_complex", "__hash__", "__repr__", "__format__"}
    | {"untyped_storage", "is_same_size", "is_inference"}
)
"""Questions about a tensor, which are not part of the computation."""
FLAGS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), ("input", "p", "training")),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout", "feature_dropout"), ("input", "p", "training")),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats"),
    "rrelu": ("input", "lower", "upper", "training"),
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"),
        ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train"),
    ),
}
"""Functions with an argument for the mode -> names of their first arguments, in order."""
MODE_LAYERS = (_BatchNorm, _DropoutNd, _InstanceNorm, nn.MultiheadAttention, nn.RNNBase, nn.RReLU)
"""The layers of PyTorch that depend on their mode."""
_FUNCTIONS = tuple(
    os.path.join("torch", *parts) for parts in (("nn", "functional.py"), ("overrides.py",), ("_jit_internal.py",))
)
_LAYERS = os.path.join("torch", "nn", "modules") + os.sep
_TOLD = ("p", "training", "train", "use_input_stats", "dropout_p")


@attrs.frozen
class Step:
    """One call of a function of PyTorch by the model."""

    name: str
    location: Location
    of_layer: bool
    """Whether a layer of PyTorch makes it."""
    arguments: tuple[Any, ...] = attrs.field(repr=False)
    """All arguments except those in `flags`; tensors are only named as such."""
    flags: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    """Of a function in `FLAGS`: its arguments for the mode."""

    def is_in(self, path: str) -> bool:
        """Return whether the call was made inside a module."""
        return is_inside(self.location.module_path, (path,))


@attrs.define(eq=False)
class Record:
    """The record of a run."""

    questions: dict[str, Location] = attrs.field(factory=dict)
    """Questions that code outside of PyTorch asked -> where first."""
    asked_of_buffers: dict[str, Location] = attrs.field(factory=dict)
    """Buffers whose `requires_grad` or the like was read -> where."""
    steps: list[Step] = attrs.field(factory=list)
    readers: dict[str, Location] = attrs.field(factory=dict)
    """Paths of the modules whose mode was read, except by a layer of PyTorch about itself -> where."""
    switched: dict[str, None] = attrs.field(factory=dict)
    """Paths of the modules whose mode was set."""
    seeded: Location | None = None
    foreign: Location | None = None
    """Where Python's own generator was used."""
    rewound: Location | None = None
    """Where the state of a generator of PyTorch was changed."""
    strangers: dict[int, tuple[nn.Module, Location]] = attrs.field(factory=dict)
    """Called modules that are not modules of the model, by id, and where first."""


class Recorder:
    """Records runs of one model in the current thread."""

    def __init__(self, model: nn.Module, twin: Twin | None = None) -> None:
        self.model = model
        self.twin = twin
        self.paths: dict[int, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), path)
        self.stack: list[nn.Module] = []
        self.record = Record()
        self._given: frozenset[int] | None = None
        """Ids of parameters, buffers and inputs, once they were needed."""
        self._setting: tuple[torch.Generator, torch.Tensor] | None = None
        """A generator whose state is being set, and its state before."""

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Record the run inside the `with` block."""
        self.record, self.stack, self._given = Record(), [], None
        thread = threading.get_ident()

        def entered(module: nn.Module) -> None:
            if id(module) not in self.paths and id(module) not in self.record.strangers:
                self.record.strangers[id(module)] = module, self.place_of_user(sys._getframe(1))

        def mode_read(module: nn.Module, frame: FrameType) -> None:
            if threading.get_ident() == thread:
                self.mode_read(module, frame)

        def mode_set(module: nn.Module) -> None:
            if threading.get_ident() == thread:
                self.mode_set(module)

        with (
            calls_watched(entered) as self.stack,
            mode_watched(mode_read, mode_set),
            _Steps(self),
            _profiled(self._profile),
        ):
            yield self.record

    def place(self, frame: FrameType | None) -> Location:
        """Return the location of a frame of the user's code, in the module that is being called."""
        module = self.stack[-1] if self.stack else None
        path = self.paths.get(id(module), "") if module is not None else ""
        name = f"{type(module).__module__}.{type(module).__qualname__}" if module is not None else ""
        if frame is None:
            return Location(path, name)
        return Location(path, name, frame.f_code.co_filename, frame.f_lineno)

    def place_of_user(self, frame: FrameType | None) -> Location:
        """Return the location of the innermost frame of the user's code at or above a frame."""
        return self.place(frame_of_user(frame))

    def frame_of_model(self, frame: FrameType | None) -> FrameType | None:
        """Return the innermost frame of the user's code at or above a frame, or None outside of the model."""
        found = frame
        while found is not None and not is_user_file(found.f_code.co_filename):
            if found.f_code.co_filename.startswith(OURS):
                return None
            found = found.f_back
        return found

    def ask(self, question: str, frame: FrameType) -> None:
        """Record a question of the user's code."""
        if question not in self.record.questions and is_user_file(frame.f_code.co_filename):
            self.record.questions[question] = self.place(frame)

    def ask_of_tensor(self, question: str, tensor: Any, frame: FrameType) -> None:
        """Record a question about a tensor, and the buffer that it is."""
        self.ask(question, frame)
        if question == "requires_grad" and is_user_file(frame.f_code.co_filename) and self.stack:
            for name, buffer in self.model.named_buffers():
                if buffer is tensor:
                    self.record.asked_of_buffers.setdefault(name, self.place(frame))

    def is_computed(self, value: Any) -> bool:
        """Return whether autocast may change the dtype of a value: a float tensor that is not an input or a weight."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return False
        if self._given is None:
            tensors = (*self.model.parameters(), *self.model.buffers(), *(self.twin.inputs if self.twin else ()))
            self._given = frozenset(map(id, tensors))
        return id(value) not in self._given and id(value._base) not in self._given

    def ask_dtype(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType) -> None:
        """Record where code outside of PyTorch depends on a dtype that autocast may change."""
        if "autocast" in self.record.questions or not self.stack or not is_user_file(frame.f_code.co_filename):
            return
        first, others = args[:1], (*args[1:], *kwargs.values())
        if name in _WRITES:
            tensors = [value for value in others if isinstance(value, torch.Tensor) and value.is_floating_point()]
            asks = bool(tensors) and any(map(self.is_computed, first)) and not all(map(self.is_computed, tensors))
        elif name == "to" and not any(isinstance(value, (torch.dtype, torch.Tensor)) for value in others):
            asks = False
        elif name.endswith("_like") or name.startswith("new_"):
            asks = kwargs.get("dtype") is None and any(map(self.is_computed, (*first, kwargs.get("input"))))
        else:
            asks = any(map(self.is_computed, (*first, *others)))
        if asks:
            self.ask("autocast", frame)

    def mode_read(self, module: nn.Module, frame: FrameType) -> None:
        """Record that the mode of a module was read, except by a layer of PyTorch about itself."""
        if is_fast(frame.f_code):
            for question in questions_of(frame.f_code, frame.f_locals):
                self.record.questions.setdefault(question, self.place(self.frame_of_model(frame)))
        path = self.paths.get(id(module))
        if path is None or path in self.record.readers:
            return
        is_own = bool(self.stack) and self.stack[-1] is module
        if not is_code_of_torch(frame) or not (is_own and is_plain(module)):
            if frame.f_code.co_filename.endswith("torch/nn/modules/transformer.py"):
                return  # it asks whether it may take the fast path, which is a question of its own
            self.record.readers[path] = self.place(frame)

    def mode_set(self, module: nn.Module) -> None:
        """Record that the mode of a module was set."""
        path = self.paths.get(id(module))
        if path is not None and self.stack:
            self.record.switched[path] = None

    def _profile(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            if event == "c_return" and self._setting is not None and getattr(function, "__name__", "") == "set_state":
                (generator, before), self._setting = self._setting, None
                if not torch.equal(generator.get_state(), before):
                    self.record.rewound = self.record.rewound or self.place_of_user(frame)
            return
        name = getattr(function, "__name__", "")
        if name in _OF_THE_THREAD:
            self.ask(_OF_THE_THREAD[name], frame)
        elif name == "set_autocast_enabled" and self.stack:
            # a region, which the emitted module computes by casts: it must not be called inside of another one
            self.record.questions.setdefault("autocast", self.place_of_user(frame))
        elif name == "manual_seed" and isinstance(getattr(function, "__self__", None), torch.Generator) and self.stack:
            self.record.seeded = self.record.seeded or self.place_of_user(frame)
        elif name == "set_state" and isinstance(getattr(function, "__self__", None), torch.Generator) and self.stack:
            self._setting = function.__self__, function.__self__.get_state()
        elif self.stack and isinstance(getattr(function, "__self__", None), random.Random):
            self.record.foreign = self.record.foreign or self.place_of_user(frame)


@contextmanager
def calls_watched(entered: Callable[[nn.Module], None] = lambda _: None) -> Iterator[list[nn.Module]]:
    """Yield the stack of the modules that are being called in this thread, kept up to date inside the `with` block.

    `entered` is called with each module before it is pushed.
    """
    stack: list[nn.Module] = []
    thread = threading.get_ident()

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            entered(module)
            stack.append(module)

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() == thread and stack:
            stack.pop()

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def direct_calls(model: nn.Module) -> Iterator[None]:
    """Turn `layer.forward(x)` into a call of the layer, for layers of PyTorch without hooks.

    Tracers see only calls of modules, and would lose the mode of such a layer.
    """
    mine = {id(module) for module in model.modules()}
    thread = threading.get_ident()
    classes: dict[type, Any] = {}
    for module in model.modules():
        for base in type(module).__mro__:
            if issubclass(base, MODE_LAYERS) and "forward" in vars(base) and base.__module__.startswith("torch.nn."):
                classes[base] = vars(base)["forward"]

    def rerouted(original: Any, stack: Sequence[nn.Module]) -> Any:
        @functools.wraps(original)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            is_direct = id(self) in mine and threading.get_ident() == thread and not (stack and stack[-1] is self)
            if is_direct and is_plain(self) and not _has_hooks(self):
                return self(*args, **kwargs)
            return original(self, *args, **kwargs)

        return forward

    if not classes:
        yield
        return
    with calls_watched() as stack, ExitStack() as patches:
        for base, original in classes.items():
            patches.enter_context(patched(base, forward=rerouted(original, stack)))
        yield


def _has_hooks(module: nn.Module) -> bool:
    return any(module.__dict__.get(name) for name in ("_forward_hooks", "_forward_pre_hooks"))


@contextmanager
def _profiled(function: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Call a function at each call of a C function; the user's own profiler (cProfile) pauses."""
    known: Any = sys.getprofile()
    if known is not None and not callable(known):
        known.disable()
    sys.setprofile(function)
    try:
        yield
    finally:
        if known is None or callable(known):
            sys.setprofile(known)
        else:
            sys.setprofile(None)
            known.enable()


def is_code_of_torch(frame: FrameType) -> bool:
    """Return whether a frame runs code of PyTorch."""
    file = frame.f_code.co_filename
    return not is_user_file(file) and not file.startswith("<")


def is_plain(module: nn.Module) -> bool:
    """Return whether a call of a module runs the unchanged code of a layer of PyTorch."""
    if "forward" in module.__dict__ or "__call__" in vars(type(module)):
        return False
    # not `type(module).forward`: that of a TorchScript module asks for an instance
    home = getattr(inspect.getattr_static(type(module), "forward"), "__module__", "") or ""
    return home.startswith(("torch.nn.modules.", "torch.ao.nn."))


class _Steps(TorchFunctionMode):
    """Records the functions of PyTorch that a model calls, and its questions about tensors."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Record a call and make it."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        is_getter = name == "__get__"
        if is_getter:
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        frame = sys._getframe(1)
        if name == "_set_grad_enabled" and args and args[0] and self.recorder.stack:
            # values there have a gradient wherever the model is called
            self.recorder.ask("grad", frame_of_user(frame) or frame)
        if name in _OF_A_DTYPE or name in _WRITES:
            self.recorder.ask_dtype(name, args, kwargs, frame)
        if name in _OF_A_TENSOR:
            self.recorder.ask_of_tensor(_OF_A_TENSOR[name], args[0] if args else None, frame)
        is_query = name in _ABOUT or (is_getter and name not in ("T", "mT", "H", "mH", "data", "real", "imag"))
        if self.recorder.stack and not is_query and not frame.f_code.co_filename.startswith(OURS):
            of_layer = _LAYERS in _caller(frame).f_code.co_filename or self._counts(args)
            self.recorder.record.steps.append(_step(name, self.recorder.place_of_user(frame), of_layer, args, kwargs))
        return func(*args, **kwargs)

    def _counts(self, args: tuple[Any, ...]) -> bool:
        """Return whether a normalization counts its batches."""
        module = self.recorder.stack[-1]
        counter = module._buffers.get("num_batches_tracked") if isinstance(module, _BatchNorm) else None
        return counter is not None and bool(args) and args[0] is counter


def _caller(frame: FrameType) -> FrameType:
    """Return the caller of a frame of `torch.nn.functional`; other frames are returned themselves."""
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_FUNCTIONS):
        frame = frame.f_back
    return frame


def _step(name: str, place: Location, of_layer: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    flags: dict[str, Any] = {}
    if name in FLAGS:
        named = {**dict(zip(FLAGS[name], args, strict=False)), **kwargs}
        flags = {key: named.pop(key) for key in _TOLD if key in named and not isinstance(named[key], torch.Tensor)}
        args, kwargs = (*named.values(), *args[len(FLAGS[name]) :]), {}
    leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda item: item is None)
    return Step(name, place, of_layer, tuple(_summary(leaf) for leaf in leaves), flags)


def _summary(leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, str, type(None), torch.dtype)):
        return leaf
    return "tensor" if isinstance(leaf, torch.Tensor) else type(leaf).__qualname__
