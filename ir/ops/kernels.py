"""Kernels of PyTorch 2.13 with guards: where they refuse what programs hold, or end the process."""

from __future__ import annotations

import torch


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    """Compute on a contiguous copy where weights are trained, and what they scale is not.

    In channels_last the backward of the kernel then ends the process (PyTorch 2.13, on the CPU).
    """
    kernel = torch.ops.aten.group_norm.default
    is_trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weight, bias))
    result: torch.Tensor
    if not is_trained or x.requires_grad or x.is_contiguous():
        result = kernel(x, num_groups, weight, bias, eps, cudnn_enabled)
        return result
    with torch.no_grad():
        result = kernel(x, num_groups, weight, bias, eps, cudnn_enabled)  # for its strides
    return result.copy_(kernel(x.contiguous(), num_groups, weight, bias, eps, cudnn_enabled))


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    cudnn_enabled: bool,
    *,
    follows_mode: bool = True,
    counts_batches: bool = True,
) -> torch.Tensor:
    """Accept a momentum of None, which the kernel refuses: a cumulative average, by the counter of the module.

    Outside of training momentum is unused. In training with None the module updates the running statistics, like its
    counter, and they are not mutated here. The result does not depend on either.

    Refuse an input without a channel dimension: the kernel would read its second size beyond the end of the sizes.
    """
    if x.dim() < 2:
        raise ValueError(f"the input has {x.dim()} dimensions where at least 2 are needed, batch and channels")
    result: torch.Tensor = torch.ops.aten.batch_norm.default(
        x, weight, bias, running_mean, running_var, training, momentum or 0.0, eps, cudnn_enabled
    )
    return result
