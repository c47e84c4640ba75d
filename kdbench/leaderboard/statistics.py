"""Intervals, paired tests, ranks and gap closed (decision 12 of the design).

Arrays over seeds have one column per seed; a value that is missing (no such job, a failed job, a value that is not
finite) is NaN. Nothing here knows jobs, tasks or stores.

Seeds that all give the same difference would make every test certain, although a score that counts test examples
cannot show a spread below one of them. Tests therefore take the spread of differences to be at least the
``resolution`` of the metric: what one test example can change. Where that is unknown (0), equal differences are
taken for certain from ``FEWEST_EQUAL`` seeds on, and fewer of them are no test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Values = NDArray[np.float64]
Direction = Literal["max", "min"]

LEVEL = 0.95
"""Of every interval."""
ALPHA = 0.05
"""Level of every test, after correction."""
FEWEST_EQUAL = 3
"""Seeds whose differences must agree to count as certain, where the resolution of the metric is unknown."""
_ROUNDING = 1e-12
"""Differences below this fraction of the compared values are equal up to rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its Student t interval."""

    mean: float
    low: float | None
    """Ends of the interval; None for fewer than two values."""
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean paired difference with its interval and its test."""

    p: float | None
    """Two-sided p-value of the paired t test; None for fewer than two pairs."""


def t_quantile(n: int, level: float = LEVEL) -> float:
    """Factor of the standard error of a mean of ``n`` >= 2 values for a two-sided interval."""
    return float(stdtrit(n - 1, 0.5 + level / 2))


def mean_interval(values: Values, level: float = LEVEL) -> Estimate:
    """Mean of the finite values (n,) with the interval mean ± t(n - 1) s / sqrt(n).

    Raises ``ValueError`` where no value is finite.
    """
    kept = values[np.isfinite(values)]
    n = len(kept)
    if n == 0:
        raise ValueError("an interval needs at least one finite value")
    if n == 1:
        return Estimate(float(kept[0]), None, None, 1)
    if np.ptp(kept) == 0:  # the mean of equal values may differ from them by rounding
        return Estimate(float(kept[0]), float(kept[0]), float(kept[0]), n)
    mean = float(kept.mean())
    half = t_quantile(n, level) * float(kept.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(a: Values, b: Values, resolution: float = 0.0, level: float = LEVEL) -> Difference:
    """Mean of ``a - b`` over the seeds (n,) where both are finite, with its interval and paired t test.

    Both take the spread to be at least ``resolution``. Without a resolution, differences that are all equal have the
    p-value 0 (1 where they are 0), or none for fewer than ``FEWEST_EQUAL`` seeds. Raises ``ValueError`` where the two
    have no seed in common.
    """
    estimate = mean_interval(a - b, level)
    if estimate.n < 2:
        return Difference(estimate.mean, None, None, estimate.n, None)
    _, p = _tests(a[None], b, resolution)
    half = max(estimate.half or 0.0, t_quantile(estimate.n, level) * resolution / math.sqrt(estimate.n))
    known = float(p[0]) if np.isfinite(p[0]) else None
    return Difference(estimate.mean, estimate.mean - half, estimate.mean + half, estimate.n, known)


def _tests(a: Values, b: Values, resolution: float) -> tuple[Values, Values]:
    """Means and two-sided p-values of the paired t tests of each row of ``a`` (m, n) with ``b`` (n,).

    NaN in either is no pair. p is NaN for fewer than two pairs, and where equal differences are no test (see above).
    """
    differences = a - b
    present = np.isfinite(differences)
    counts = present.sum(axis=1)
    filled = np.where(present, differences, 0.0)
    # differences below the rounding of the values themselves are none
    rounding = _ROUNDING * np.where(present, np.maximum(np.abs(a), np.abs(b)), 0.0).max(axis=1, initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = filled.sum(axis=1) / counts
        means = np.where(np.abs(means) <= rounding, 0.0, means)
        residual = np.where(present, differences - means[:, None], 0.0)
        spread = np.sqrt((residual**2).sum(axis=1) / (counts - 1))
        spread = np.maximum(spread, resolution)
        certain = np.where(means == 0, 0.0, np.where(counts >= FEWEST_EQUAL, np.inf, np.nan))
        t = np.where(spread <= rounding, certain, np.abs(means) * np.sqrt(counts) / spread)
        p = 2 * stdtr(np.maximum(counts - 1, 1), -t)
    return means, np.where(counts >= 2, p, np.nan)


def holm(p: Values) -> Values:
    """Holm's step-down adjusted p-values (Holm 1979) of one family (m,); NaN are no members and stay NaN."""
    adjusted = np.full(p.shape, np.nan)
    members = np.flatnonzero(np.isfinite(p))
    order = members[np.argsort(p[members], kind="stable")]
    steps = p[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


class Rank(NamedTuple):
    """The places that the data leave open to a method, 1 being the best."""

    best: int
    """1 + the number of methods that are significantly better."""
    worst: int
    """The number of methods, without those that are significantly worse."""

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}-{self.worst}"


def separated(
    values: Values, direction: Direction, resolution: float = 0.0, alpha: float = ALPHA
) -> list[tuple[int, int] | None]:
    """For each method, how many others are significantly (better, worse); the family of a method are its comparisons.

    ``values`` is (methods, seeds). A method's paired differences to all others, over the seeds that both have, are
    tested with two-sided t tests and corrected by Holm's procedure within that family, so that for each method
    the chance to put any other wrongly above or below it is at most ``alpha``. None for a method that no test
    compares with any other (fewer than two seeds in common), unless it is alone.
    """
    sign = 1.0 if direction == "max" else -1.0
    counts: list[tuple[int, int] | None] = []
    for index in range(len(values)):
        others = np.delete(values, index, axis=0)
        if len(others) == 0:
            counts.append((0, 0))
            continue
        means, p = _tests(sign * others, sign * values[index], resolution)
        if not np.isfinite(p).any():
            counts.append(None)
            continue
        significant = holm(p) < alpha
        counts.append((int((significant & (means > 0)).sum()), int((significant & (means < 0)).sum())))
    return counts


def ranks(
    values: Values,
    complete: NDArray[np.bool_],
    direction: Direction,
    resolution: float = 0.0,
    alpha: float = ALPHA,
) -> list[Rank | None]:
    """The range of ranks of each method (see :func:`separated`); ranges overlap where differences do not separate.

    A method with failed jobs (``complete`` is False) ranks behind every complete one, among the other incomplete
    ones. None where no test is possible, or no value is there.
    """
    result: list[Rank | None] = [None] * len(values)
    offset = 0
    for group in (np.flatnonzero(complete), np.flatnonzero(~complete)):
        with_values = group[np.isfinite(values[group]).any(axis=1)] if len(group) else group
        counts = separated(values[with_values], direction, resolution, alpha)
        for index, count in zip(with_values, counts, strict=True):
            if count is not None:
                better, worse = count
                result[index] = Rank(offset + 1 + better, offset + len(with_values) - worse)
        offset += len(group)
    return result


def separates(
    ceiling: Values, floor: Values, direction: Direction, resolution: float = 0.0, alpha: float = ALPHA
) -> bool:
    """Whether the ceiling is significantly better than the floor: the paired t test at ``alpha``, two-sided.

    A ceiling without any spread counts for all seeds (see :func:`over_seeds`).
    """
    means, p = _tests(over_seeds(ceiling, floor)[None], floor, resolution)
    better = means[0] > 0 if direction == "max" else means[0] < 0
    return bool(better and np.isfinite(p[0]) and p[0] < alpha)


def over_seeds(fixed: Values, like: Values) -> Values:
    """``fixed`` (n,) for the seeds of ``like`` (n,).

    A reference that is the same for all its seeds, as a frozen teacher is, stands for every seed; any other is
    paired with the seeds that it has.
    """
    finite = fixed[np.isfinite(fixed)]
    if len(finite) and np.ptp(finite) <= _ROUNDING * np.abs(finite).max():
        return np.where(np.isfinite(like), finite[0], np.nan)
    return fixed


def gap_closed(
    method: Values, floor: Values, ceiling: Values, direction: Direction, resolution: float = 0.0
) -> Estimate | None:
    """How far from floor (0) to ceiling (1) a method is, with its interval; arrays over seeds (n,).

    The estimate is the ratio of mean differences R = mean(m - f) / mean(c - f) over the seeds that all three have.
    Its interval is Student's, with the variance of the paired linearisation (delta method of a ratio of means): the
    sample variance of (m - f - R (c - f)) / mean(c - f) over the seeds, of which the deviation is at least
    ``resolution`` / mean(c - f) but for floor and ceiling themselves, which are 0 and 1 by definition. None where
    floor and ceiling do not separate (:func:`separates`) or the three have no seed in common.
    """
    if not separates(ceiling, floor, direction, resolution):
        return None
    ceiling = over_seeds(ceiling, floor)
    common = np.isfinite(method) & np.isfinite(floor) & np.isfinite(ceiling)
    n = int(common.sum())
    if n == 0:
        return None
    gain = method[common] - floor[common]
    width = ceiling[common] - floor[common]
    if width.mean() == 0:
        return None
    ratio = float(gain.mean() / width.mean()) + 0.0  # no negative zero
    if n == 1:
        return Estimate(ratio, None, None, 1)
    linear = (gain - ratio * width) / width.mean()
    by_definition = np.array_equal(gain, width) or not gain.any()
    least = 0.0 if by_definition else resolution / abs(float(width.mean()))
    half = t_quantile(n) * max(float(linear.std(ddof=1)), least) / math.sqrt(n)
    return Estimate(ratio, ratio - half, ratio + half, n)
