"""Losses on vectors of positions (Li et al. 2025, SeqPE): which position is near, and what is far out.

Vectors are (..., W); with ``heads`` they are split into that many parts of equal width, and every part is asked alone.
All computation is in float32 or wider.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(vectors: Tensor, heads: int) -> Tensor:
    """(..., N, W) to (..., heads, N, W / heads) in float32 or wider."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return wide.reshape(*wide.shape[:-1], heads, -1).transpose(-2, -3)


def nearness_logits(pivots: Tensor, candidates: Tensor, heads: int = 1) -> Tensor:
    """Dot products (B, heads, N) of pivots (B, W) with their candidates (B, N, W)."""
    return (split_heads(pivots[:, None], heads) @ split_heads(candidates, heads).transpose(-1, -2)).squeeze(-2)


def position_contrast(pivots: Tensor, candidates: Tensor, nearest: Tensor, *, heads: int = 1) -> Tensor:
    """Mean cross-entropy of naming the nearest candidate (B,) by dot products.

    Pivots (B, W), candidates (B, N, W). Each head is asked alone, and the mean is over all of them.
    """
    logits = nearness_logits(pivots, candidates, heads)
    return F.cross_entropy(logits.flatten(0, 1), nearest.repeat_interleave(heads))


def position_transfer(
    inside: Tensor,
    outside: Tensor,
    *,
    heads: int = 1,
    scale: float = 1.0,
    metric: Literal["kl", "mse"] = "kl",
) -> Tensor:
    """How far the similarities within a shifted window are from those of the same places in training (B, n, W).

    A and B are the log-softmax rows of ``scale E E^T`` of ``inside`` (the teacher, detached) and of ``outside``. ``kl``
    is KL(A||B) + KL(B||A), ``mse`` the squared difference of A and B; the mean is over all elements of the matrices,
    heads and windows, as in the authors' code. 0 where dot products depend on differences of positions alone.
    """
    parts = [split_heads(part, heads) for part in (inside.detach(), outside)]
    a, b = (torch.log_softmax(scale * part @ part.transpose(-1, -2), dim=-1) for part in parts)
    if metric == "mse":
        return F.mse_loss(b, a)
    return ((a.exp() - b.exp()) * (a - b)).mean()
