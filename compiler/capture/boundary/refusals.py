"""The errors for models whose runs show effects that no graph can express."""

from __future__ import annotations

from torch import nn

from compiler.capture.boundary.questions import Record
from compiler.capture.boundary.runs import Outcome, Twin, type_text
from compiler.capture.errors import example_fails
from compiler.capture.inputs import MAX_NESTING
from compiler.emitted.settings import REMEDY
from compiler.usercode.locations import is_inside
from compiler.usercode.state import Change, location_of_module
from ir.attributes import is_deeper
from ir.errors import CaptureError
from ir.locations import Location


def check_run(outcome: Outcome, record: Record, model: nn.Module, kept: tuple[str, ...]) -> None:
    """Refuse a model whose first run had effects that no graph can express, outside of its opaque modules, `kept`.

    Raises:
        CaptureError: when it failed, changed arguments or parameters, or drew numbers from other generators than
            PyTorch's.
    """
    if outcome.error is not None:
        raise example_fails(outcome.error, model)
    root = location_of_module("", model)
    if is_deeper(outcome.results, MAX_NESTING):
        raise CaptureError(
            f"the result of forward is nested more than {MAX_NESTING} deep",
            location=root,
            remedy="return a list of what it holds",
        )
    if outcome.replaced:
        raise CaptureError(
            f"forward assigns to `.data` of parameter {outcome.replaced[0]!r}, which no graph can express",
            location=root,
            remedy="update parameters outside of forward; keep what changes in a buffer, and write it with copy_()",
        )
    if outcome.rearranged:
        raise CaptureError(
            "forward mutates a list or dict among its arguments, which a graph would not show to the caller",
            location=root,
            remedy="return what is new, or write into the tensors (`copy_`)",
        )
    if not kept and any(before != after for before, after in outcome.tracked):
        raise CaptureError(
            "forward sets whether an input requires gradients, which a graph would not show to the caller",
            location=root,
            remedy="call requires_grad_() on the input before the call, or on its detach() in forward",
        )
    tracking = [name for name in outcome.tracking if not is_inside(name, kept)]
    if tracking:
        raise CaptureError(
            f"forward sets whether the buffer {tracking[0]!r} requires gradients, which the caller would not see of a "
            "graph",
            location=root,
            remedy="make it a parameter, or call requires_grad_() on it before the call",
        )
    asked = [name for name in record.asked_of_buffers if name in outcome.attached and not is_inside(name, kept)]
    if asked:
        raise CaptureError(
            f"forward asks whether the buffer {asked[0]!r} has a gradient, and what it leaves there for the next call "
            "gives another answer",
            location=record.asked_of_buffers[asked[0]],
            remedy="do the same in all calls: `self.state = self.state.detach()` needs no question",
        )
    if outcome.reseeded or record.seeded is not None:
        raise CaptureError(
            "forward seeds a random generator of PyTorch: all calls draw the same numbers, and a graph has no seed",
            location=record.seeded or root,
            remedy="draw the numbers once and keep them in a buffer, or seed outside of forward",
        )
    if record.rewound is not None and not is_inside(record.rewound.module_path, kept):
        raise CaptureError(
            "forward resets a random generator of PyTorch (torch.random.fork_rng, set_rng_state) and draws the same "
            "numbers again, where a graph draws new ones",
            location=record.rewound,
            remedy="draw numbers without it in forward; or keep the module as is with leaf_modules=",
        )
    if outcome.foreign:
        name = outcome.foreign[0]
        raise CaptureError(
            f"forward draws random numbers from {name}, which would be the same ones in every call of a graph",
            location=record.foreign or root,
            remedy="draw them with PyTorch (torch.rand, torch.randint), or pass them in as an input",
        )


def check_weights(first: Outcome, again: Outcome, model: nn.Module, kept: tuple[str, ...]) -> None:
    """Refuse a model whose first call alone mutates parameters.

    Raises:
        CaptureError: naming the parameter.
    """
    for name in first.rewritten:
        if name in again.rewritten or is_inside(name, kept):
            continue
        path = name.rpartition(".")[0]
        raise CaptureError(
            f"the first call mutates parameter {name!r} (an initialization by data?), which no graph keeps",
            location=location_of_module(path, model.get_submodule(path)),
            remedy="call the model once before transform",
        )


def check_resized(twin: Twin, kept: tuple[str, ...]) -> None:
    """Refuse a model whose run changed shape or dtype of a buffer outside of its opaque modules, `kept`.

    Raises:
        CaptureError: naming the buffer.
    """
    for name, module, before, now in twin.resized():
        path = next((path for path, each in twin.module.named_modules() if each is module), "")
        if is_inside(path, kept):
            continue
        if now is None and name in module._parameters:
            raise CaptureError(
                f"forward replaces the buffer {name!r} with a parameter",
                location=location_of_module(path, module),
                remedy="put a tensor there: `parameter.detach()`, or `parameter * 1` to keep its gradient",
            )
        raise CaptureError(
            f"forward gives the buffer {name!r} another shape or dtype: {type_text(before)} became {type_text(now)}",
            location=location_of_module(path, module),
            remedy="let the buffer have the shape and dtype that it gets from __init__ on, or call the model once "
            "before transform, where only the first call does so",
        )


def kept_loss(change: Change) -> CaptureError:
    """Return the error for a model that keeps a loss in an attribute."""
    path, module, name = change
    return CaptureError(
        f"forward keeps a number with a gradient in `{f'{path}.{name}'.lstrip('.')}` (a loss to be added?), which the "
        "result would not have",
        location=location_of_module(path, module),
        remedy="return it beside the result, or keep its detach(), which is to look at only",
    )


def written_elsewhere(name: str, model: nn.Module) -> CaptureError:
    """Return the error for a model that mutates a weight other than through its module."""
    return CaptureError(
        f"forward replaces or mutates {name!r}, but not as an attribute of its module (`.data`, a view or a "
        "list that holds it), which no graph can express",
        location=location_of_module("", model),
        remedy="write to the buffer itself: `self.name.copy_(...)`, and update parameters outside of forward",
    )


def outside_change(names: list[str], model: nn.Module) -> CaptureError:
    """Return the error for a model whose call changes state outside of it."""
    shown = ", ".join(f"`{name}`" for name in names[:5]) + (", …" if len(names) > 5 else "")
    return CaptureError(
        f"a call of the model changes Python state outside of it: {shown}; a graph would not change it",
        location=location_of_module("", model),
        remedy="keep it in a buffer of the module (register_buffer), or take it out of forward and of the hooks",
    )


def tracing_left(names: list[str], model: nn.Module) -> CaptureError:
    """Return the error for a model whose code keeps values from tracing."""
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return CaptureError(
        f"the code of the model keeps tensors of the call in {shown}; those from tracing have been removed",
        location=location_of_module("", model),
        remedy="fill it before the capture (in __init__, or by a call with these sizes), or do not keep tensors there",
    )


def padded_to_zeros(place: Location) -> CaptureError:
    """Return the error for an encoder that makes nested tensors in every call."""
    return CaptureError(
        "an nn.TransformerEncoder without gradients makes nested tensors of its padding mask, and returns zeros at "
        "padded positions, which no graph can express",
        location=place,
        remedy=REMEDY,
    )


def fast_path_differs(problem: str, model: nn.Module) -> CaptureError:
    """Return the error for a model on whose example PyTorch's fast path differs from the ordinary path."""
    return CaptureError(
        f"the fast path of PyTorch's attention, which is taken without gradients, computes something else: {problem}",
        location=location_of_module("", model),
        remedy="call torch.backends.mha.set_fastpath_enabled(False) before transform; or pass a mask of bool that "
        "leaves something in each row",
    )
