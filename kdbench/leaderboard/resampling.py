"""Resampling, compiled: examples in pairs, seeds of methods together, and seeds within tasks.

For comparisons on one test set, for ranks and for Pareto fronts; headline intervals are Student's (decision 12 of the
design).

**Seeds** are resampled with n - 1 draws of the n values of a method, and tasks with T - 1 draws of T: the variance of
a mean over so few values is then right on average, where n draws make it (n - 1) / n of that, 20 % too little for five
seeds (McCarthy and Snowden 1985; Rao and Wu 1988). One value has no spread. The k-th draw of every method takes the
same place among its seeds, so that methods that have the same seeds stay paired; a method with fewer seeds draws from
its own. Examples are many: n draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from kdbench.leaderboard.statistics import LEVEL, Values

RESAMPLES = 10_000
"""Of examples."""
SEED_RESAMPLES = 2_000
"""Of seeds and tasks: the share of a tail of 2.5 % is then known to 0.35 %."""


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


@numba.njit(cache=True)
def _draw_means(values: Values, counts: NDArray[np.int64], shares: Values, means: Values) -> None:
    """Fill ``means`` (M,) with means of n - 1 draws (see the module) of the first n = counts[m] ``values`` (M, S).

    ``shares`` (S,) in [0, 1) says where among its values each draw of a method is; NaN where there is no value.
    """
    for m in range(values.shape[0]):
        n = counts[m]
        if n < 2:
            means[m] = values[m, 0] if n == 1 else np.nan
            continue
        total = 0.0
        for k in range(n - 1):
            total += values[m, int(shares[k] * n)]
        means[m] = total / (n - 1)


@numba.njit(cache=True)
def _resampled_means(values: Values, counts: NDArray[np.int64], resamples: int, seed: int) -> Values:
    np.random.seed(seed)  # noqa: NPY002
    methods, seeds = values.shape
    means = np.empty((resamples, methods))
    shares = np.empty(seeds)
    for index in range(resamples):
        for k in range(seeds):
            shares[k] = np.random.random()  # noqa: NPY002
        _draw_means(values, counts, shares, means[index])
    return means


def packed(values: Values) -> tuple[Values, NDArray[np.int64]]:
    """Finite values moved to the front of the last axis, NaN behind them, and how many there are."""
    finite = np.isfinite(values)
    order = np.argsort(~finite, axis=-1, kind="stable")
    moved = np.take_along_axis(np.where(finite, values, np.nan), order, axis=-1)
    return np.ascontiguousarray(moved, dtype=np.float64), finite.sum(axis=-1).astype(np.int64)


def resampled_means(values: Values, *, resamples: int = SEED_RESAMPLES, seed: int = 0) -> Values:
    """Means (resamples, M) of resampled seeds of ``values`` (M, seeds); NaN are no values, nor are infinities.

    Deterministic for a ``seed``; two calls with the same seed and the same places of NaN draw the same seeds. Raises
    ``ValueError`` for another shape.
    """
    if values.ndim != 2:
        raise ValueError(f"values are (methods, seeds), not {values.shape}")
    front, counts = packed(values)
    means: Values = _resampled_means(front, counts, resamples, seed)
    return means


@numba.njit(cache=True)
def _places(means: Values, group: NDArray[np.int64], order: NDArray[np.int64], places: Values) -> int:
    """Fill ``places`` (M,) with ranks, 1 for the least mean, equal ones sharing theirs; NaN where ``group`` is -1.

    Those of group 1 come behind those of group 0, and those of group 2, which have no mean, share the end. Returns
    how many have a place. ``order`` (M,) is working space.
    """
    before = 0
    for level in range(3):
        size = 0
        for m in range(means.shape[0]):
            if group[m] == level:
                order[size] = m
                size += 1
        if level == 2:
            for k in range(size):
                places[order[k]] = before + (size + 1) / 2
            return before + size
        keys = np.empty(size)
        for k in range(size):
            keys[k] = means[order[k]]
        by_mean = np.argsort(keys)
        start = 0
        while start < size:
            end = start + 1
            least = keys[by_mean[start]]
            while end < size and keys[by_mean[end]] - least <= 1e-12 * max(abs(least), abs(keys[by_mean[end]])):
                end += 1
            for k in range(start, end):
                places[order[by_mean[k]]] = before + (start + end + 1) / 2
            start = end
        before += size
    return before


@numba.njit(cache=True)
def _mean_ranks(
    values: Values, counts: NDArray[np.int64], groups: NDArray[np.int64], resamples: int, seed: int
) -> tuple[Values, Values]:
    """Mean ranks over tasks: of the means themselves (M,), and of resampled tasks and seeds (resamples, M)."""
    np.random.seed(seed)  # noqa: NPY002
    tasks, methods, seeds = values.shape
    means, places, shares = np.empty(methods), np.empty(methods), np.empty(seeds)
    order, ranked = np.empty(methods, np.int64), np.empty(methods, np.int64)
    result = np.empty((resamples + 1, methods))
    for index in range(resamples + 1):
        total = result[index]
        total[:] = 0.0
        ranked[:] = 0
        for draw in range(tasks if index == 0 else max(tasks - 1, 1)):
            if index == 0:
                task = draw
                for m in range(methods):
                    means[m] = values[task, m, : counts[task, m]].mean() if counts[task, m] else np.nan
            else:
                task = np.random.randint(0, tasks)  # noqa: NPY002
                for k in range(seeds):
                    shares[k] = np.random.random()  # noqa: NPY002
                _draw_means(values[task], counts[task], shares, means)
            present = _places(means, groups[task], order, places)
            for m in range(methods):
                if groups[task, m] >= 0:
                    total[m] += 0.5 + (places[m] - 0.5) * methods / present
                    ranked[m] += 1
        for m in range(methods):
            total[m] = total[m] / ranked[m] if ranked[m] else np.nan
    return result[0], result[1:]


def resampled_ranks(
    values: Values, group: NDArray[np.int64], *, resamples: int = SEED_RESAMPLES, seed: int = 0
) -> tuple[Values, Values]:
    """Average ranks over tasks (M,), and those of resampled tasks and, within each, seeds (resamples, M).

    ``values`` is (tasks, M, seeds), less being better; ``group`` (tasks, M) is 0 for a method that did all its jobs on
    a task, 1 for one with failed jobs, which comes behind those, 2 for one that has nothing but failed jobs, which
    shares the end, and -1 for one that has no job there. The place r among the m methods of a task counts as
    1/2 + (r - 1/2) M / m. NaN for a method that has no job on any task of a resample.
    """
    front, counts = packed(values)
    mean, resampled = _mean_ranks(front, counts, np.ascontiguousarray(group, np.int64), resamples, seed)
    return mean, resampled
