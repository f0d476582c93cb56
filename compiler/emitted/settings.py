"""The surroundings of a call that a model may ask about, and the other answer to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import torch
from torch.utils import _pytree as pytree

REMEDY = (
    "make the nn.TransformerEncoder with enable_nested_tensor=False (or set `use_nested_tensor = False` on it) before "
    "transform"
)
"""Of an encoder that makes nested tensors."""


@attrs.frozen
class Setting:
    """Surroundings that differ from those of an ordinary call: gradients on, no autocast, inputs as in the example."""

    question: str
    """What a model asks to learn of them."""
    text: str
    """As in "the model was captured …"."""
    remedy: str
    enter: Callable[[], AbstractContextManager[Any]] = nullcontext
    leaf: Callable[[Any], Any] | None = None
    """Returns an argument as it is in these surroundings, where that differs."""
    changes_numbers: bool = False
    """Whether operators compute otherwise there, so that results differ though nothing was asked."""
    is_decided: bool = False
    """Whether the runs of the original decide, since that on the example may not show the difference."""


def _other_layout(leaf: Any) -> Any:
    """Return an argument with the same numbers in another order in memory, where that is possible."""
    if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided or leaf.dim() < 2:
        return leaf
    if leaf.dim() == 4:
        other = torch.channels_last if leaf.is_contiguous() else torch.contiguous_format
        return leaf.detach().contiguous(memory_format=other).requires_grad_(leaf.requires_grad)
    turned = leaf.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    return turned.requires_grad_(leaf.requires_grad)


def _other_gradient(leaf: Any) -> Any:
    """Return an argument that requires a gradient where the example does not, and the other way round."""
    if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf
    return leaf.detach().requires_grad_(not leaf.requires_grad)


SETTINGS: Mapping[str, Setting] = {
    "no_grad": Setting("grad", "with gradients enabled", "call it with gradients enabled", torch.no_grad),
    "nested": Setting("nested", "with gradients enabled", REMEDY, torch.no_grad, is_decided=True),
    "inference_mode": Setting(
        "inference", "outside of torch.inference_mode()", "use torch.no_grad() in its place", torch.inference_mode
    ),
    "layout": Setting(
        "layout",
        "on inputs that lie in memory as those of the example",
        "make the inputs as those of the example (`.contiguous()`), or transform with such inputs",
        leaf=_other_layout,
    ),
    "requires_grad": Setting(
        "requires_grad",
        "on inputs whose `requires_grad` is that of the example",
        "pass inputs that require gradients where those of the example do, or transform with such inputs",
        leaf=_other_gradient,
    ),
    "autocast": Setting(
        "autocast",
        "outside of torch.autocast",
        "leave the `with torch.autocast(...)` block",
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        changes_numbers=True,
    ),
}
"""Name -> surroundings."""


def settings_of(questions: Mapping[str, Any]) -> list[str]:
    """Return the surroundings in which a model that asks these questions may behave differently."""
    found = [name for name, setting in SETTINGS.items() if setting.question in questions and not setting.is_decided]
    if "requires_grad" in questions and "no_grad" not in found:
        found.insert(0, "no_grad")  # what is computed there requires no gradient
    return found


@contextmanager
def surroundings(names: Sequence[str]) -> Iterator[None]:
    """Put what runs inside of the `with` block into surroundings."""
    if not names:
        yield
        return
    with SETTINGS[names[0]].enter(), surroundings(names[1:]):
        yield


def inputs_in(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments that a call has in surroundings."""
    for name in names:
        if (other := SETTINGS[name].leaf) is not None:
            args, kwargs = pytree.tree_map(other, (args, dict(kwargs)))
    return args, kwargs


def answers_of(name: str, tree: Any) -> tuple[Any, ...]:
    """Return the answers that a model gets about each tensor among its arguments, in the surroundings `name`."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    if name == "layout":
        return tuple(map(_order_in_memory, tensors))
    return tuple(tensor.requires_grad for tensor in tensors) if name == "requires_grad" else ()


def agree(name: str, captured: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Return whether a call gets the answers of the captured one; dimensions of size 1 lie anywhere."""
    if name != "layout" or len(captured) != len(now):
        return captured == now
    return all(
        [d for d in a if d in b or d < 0] == [d for d in b if d in a or d < 0]
        for a, b in zip(captured, now, strict=True)
    )


def _order_in_memory(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the dimensions of sizes above 1 by their strides, the largest first; -1 follows where there are gaps."""
    if tensor.layout is not torch.strided:
        return (-1,)
    sizes, strides = tensor.shape, tensor.stride()
    order = sorted((d for d, n in enumerate(sizes) if n > 1), key=lambda d: (-strides[d], d))
    expected, gaps = 1, False
    for d in reversed(order):
        gaps |= strides[d] != expected
        expected *= sizes[d]
    return (*order, -1) if gaps else tuple(order)
