"""Diagonal Gaussians over actions: divergence and likelihood, in float32 or better."""

from __future__ import annotations

import math

from torch import Tensor


def gaussian_kl(mean_t: Tensor, std_t: Tensor, mean_s: Tensor, std_s: Tensor) -> Tensor:
    """KL(T || S) of each dimension, in nats: ln(s_S / s_T) + (s_T^2 + (m_T - m_S)^2) / (2 s_S^2) - 1/2.

    All broadcast to (..., A); deviations are positive.
    """
    return (std_s / std_t).log() + (std_t.square() + (mean_t - mean_s).square()) / (2 * std_s.square()) - 0.5


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the dimensions in use of each row of (B, A), then over the rows; ``mask`` (B, A) bool, no row empty."""
    weights = mask.to(values.dtype)
    return ((values * weights).sum(-1) / weights.sum(-1)).mean()


def log_likelihood(actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of each dimension of actions (..., A)."""
    scaled = (actions - mean) / std
    return -0.5 * scaled.square() - std.log() - 0.5 * math.log(2 * math.pi)


def entropy(std: Tensor) -> Tensor:
    """Entropy in nats of deviations (..., A), summed over the dimensions."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
