"""The user's `torch.autograd.Function`s: a graph has their forward, and takes its derivative as their backward.

That is right only where they are the same. Real calls tell: written to save memory or to run on old versions, they are;
straight-through estimators, gradient reversals and the like are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch.autograd import function as autograd_function
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from compiler.capture.patches import patched
from compiler.usercode.difference import RELATIVE_BOUND
from compiler.usercode.state import random_state_kept
from ir.errors import CaptureError

_FUNCTION = autograd_function._SingleLevelFunction
_KNOWN: Any = torch._C._FunctionBase.__dict__["apply"]
_MOST_CALLS = 4
"""Calls of one function that are compared, of different kinds of arguments."""
_PLAIN = (torch.Tensor, bool, int, float, str, type(None), torch.dtype, torch.device)
_POINTS = (1.0, -10.0)
"""Factors of the arguments: each call is compared at its own numbers, and far away on the other side."""
_GRADIENTS = (1.0, 1e3)
"""Sizes of the gradients that are sent back: what clips or normalizes them treats these differently."""


@attrs.define(eq=False)
class FunctionCalls:
    """Calls of the user's functions in real runs."""

    calls: dict[type, dict[Any, tuple[Any, ...]]] = attrs.field(factory=dict)
    """Function -> kind of arguments -> copies of the first such arguments."""
    problems: dict[type, str] = attrs.field(factory=dict)
    """Function -> in which way its backward is not the derivative of its forward, or an empty text."""

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the calls inside the `with` block."""

        def note(cls: Any, args: tuple[Any, ...]) -> Any:
            calls = self.calls.setdefault(cls, {})
            kind = tuple(map(_kind, pytree.tree_leaves(args)))
            if len(calls) < _MOST_CALLS and kind not in calls:
                calls[kind] = pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), args)
            return _KNOWN.__get__(None, cls)(*args)

        with _applied(note):
            yield

    def compare(self) -> None:
        """Compare the backward of each function with the derivative of its forward, in float64."""
        for cls, calls in self.calls.items():
            if not self.problems.get(cls):
                self.problems[cls] = next(filter(None, (_problem(cls, args) for args in calls.values())), "")
            calls.clear()


@contextmanager
def functions_inlined(problems: Mapping[type, str]) -> Iterator[None]:
    """Run the forward of the user's functions in the place of their calls, where the backward is its derivative.

    Args:
        problems: `FunctionCalls.problems` of real runs.

    Raises:
        CaptureError: when another function is called, or that of a reentrant checkpoint.
    """

    def inline(cls: Any, args: tuple[Any, ...]) -> Any:
        if cls is CheckpointFunction:
            raise CaptureError(
                "forward calls a reentrant torch.utils.checkpoint, whose backward a graph would lose: it gives "
                "gradients only where an argument of the checkpoint requires one",
                remedy="pass use_reentrant=False, or keep the module that calls it as is with leaf_modules=",
            )
        if problems.get(cls, "unknown"):
            raise _refused(cls, problems.get(cls, ""))
        return _forward(cls, args)

    def refuse(cls: Any, *args: Any, **kwargs: Any) -> Any:
        raise _refused(cls, "it is called inside of a transform of torch.func")

    with _applied(inline), patched(autograd_function, custom_function_call=refuse):
        yield


def _refused(cls: type, problem: str) -> CaptureError:
    why = f": {problem}" if problem else ""
    return CaptureError(
        f"the graph would lose the backward of {cls.__qualname__}, which is a torch.autograd.Function{why}",
        remedy="keep the submodule that calls it as is with leaf_modules=, or make it a custom operator "
        "(torch.library.custom_op)",
    )


@contextmanager
def _applied(apply: Callable[[Any, tuple[Any, ...]], Any]) -> Iterator[None]:
    """Give calls of functions that are not PyTorch's to `apply`.

    It stands below `Function.apply`, which code may have bound to a name before: `swish = Swish.apply`.
    """

    def applied(cls: Any, *args: Any) -> Any:
        if cls.__module__.partition(".")[0] == "torch" and cls is not CheckpointFunction:
            return _KNOWN.__get__(None, cls)(*args)
        return apply(cls, args)

    with patched(_FUNCTION, apply=classmethod(applied)):
        yield


class _Context:
    """The context of a forward that runs as ordinary code: nothing is saved for a backward."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


def _forward(cls: Any, args: tuple[Any, ...]) -> Any:
    """Run the forward of a function as ordinary code.

    Raises:
        AttributeError: it marks results as written or without a derivative, which ordinary code cannot.
    """
    context = _Context(args)
    if cls.setup_context is _FUNCTION.setup_context:
        result = cls.forward(context, *args)
    else:
        result = cls.forward(*args)
        cls.setup_context(context, args, result)
    given = {id(x) for x in args}
    return pytree.tree_map_only(torch.Tensor, lambda x: x.view_as(x) if id(x) in given else x, result)


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype, leaf.shape
    return leaf if isinstance(leaf, _PLAIN) else type(leaf)


def _problem(cls: Any, args: tuple[Any, ...]) -> str:
    """Return in which way the backward is not the derivative of the forward, or an empty text."""
    other = next((x for x in pytree.tree_leaves(args) if not isinstance(x, _PLAIN)), None)
    if other is not None:  # a call may change it
        return f"it is given a {type(other).__qualname__}"
    for factor in _POINTS:
        try:
            mine = _gradients(lambda *given: _forward(cls, given), args, factor)
            own = _gradients(cls.apply, args, factor)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            if factor == _POINTS[0]:
                return f"{type(error).__name__} where its forward is compared in float64: {error}"
            continue  # numbers that it does not take
        if len(mine) != len(own) or not all(map(_agree, mine, own)):
            return "it is not the derivative of its forward"
    return ""


def _gradients(call: Callable[..., Any], args: tuple[Any, ...], factor: float) -> list[torch.Tensor | None]:
    """Return the results of a call on numbers in float64, and gradients of its arguments."""
    given = tuple(_widened(x, factor) if isinstance(x, torch.Tensor) else x for x in args)
    wanted = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
    with random_state_kept(), torch.enable_grad():
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(call(*given))
        results = [x for x in leaves if isinstance(x, torch.Tensor)]
        found: list[torch.Tensor | None] = [x.detach() for x in results]
        ends = [x for x in results if x.requires_grad]
        found += [torch.tensor([x.requires_grad for x in results])]
        for size in _GRADIENTS if ends and wanted else ():
            torch.manual_seed(1)
            sent = [torch.randn_like(x) * size for x in ends]
            found += torch.autograd.grad(ends, wanted, sent, retain_graph=True, allow_unused=True)
    return found


def _widened(x: torch.Tensor, factor: float) -> torch.Tensor:
    if not x.is_floating_point() and not x.is_complex():
        return x.clone()
    wide = x.to(torch.float64 if x.is_floating_point() else torch.complex128)
    return (wide * factor).requires_grad_()


def _agree(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b)
    scale = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=RELATIVE_BOUND * scale, equal_nan=True)
