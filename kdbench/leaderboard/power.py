"""How many seeds it takes: the power of the paired t test, for planning the next run."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import chdtr, stdtrit

from kdbench.leaderboard.statistics import ALPHA, FEWEST_EQUAL, Values

POWER = 0.8
"""Chance to find the difference, if it is what the seeds so far say."""
MOST_SEEDS = 10_000
_Z = np.linspace(-9.0, 9.0, 8001)
_WEIGHTS = np.exp(-(_Z**2) / 2) / math.sqrt(2 * math.pi) * (_Z[1] - _Z[0])
"""Normal deviates and their probabilities."""
_ROUNDING = 1e-12
"""Relative to the largest difference."""
_NOTHING = 1e-15
"""What rounding leaves of the difference of two equal values of the order of 1."""


def power_of_paired_t(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that the two-sided paired t test of ``n`` >= 2 differences is significant at ``alpha``.

    ``effect`` is the mean of the differences by their standard deviation (Cohen's d of pairs). The statistic has the
    noncentral t distribution with n - 1 degrees of freedom and noncentrality effect * sqrt(n) (Cohen 1988, chapter 2).
    The chance to be significant in the wrong direction is part of it, as in every two-sided test.
    """
    df, noncentrality = n - 1, abs(effect) * math.sqrt(n)
    critical = float(stdtrit(df, 1 - alpha / 2))
    # |t| = |z + noncentrality| / s is beyond the critical value where s, independent of z, is small enough. Scipy's
    # own nctdtr and ncfdtr are NaN here and there in their tails.
    smaller = chdtr(df, df * ((_Z + noncentrality) / critical) ** 2)
    return min(float(smaller @ _WEIGHTS), 1.0)


def seeds_to_separate(
    differences: Values,
    alpha: float = ALPHA,
    power: float = POWER,
    at_most: int = MOST_SEEDS,
    resolution: float = 0.0,
) -> int | None:
    """How many seeds in all the paired t test needs to separate two methods that differ as these seeds (n,) say.

    The smallest n >= 2 at which the test at ``alpha`` finds a difference of this mean and this sample deviation (at
    least ``resolution``, see :mod:`kdbench.leaderboard.statistics`) with probability ``power``, rounded up; those
    that there are already count. NaN is a missing pair. None where the mean difference is nil, where it would take
    more than ``at_most`` seeds, and for fewer than two pairs. Differences that are all equal, where the resolution is
    unknown, need the ``FEWEST_EQUAL`` seeds that every test asks for.

    It is a plan and no estimate: mean and spread are taken for true, although five seeds know them poorly, and a
    difference that was chosen for being large is smaller in truth. Raises ``ValueError`` for a level or a power
    outside (0, 1).
    """
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power lie between 0 and 1, not {alpha} and {power}")
    kept = differences[np.isfinite(differences)]
    if len(kept) < 2:
        return None
    mean, largest = float(kept.mean()), float(np.abs(kept).max())
    spread = max(float(kept.std(ddof=1)), resolution)
    if abs(mean) <= max(_ROUNDING * largest, _NOTHING):
        return None
    if spread <= _ROUNDING * largest:
        return FEWEST_EQUAL
    effect = abs(mean) / spread
    low, high = 1, 2  # the power grows with n
    while power_of_paired_t(effect, high, alpha) < power:
        if high >= at_most:
            return None
        low, high = high, min(2 * high, at_most)
    while high - low > 1:
        middle = (low + high) // 2
        if power_of_paired_t(effect, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return high
