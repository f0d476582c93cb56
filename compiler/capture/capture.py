"""The capture of a model: as an exported program, or as an FX graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from compiler.capture.captured import Captured, Traced
from compiler.capture.export import ExportCapture, Stage
from compiler.capture.inputs import (
    bind_inputs,
    check_inputs,
    check_layouts,
    check_names,
    has_example,
    sharing,
    unshared,
)
from compiler.capture.opaque import chosen_modules
from compiler.capture.programs import check_program
from compiler.capture.symbolic import trace_symbolically
from compiler.usercode.copies import structural_copy
from ir.errors import CaptureError, InputError
from ir.program import Program


def _run(_: str, function: Callable[[], Any]) -> Any:
    return function()


def capture(
    model: nn.Module | ExportedProgram | fx.GraphModule | Program,
    example_inputs: tuple[Any, ...] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    leaf_modules: Sequence[Any] = (),
    training: bool | None = None,
    run: Stage = _run,
) -> Captured:
    """Capture a model in its present modes. The model is not changed, even on failure.

    Args:
        model: an `nn.Module`, an `ExportedProgram`, an `fx.GraphModule`, or a `Program`. An `nn.Module` without inputs
            is traced with torch.fx, and the types of its inputs are unknown.
        example_inputs: the positional arguments of one call, or a bare tensor.
        example_kwargs: its keyword arguments.
        dynamic_shapes: as in `torch.export.export`.
        leaf_modules: submodules (objects, classes, paths) that become opaque calls.
        training: the mode in which an `ExportedProgram` was captured, where no layer of its graph tells.
        run: runs each stage ("observe" the real runs, "capture" the rest) under its name.

    Raises:
        InputError: when an argument is wrong.
        CaptureError: when the model cannot be captured without a change of its meaning; the message names module path,
            file and line, the construct and the remedy.
        VerificationError: when a program breaks an invariant of the IR.
    """
    if torch.is_autocast_enabled("cpu") or (torch.cuda.is_available() and torch.is_autocast_enabled("cuda")):
        raise CaptureError(
            "a model cannot be captured inside an autocast region", remedy="leave the `with torch.autocast(...)` block"
        )
    if dynamic_shapes is not None and not isinstance(dynamic_shapes, (dict, list, tuple)):
        raise InputError(
            f"dynamic_shapes must be a dict by parameter name or a tuple, not a {type(dynamic_shapes).__qualname__}",
            remedy='write {"x": {0: torch.export.Dim("batch")}}',
        )
    if training is not None and (not isinstance(training, bool) or not isinstance(model, ExportedProgram)):
        raise InputError(
            f"training={training!r} says the mode of an ExportedProgram: True or False",
            remedy="call train() or eval() of the model before the capture",
        )
    if isinstance(model, (nn.Module, ExportedProgram)):
        check_names(model)
    if isinstance(model, ExportedProgram):
        if dynamic_shapes is not None or leaf_modules:
            raise InputError("an ExportedProgram is captured already: it takes no dynamic_shapes= or leaf_modules=")
        args, kwargs = check_inputs(example_inputs, example_kwargs)
        if example_inputs is None and example_kwargs is None and model.example_inputs is not None:
            args, kwargs = model.example_inputs
        captured = Captured(
            traced=Traced(model),
            has_example=has_example(model, example_inputs, example_kwargs),
            args=args,
            kwargs=kwargs,
            training=training,
        )
        return run("capture", lambda: captured)  # type: ignore[no-any-return]
    if isinstance(model, Program):
        if dynamic_shapes is not None or leaf_modules:
            raise InputError(
                "a Program has its sizes and opaque calls already: it takes no dynamic_shapes= or leaf_modules="
            )
        check_program(model)
        args, kwargs = check_inputs(example_inputs, example_kwargs)
        is_called = example_inputs is not None or example_kwargs is not None
        return Captured(program=model, has_example=is_called, args=args, kwargs=kwargs)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"cannot capture a {type(model).__qualname__}",
            remedy="pass an nn.Module, an ExportedProgram, an fx.GraphModule or a Program",
        )
    if parametrize._cache_enabled:
        raise CaptureError(
            "a model cannot be captured inside of torch.nn.utils.parametrize.cached(): its parametrized weights would "
            "be constants",
            remedy="leave the `with parametrize.cached()` block; the result calls each parametrization once for itself",
        )
    _check_not_compiled(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript module cannot be captured", remedy="pass the nn.Module it was made from")
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise InputError(
            f"`{lazy[0]}` is not initialized yet: it belongs to a lazy module",
            remedy="call the model once on an example before it is transformed",
        )
    args, kwargs = check_inputs(example_inputs, example_kwargs)
    if isinstance(model, fx.GraphModule) and example_inputs is None and example_kwargs is None:
        if dynamic_shapes is not None:
            raise InputError("dynamic_shapes= needs example inputs")
        kept = chosen_modules(model, leaf_modules)
        return run("capture", lambda: Captured(module=model, graph_module=model, opaques=kept))  # type: ignore[no-any-return]
    if example_inputs is None and example_kwargs is None:
        if dynamic_shapes is not None:
            raise InputError("dynamic_shapes= needs example inputs")
        twin = structural_copy(model)
        opaques = chosen_modules(twin, list(chosen_modules(model, leaf_modules)))
        traced = run("capture", lambda: trace_symbolically(twin, opaques.values()))
        return Captured(module=traced, graph_module=traced, is_traced=True, opaques=opaques)
    bound = bind_inputs(model, args, kwargs, dynamic_shapes)
    check_layouts(model, bound.args, bound.kwargs)
    groups = sharing((bound.args, bound.kwargs))
    args, kwargs = unshared((bound.args, bound.kwargs))
    captured = ExportCapture(model, args, kwargs, bound.dynamic_shapes).capture(leaf_modules, run)
    return attrs.evolve(captured, sharing=groups)


def _check_not_compiled(model: nn.Module) -> None:
    """Refuse models and submodules that `torch.compile` returned.

    Raises:
        InputError: when one is.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # slow to import; if it is not, there are none
    for path, module in model.named_modules():
        if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
            continue
        if not path:
            raise InputError(
                "the model was returned by torch.compile and cannot be captured",
                remedy="pass the module it was made from, `model._orig_mod`, and compile the result",
            )
        raise InputError(
            f"`{path}` was returned by torch.compile and cannot be captured",
            remedy=f"put the module it was made from in its place, `model.set_submodule({path!r}, "
            f"model.get_submodule({path!r})._orig_mod)`, and compile the result",
        )
