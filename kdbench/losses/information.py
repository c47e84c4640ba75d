"""Lower bounds on the mutual information of paired samples, from a critic's scores of the pairs: pure functions.

A critic f(t, s) is large where t and s belong together. Its scores are matrices with a row for each t and a column for
each s. Computed in float32 (float64 stays float64), in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.losses.logits import widen


def mi_alpha(scores: Tensor, outside: Tensor | None = None, alpha: float = 1.0, *, baseline: float = math.e) -> Tensor:
    """The interpolated bound I_alpha (Poole et al., ICML 2019) with a constant baseline.

    With m_i = mean_j exp f(t_j, s_i), m'_i the same for samples s' that are none of the batch's, and
    M = alpha m + (1 - alpha) a,

        I_alpha = 1 + mean_i [f(t_i, s_i) - log M_i] - mean_i [m'_i / M'_i]

    ``scores`` (K, K) has the pairs on its diagonal, ``outside`` (K, M) the same t against M samples s'. ``alpha`` 1 is
    InfoNCE: the last term is 1, ``outside`` is not needed, the value is at most log K, of low variance and biased where
    there is more information than that. ``alpha`` 0 with a = e is the bound of Nguyen, Wainwright and Jordan: without
    bias for the best critic, 1 + log p(s|t) / p(s), and of high variance. Raises ``ValueError`` for ``alpha`` outside
    [0, 1] and for a missing ``outside``.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is between 0 and 1, not {alpha}")
    scores = widen(scores)
    inside = _log_mixture(_log_mean(scores), alpha, baseline)
    value = (scores.diagonal() - inside).mean()
    if alpha == 1:
        return value
    if outside is None or not outside.shape[1]:
        raise ValueError(f"alpha {alpha} needs samples from outside of the batch")
    normaliser = _log_mean(widen(outside))
    return 1 + value - (normaliser - _log_mixture(normaliser, alpha, baseline)).exp().mean()


def halves_mi_alpha(scores: Tensor, alpha: float = 1.0, *, baseline: float = math.e) -> Tensor:
    """:func:`mi_alpha` of one matrix (B, B) of scores, each half of the batch being outside of the other.

    For ``alpha`` 1 nothing outside is needed, and it is that of the whole batch. Raises ``ValueError`` for B < 2 and
    ``alpha`` < 1.
    """
    if alpha == 1:
        return mi_alpha(scores)
    half = len(scores) // 2
    if not half:
        raise ValueError("half of a batch needs two samples or more")
    first, second = slice(None, half), slice(half, None)
    values = [
        mi_alpha(scores[own, own], scores[own, other], alpha, baseline=baseline)
        for own, other in ((first, second), (second, first))
    ]
    return torch.stack(values).mean()


def _log_mean(scores: Tensor) -> Tensor:
    """Logarithms of the column means of exp(scores); (K, M) to (M,)."""
    return scores.logsumexp(0) - math.log(len(scores))


def _log_mixture(log_mean: Tensor, alpha: float, baseline: float) -> Tensor:
    """log(alpha m + (1 - alpha) a)."""
    if alpha == 0:
        return torch.full_like(log_mean, math.log(baseline))
    if alpha == 1:
        return log_mean
    return torch.logaddexp(log_mean + math.log(alpha), torch.full_like(log_mean, math.log((1 - alpha) * baseline)))


def gaussian_pairs(
    batches: int, size: int, information: float, dimensions: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Pairs whose mutual information is known: t and s (N, K, D) float64, and their correlation rho in [0, 1).

    Standard normal coordinates, each correlated with its own partner alone: I = -D / 2 log(1 - rho^2), which is
    ``information`` in nats.
    """
    rho = math.sqrt(-math.expm1(-2 * information / dimensions))
    t, noise = (torch.randn(batches, size, dimensions, generator=generator, dtype=torch.float64) for _ in range(2))
    return t, rho * t + math.sqrt(1 - rho**2) * noise, rho


def gaussian_log_ratio(t: Tensor, s: Tensor, rho: float) -> Tensor:
    """log p(s|t) / p(s) of all pairs of :func:`gaussian_pairs`; (K, D), (M, D) to (K, M)."""
    distance = (s[None] - rho * t[:, None]).square().sum(-1) / (1 - rho**2)
    dimensions = t.shape[1]
    return (s.square().sum(-1)[None] - distance - dimensions * math.log1p(-(rho**2))) / 2


def estimator_quality(
    alpha: float, information: float, generator: torch.Generator, *, batches: int = 200, size: int = 32, dims: int = 10
) -> dict[str, float]:
    """``bias`` and ``deviation`` of I_alpha in nats, and the ``largest`` estimate minus log K, over ``batches``.

    Gaussian pairs, ``size`` (K) to a batch and as many from outside, with the best critic of the bound for alpha = 0.
    """
    t, s, rho = gaussian_pairs(batches, 2 * size, information, dims, generator)
    estimates = []
    for a, b in zip(t, s, strict=True):
        scores = 1 + gaussian_log_ratio(a[:size], b, rho)
        estimates.append(mi_alpha(scores[:, :size], scores[:, size:], alpha))
    values = torch.stack(estimates)
    return {
        "bias": float(values.mean()) - information,
        "deviation": float(values.std()),
        "largest": float(values.max()) - math.log(size),
    }
