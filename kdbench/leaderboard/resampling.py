"""The paired bootstrap over examples, compiled: for comparisons on one test set, not for headline intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from kdbench.leaderboard.statistics import LEVEL, Values

RESAMPLES = 10_000


@dataclass(frozen=True)
class Bootstrap:
    """A mean difference over examples with its percentile interval."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided: twice the smaller share of resampled means at or beyond 0, at least 2 / (resamples + 1)."""
    n: int
    """Examples."""


@numba.njit(cache=True)
def _means(values: Values, resamples: int, seed: int) -> Values:
    np.random.seed(seed)  # noqa: NPY002  numba's own generator: the global one of numpy is untouched
    n = values.shape[0]
    means = np.empty(resamples)
    for index in range(resamples):
        total = 0.0
        for _ in range(n):
            total += values[np.random.randint(0, n)]  # noqa: NPY002
        means[index] = total / n
    return means


def paired_bootstrap(
    a: Values, b: Values, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Bootstrap:
    """Mean of ``a - b`` over the examples (n,) with the percentile interval of resampled examples.

    The two are paired by position. The interval speaks of new examples from the same source and of these very
    models; seeds are another source of variation (:func:`kdbench.leaderboard.statistics.paired_difference`).
    Deterministic for a ``seed``. Raises ``ValueError`` for other shapes, no examples or values that are not finite.
    """
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"two equally long, non-empty rows of examples are needed, not {a.shape} and {b.shape}")
    difference = np.ascontiguousarray(a, dtype=np.float64) - np.ascontiguousarray(b, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError("values of examples must be finite")
    means = _means(difference, resamples, seed)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return Bootstrap(float(difference.mean()), float(low), float(high), p, len(difference))
