"""The samples that PyTorch ships for its operators and modules, each as a module and the inputs of a call."""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import attrs
import torch
from hypothesis import settings
from torch import nn
from torch.utils import _pytree as pytree

from compiler.equality.observation import seeded
from fuzz.programs.observation import quiet

PER_OPERATOR = 5
"""Samples of one operator; some have hundreds, most of them alike."""
PER_MODULE = 10
"""Samples of one module in each mode."""
IN_PLACE = 2
"""Of these, those that are called in place as well."""
_DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)


@attrs.frozen(eq=False)
class Sample:
    """A call of an operator or a module."""

    name: str
    is_module: bool
    make: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
    """Returns a module with its positional and keyword arguments; the same ones each time."""


class Call(nn.Module):
    """Calls an operator: its tensors are the inputs, all other arguments are constants."""

    def __init__(
        self, operator: Callable[..., Any], arguments: Any, before: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__()
        leaves, self.spec = pytree.tree_flatten(arguments)
        self.constants = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        self.places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        self.operator = operator
        self.before = before

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        (first, *rest), kwargs = pytree.tree_unflatten(leaves, self.spec)
        if self.before is None:
            return self.operator(first, *rest, **kwargs)
        first = self.before(first)
        self.operator(first, *rest, **kwargs)
        return first


def _copied(x: torch.Tensor) -> torch.Tensor:
    return x * 1


def _transposed(x: torch.Tensor) -> torch.Tensor:
    # of the shape that the operator takes, and its dimensions lie in memory the other way round
    backwards = range(x.ndim)[::-1]
    return x.permute(*backwards).clone(memory_format=torch.contiguous_format).permute(*backwards)


@cache
def _databases() -> tuple[list[Any], list[Any]]:
    """Import them, which takes seconds, and undo what else that does."""
    profile = settings.get_current_profile_name()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.testing._internal.common_methods_invocations as invocations
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
    settings.load_profile(profile)
    # they seed the generator in each call, which is not what is to be traced
    vars(invocations)["wrapper_set_seed"] = lambda operator, *args, **kwargs: operator(*args, **kwargs)
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    return op_db, module_db


def operator_samples(select: Callable[[str], bool]) -> Iterator[Sample]:
    """Yield the samples of the operators whose names are selected: some from each end of an operator's list."""
    for number, op in enumerate(_databases()[0]):
        dtype = next((d for d in (*_DTYPES, *op.dtypes) if d in op.dtypes), None)
        if dtype is None:
            continue  # for GPUs only
        name = ".".join(filter(None, (op.name, op.variant_test_name)))
        calls = [f"{name}[{i}]" for i in range(PER_OPERATOR)]
        in_place = op.get_inplace()
        if in_place is not None:
            calls += [
                f"{name}[{i}] in place{how}" for i in range(IN_PLACE) for how in ("", " through a transposed view")
            ]
        chosen = [call for call in calls if select(call)]
        if not chosen:
            continue
        with quiet(), seeded(number):
            try:
                found = list(op.sample_inputs("cpu", dtype))
            except NotImplementedError:
                continue
        found = _spread(found, PER_OPERATOR)
        for call in chosen:
            index = int(call.rpartition("[")[2].partition("]")[0])
            if index >= len(found):
                continue
            sample = found[index]
            arguments = ((sample.input, *sample.args), sample.kwargs)
            if call.endswith("]"):
                yield _call(call, Call(op.op, arguments), arguments)
            elif isinstance(sample.input, torch.Tensor):
                before = _transposed if call.endswith("view") else _copied
                yield _call(call, Call(in_place, arguments, before), arguments)


def _spread(found: list[Any], count: int) -> list[Any]:
    """Return some of a list, from the whole of it."""
    return [found[i * len(found) // count] for i in range(count)] if len(found) > count else found


def _call(name: str, module: Call, arguments: Any) -> Sample:
    tensors = [leaf.detach() for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    return Sample(name, False, lambda: (module, tuple(tensor.clone() for tensor in tensors), {}))


def module_samples(select: Callable[[str], bool]) -> Iterator[Sample]:
    """Yield the samples of the modules whose names are selected, in training and in eval mode."""
    for number, info in enumerate(_databases()[1]):
        if torch.float32 not in info.dtypes or info.is_lazy:
            continue
        for training in (False, True):
            mode = "training" if training else "eval"
            with quiet(), seeded(number):
                found = info.module_inputs_func(
                    info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
                )
            for i, sample in enumerate(_spread(found, PER_MODULE)):
                name = f"nn.{info.module_cls.__name__}[{i}] in {mode}"
                if sample.forward_input is not None and select(name):
                    yield Sample(name, True, partial(_module, info, sample, number, training))


def _module(info: Any, sample: Any, seed: int, training: bool) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    with seeded(seed), quiet():
        module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, torch.Tensor.detach, (sample.forward_input.args, sample.forward_input.kwargs)
    )
    return module.train(training), *copy.deepcopy((args, kwargs))


def number_of(name: str, count: int) -> int:
    """Return which of `count` parts a sample belongs to: the same in each run and process."""
    return zlib.crc32(name.encode()) % count
