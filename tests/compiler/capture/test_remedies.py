"""What an error of the capture advises works: each remedy is followed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from compiler.driver import transform
from ir.errors import CaptureError

X = torch.randn(2, 4)
_LEAVES = re.compile(r"leaf_modules=(\[[^\]]*\])")


class Does(nn.Module):
    """Calls a function with itself and its inputs; has the given children."""

    def __init__(self, function: Any, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)
        self.head = nn.Linear(4, 4)

    def forward(self, *args: Any) -> Any:
        """Call it."""
        return self.function(self, *args)


def refused(model: nn.Module, args: tuple[Any, ...], match: str, **options: Any) -> CaptureError:
    """Return the error of a transformation."""
    with pytest.raises(CaptureError, match=match) as caught:
        transform(model, args, **options)
    return caught.value


def follow(error: CaptureError, model: nn.Module, args: tuple[Any, ...]) -> None:
    """Keep the modules that the remedy names, and compare."""
    found = _LEAVES.search(error.remedy or "")
    assert found is not None, error.remedy
    leaves = re.findall(r"'([^']*)'", found[1])
    result = transform(model, args, leaf_modules=leaves, validate="final")
    assert set(leaves) <= set(result.program.opaques)


def packing(m: Any, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(m.lstm(packed)[0], batch_first=True)[0]


SEQUENCES = torch.randn(2, 3, 4), torch.tensor([3, 2])


def test_a_packed_sequence_is_kept_with_what_packs_and_unpacks_it() -> None:
    encoder = Does(packing, lstm=nn.LSTM(4, 4, batch_first=True))
    model = Does(lambda m, x, n: m.head(m.encoder(x, n)), encoder=encoder)
    follow(refused(model, SEQUENCES, "cannot trace"), model, SEQUENCES)
    # what was advised before leads on, not round in a circle
    error = refused(model, SEQUENCES, "is given or returns a PackedSequence", leaf_modules=["encoder.lstm"])
    follow(error, model, SEQUENCES)


def test_a_packed_sequence_in_the_root_module_is_to_be_moved() -> None:
    model = Does(packing, lstm=nn.LSTM(4, 4, batch_first=True))
    for options in ({}, {"leaf_modules": ["lstm"]}):
        error = refused(model, SEQUENCES, "cannot trace|PackedSequence", **options)
        assert error.remedy is not None and "into a submodule" in error.remedy and "'lstm'" not in error.remedy


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {nn.Linear})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "path"), [(scripted, "inner"), (quantized, "inner.0")])
def test_torchscript_and_quantized_submodules_are_named_and_may_be_kept(
    make: Callable[[], nn.Module], path: str
) -> None:
    model = Does(lambda m, x: m.head(m.inner(x)), inner=make().eval()).eval()
    error = refused(model, (X,), f"`{path}` is a .*, which torch.export cannot trace")
    assert error.location is not None and error.location.module_path == path
    training = model.inner.training
    follow(error, model, (X,))
    assert model.inner.training == training


def test_a_buffer_that_is_none_at_first_is_to_be_a_tensor() -> None:
    def cached(m: Any, x: torch.Tensor) -> torch.Tensor:
        if m.cache is None:
            m.cache = torch.ones(4)
        m.cache = m.cache * 2
        return x * m.cache

    model = Does(cached)
    model.register_buffer("cache", None)
    error = refused(model, (X,), "changes what buffers are: `cache`")
    assert error.remedy is not None and "register_buffer" not in error.remedy
    model.cache = torch.ones(4)
    transform(model, (X,), validate="final")


def test_vmap_is_named_and_may_be_kept() -> None:
    def batched(m: Any, x: torch.Tensor) -> torch.Tensor:
        stacked = {name: torch.stack([p, p * 2]) for name, p in m.head.named_parameters()}
        call = torch.func.functional_call
        return torch.vmap(lambda p, y: call(m.head, p, (y,)), in_dims=(0, None))(stacked, x)

    model = Does(lambda m, x: m.head(m.inner(x)), inner=Does(batched))
    error = refused(model, (X,), "torch.vmap")
    assert "lazy_load_decompositions" not in (error.remedy or "") and error.location is not None
    assert error.location.source.startswith(__file__)
    follow(error, model, (X,))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_forces_are_named_and_may_be_kept() -> None:
    def forces(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(m.head(x).square().sum(), x)
        return -slope

    model = Does(lambda m, x: m.head(m.inner(x)), inner=Does(forces))
    error = refused(model, (X,), "computes gradients")
    assert error.location is not None and error.location.source.startswith(__file__)
    follow(error, model, (X,))


def test_numbers_in_dynamic_shapes_are_sizes() -> None:
    model = Does(lambda m, x: m.head(x))
    error = refused(
        model, (X,), r"dynamic_shapes fixes a size .* args\[0\].shape\[0\]", dynamic_shapes={"args": ({0: -1},)}
    )
    assert error.remedy is not None and 'torch.export.Dim("batch")' in error.remedy
    transform(model, (X,), dynamic_shapes={"args": ({0: torch.export.Dim("batch")},)})


@pytest.mark.parametrize(
    "shapes", [{0: -1}, {"args": ({5: torch.export.Dim("batch")},)}, {"x": {0: 2}}, ({0: 2}, None)]
)
def test_dynamic_shapes_that_do_not_fit_are_said_to(shapes: Any) -> None:
    error = refused(Does(lambda m, x: m.head(x)), (X,), "dynamic_shapes does not fit", dynamic_shapes=shapes)
    assert "export call" not in error.message and "See https" not in error.message


@dataclasses.dataclass
class Output:
    """A result that no pytree knows until it is registered."""

    value: torch.Tensor
    norm: torch.Tensor


def test_a_dataclass_is_to_be_registered() -> None:
    model = Does(lambda m, x: Output(m.head(x), x.norm()))
    error = refused(model, (X,), r"a result of forward is of a class .*\.Output")
    assert error.location is not None and error.location.source.startswith(__file__)
    assert error.remedy is not None and "torch.export.register_dataclass(Output)" in error.remedy
    torch.export.register_dataclass(Output)
    result = transform(model, (X,), validate="final")
    assert isinstance(result.model(X), Output)
