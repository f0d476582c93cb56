"""Hazards of the fast path that PyTorch's transformer layers take without gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphwright import CaptureError, InputError, transform
from tests.hazards.holding import line_of, refused, same

WORDS = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
PADS = torch.tensor([[False, False, True], [False, False, False]])
PADS_NONE = torch.zeros_like(PADS)
PADS_LEFT = PADS.flip(-1)
ADDED = torch.zeros(2, 3).masked_fill(PADS, float("-inf"))
PADS_ALL = torch.tensor([[True, True, True], [False, False, False]])


class Encoder(nn.Module):
    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor] | None = None, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(_encoder_layer(), 2, **options)
        self.pool = pool

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y: torch.Tensor = self.encoder(x, src_key_padding_mask=mask)
        return y if self.pool is None else self.pool(y)


def _encoder_layer() -> nn.TransformerEncoderLayer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)


@pytest.mark.parametrize("mask", [PADS, PADS_NONE, PADS_LEFT, ADDED])
def test_an_encoder_that_makes_nested_tensors_is_guarded_without_gradients(mask: torch.Tensor) -> None:
    model = Encoder().eval()
    result = transform(model, (WORDS, mask))
    pads = PADS if mask.dtype == torch.bool else ADDED
    for other in (mask, pads):
        same(result.model(WORDS, other), model(WORDS, other))
        for enter in (torch.no_grad, torch.inference_mode):
            with enter(), pytest.raises(InputError, match="with gradients enabled: it asks") as raised:
                result.model(WORDS, other)
            assert line_of(Encoder, "src_key_padding_mask=mask") in str(raised.value)
            assert "enable_nested_tensor=False" in str(raised.value)
    # the remedies
    switched = Encoder().eval()
    switched.encoder.use_nested_tensor = False
    enters: tuple[Callable[[], Any], ...] = (torch.no_grad, torch.inference_mode, torch.enable_grad)
    for model in (Encoder(enable_nested_tensor=False).eval(), switched, switched.requires_grad_(False)):
        result = transform(model, (WORDS, mask))
        assert not result.program.surroundings
        for surroundings in enters:
            with surroundings():
                same(result.model(WORDS, pads), model(WORDS, pads))


@pytest.mark.parametrize("mask", [PADS, PADS_NONE])
def test_an_encoder_of_frozen_weights_that_makes_nested_tensors_is_refused(mask: torch.Tensor) -> None:
    model = Encoder().eval().requires_grad_(False)
    place = line_of(Encoder, "src_key_padding_mask=mask")
    refused(model, WORDS, mask, message="returns zeros at padded positions", place=place)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_whose_padded_positions_nobody_sees_is_not_guarded() -> None:
    for model in (Encoder(lambda y: y[:, 0]).eval(), Encoder(lambda y: y[:, 0]).eval().requires_grad_(False)):
        result = transform(model, (WORDS, PADS))
        assert not result.program.surroundings
        with torch.no_grad():
            same(result.model(WORDS, PADS), model(WORDS, PADS))


@pytest.mark.parametrize("model", [Encoder(), Encoder().encoder, _encoder_layer(), nn.Sequential(_encoder_layer())])
def test_transformers_without_a_padding_mask_work_without_gradients(model: nn.Module) -> None:
    for mode in (False, True):
        result = transform(model.train(mode), (WORDS,))
        assert not result.program.surroundings and not result.program.mode_locked
        for enter in (torch.no_grad, torch.inference_mode):
            with enter():
                same(result.model(WORDS), model(WORDS))
    layer = _encoder_layer().eval()
    result = transform(layer, (WORDS,), {"src_key_padding_mask": PADS})
    assert not result.program.surroundings
    with torch.no_grad():
        same(result.model(WORDS, src_key_padding_mask=PADS), layer(WORDS, src_key_padding_mask=PADS))


def test_an_encoder_captured_in_training_is_not_put_into_eval_mode_with_a_padding_mask() -> None:
    model = Encoder().train()
    result = transform(model, (WORDS, PADS))
    with torch.no_grad():
        same(result.model(WORDS, PADS), model(WORDS, PADS))
    with pytest.raises(InputError, match="returns zeros at padded positions") as raised:
        result.model.eval()
    assert "enable_nested_tensor=False" in str(raised.value)
    model = Encoder(enable_nested_tensor=False).train()  # the remedy
    result = transform(model, (WORDS, PADS))
    with torch.no_grad():
        same(result.model.eval()(WORDS, PADS), model.eval()(WORDS, PADS))


@pytest.mark.parametrize("mask", [PADS_ALL, torch.tensor([[0.0, 0.5, -0.5], [0.0, 1.0, 0.0]])])
def test_masks_that_the_fast_path_takes_otherwise(mask: torch.Tensor) -> None:
    layer = _encoder_layer().eval()
    named = {"src_key_padding_mask": mask}
    result = transform(layer, (WORDS,), named)
    same(result.model(WORDS, **named), layer(WORDS, **named))
    with torch.no_grad(), pytest.raises(InputError, match="with gradients enabled: it asks"):
        result.model(WORDS, **named)
    layer.requires_grad_(False)
    with pytest.raises(CaptureError, match="the fast path of PyTorch's attention"):
        transform(layer, (WORDS,), named)
    torch.backends.mha.set_fastpath_enabled(False)  # the remedy
    try:
        same(transform(layer, (WORDS,), named).model(WORDS, **named), layer(WORDS, **named))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_an_encoder_that_is_kept_as_it_is_takes_its_fast_path() -> None:
    model = Encoder().eval()
    result = transform(model, (WORDS, PADS), leaf_modules=["encoder"])
    assert not result.program.surroundings
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        same(result.model(WORDS, PADS), model(WORDS, PADS))
