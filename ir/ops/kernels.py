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


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None,
    enable_gqa: bool,
    train_dropout_p: float = 0.0,
) -> torch.Tensor:
    """Refuse another number of values than of keys, and grouped heads where the key has none.

    In four dimensions the kernel on the CPU reads values beyond the end of their memory, and it divides by the number
    of heads, which ends the process, also on fake tensors (PyTorch 2.13).
    """
    if key.dim() > 1 and value.dim() > 1 and key.size(-2) != value.size(-2):
        raise ValueError(f"there are {key.size(-2)} keys and {value.size(-2)} values")
    if enable_gqa and key.dim() > 2 and key.size(-3) == 0 and 0 not in value.shape and 0 not in query.shape[-2:-1]:
        raise ValueError("the key has no heads that the heads of the query could share")
    result: torch.Tensor = torch.ops.aten.scaled_dot_product_attention.default(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return result


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
