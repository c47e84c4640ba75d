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
Family = Literal["method", "board"]
"""Which comparisons are corrected together: those of one method, or all of a board."""

LEVEL = 0.95
"""Of every interval."""
ALPHA = 0.05
"""Level of every test, after correction."""
FEWEST_EQUAL = 3
"""Seeds whose differences must agree to count as certain, where the resolution of the metric is unknown."""
_BLOCK = 256
"""Methods whose tests are made together."""
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

    Of five values it covers, at 95 %: 93 to 97 % for normal values, for accuracies over 50 examples or more (unless
    fewer than one of them is missed: 91 % at 0.99 of 50, as seeds often agree there), and for values as skewed as a
    lognormal with σ = 0.3; it is too short for heavier tails (92 % at σ = 0.5, 82 % at σ = 1).

    Raises ``ValueError`` where no value is finite.
    """
    (estimate,) = mean_intervals(values[None], level)
    if estimate is None:
        raise ValueError("an interval needs at least one finite value")
    return estimate


def mean_intervals(values: Values, level: float = LEVEL) -> list[Estimate | None]:
    """:func:`mean_interval` of each row of ``values`` (M, n); None for a row without a finite value."""
    here = np.isfinite(values)
    counts = here.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(here, values, 0.0).sum(axis=1) / counts
        halves = _half(np.where(here, values - means[:, None], 0.0), counts, level)
    least = np.where(here, values, np.inf).min(axis=1, initial=np.inf)
    equal = least == np.where(here, values, -np.inf).max(axis=1, initial=-np.inf)
    means = np.where(equal, least, means)  # the mean of equal values may differ from them by rounding
    return _estimates(means, np.where(equal, 0.0, halves), counts)


def _half(residuals: Values, counts: NDArray[np.int64], level: float, least: Values | float = 0.0) -> Values:
    """Half the width (M,) of Student's interval: from residuals (M, n), 0 where missing, of deviation >= ``least``."""
    spread = np.maximum(np.sqrt((residuals**2).sum(axis=1) / (counts - 1)), least)
    half: Values = stdtrit(np.maximum(counts - 1, 1), 0.5 + level / 2) * spread / np.sqrt(counts)
    return half


def _estimates(means: Values, halves: Values, counts: NDArray[np.int64]) -> list[Estimate | None]:
    found: list[Estimate | None] = []
    for mean, half, n in zip(means.tolist(), halves.tolist(), counts.tolist(), strict=True):
        if n == 0:
            found.append(None)
        else:
            found.append(Estimate(mean, mean - half, mean + half, n) if n > 1 else Estimate(mean, None, None, 1))
    return found


def paired_difference(a: Values, b: Values, resolution: float = 0.0, level: float = LEVEL) -> Difference:
    """Mean of ``a - b`` over the seeds (n,) where both are finite, with its interval and paired t test.

    Both take the spread to be at least ``resolution``. Without a resolution, differences that are all equal have the
    p-value 0 (1 where they are 0), or none for fewer than ``FEWEST_EQUAL`` seeds. Raises ``ValueError`` where the two
    have no seed in common.
    """
    estimate = mean_interval(a - b, level)
    if estimate.n < 2:
        return Difference(estimate.mean, None, None, estimate.n, None)
    _, p = _test(a, b, resolution)
    half = max(estimate.half or 0.0, t_quantile(estimate.n, level) * resolution / math.sqrt(estimate.n))
    known = p if math.isfinite(p) else None
    return Difference(estimate.mean, estimate.mean - half, estimate.mean + half, estimate.n, known)


def _test(a: Values, b: Values, resolution: float) -> tuple[float, float]:
    """Mean and two-sided p-value of the paired t test of ``a`` with ``b`` (n,), as :func:`_tests`."""
    means, p = _tests(a[None], b[None], resolution)
    return float(means[0, 0]), float(p[0, 0])


def _tests(a: Values, b: Values, resolution: float, level: float = 1.0) -> tuple[Values, Values]:
    """Means of ``a - b`` and two-sided p-values of the paired t tests (k, m) of rows of a (k, n) with rows of b (m, n).

    NaN in either is no pair. p is NaN for fewer than two pairs, and where equal differences are no test (see above);
    p-values beyond ``level`` are given as 1, which spares the time that they take.
    """
    here_a, here_b = np.isfinite(a), np.isfinite(b)
    a, b = np.where(here_a, a, 0.0), np.where(here_b, b, 0.0)
    whole = bool(here_a.all() and here_b.all())
    there_a, there_b = here_a.astype(np.float64), here_b.astype(np.float64)
    counts = there_a @ there_b.T
    # differences below the rounding of the values themselves are none
    largest = [np.abs(values).max(axis=1, initial=0.0) for values in (a, b)]
    rounding = _ROUNDING * np.maximum.outer(*largest)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (a @ there_b.T - there_a @ b.T) / counts
        means = np.where(np.abs(means) <= rounding, 0.0, means)
        squares = np.zeros_like(means)
        for seed in range(a.shape[1]):  # by seeds: all at once would take n times the memory
            residual = np.subtract.outer(a[:, seed], b[:, seed]) - means
            squares += residual**2 if whole else residual**2 * np.outer(there_a[:, seed], there_b[:, seed])
        spread = np.maximum(np.sqrt(squares / (counts - 1)), resolution)
        certain = np.where(means == 0, 0.0, np.where(counts >= FEWEST_EQUAL, np.inf, np.nan))
        t = np.where(spread <= rounding, certain, np.abs(means) * np.sqrt(counts) / spread)
    p = np.where((counts >= 2) & ~np.isnan(t), 1.0, np.nan)
    freedom = np.maximum(np.arange(a.shape[1] + 1) - 1, 1)
    critical = stdtrit(freedom, 1 - level / 2)[counts.astype(np.int64)]
    needed = np.isfinite(p) & (t >= critical * (1 - 1e-9))
    p[needed] = 2 * stdtr(counts[needed] - 1, -t[needed])
    return means, p


def holm(p: Values) -> Values:
    """Holm's step-down adjusted p-values (Holm 1979) of one family (m,), or of each row (families, m).

    NaN are no members and stay NaN.
    """
    order = np.argsort(p, axis=-1, kind="stable")  # NaN last
    ordered = np.take_along_axis(p, order, axis=-1)
    steps = ordered * (np.isfinite(p).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1]))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return adjusted


@dataclass(frozen=True)
class Pairs:
    """Which methods the tests of a board separate; arrays (M, M), the row being the method whose family it is."""

    better: NDArray[np.bool_]
    """[i, j]: in the family of i, j is significantly better than i."""
    worse: NDArray[np.bool_]
    """[i, j]: in the family of i, j is significantly worse than i."""
    tested: NDArray[np.bool_]
    """[i, j]: there is a test of i and j (two seeds in common)."""

    @property
    def separated(self) -> NDArray[np.bool_]:
        """Symmetric: the families of both methods separate the two."""
        return (self.better & self.worse.T) | (self.worse & self.better.T)


class Rank(NamedTuple):
    """The places that the data leave open to a method, 1 being the best."""

    best: int
    """1 + the number of methods that are significantly better."""
    worst: int
    """The number of methods, without those that are significantly worse."""

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}-{self.worst}"


def separations(
    values: Values,
    direction: Direction,
    resolution: float = 0.0,
    alpha: float = ALPHA,
    family: Family = "method",
) -> Pairs:
    """Who is significantly better than whom: (M, M) for ``values`` (M, seeds), see :class:`Pairs`.

    Paired differences over the seeds that both have are tested with two-sided t tests, corrected by Holm's procedure.

    ``family="method"``: the comparisons of each method are a family of their own, so that for each method the chance
    to put any other wrongly above or below it is at most ``alpha`` (marginal confidence sets of ranks: Mogstad,
    Romano, Shaikh, Wilhelm 2024). Over a whole board more goes wrong: of ten equal methods with five seeds, one pair at
    least is separated on a fifth of the boards. ``family="board"``: all pairs are one family, so that this happens on
    at most ``alpha`` of the boards (simultaneous confidence sets); it finds less, with 226 methods and five seeds only
    differences of nineteen deviations, where a method's own family finds six.
    """
    ordered = values if direction == "max" else -values
    m = len(values)
    means, p = np.full((m, m), np.nan), np.full((m, m), np.nan)
    for start in range(0, m, _BLOCK):  # all pairs of a large sweep at once would take gigabytes
        rows, columns = slice(start, start + _BLOCK), slice(start, m)
        found, tested = _tests(ordered[columns], ordered[rows], resolution, alpha)
        means[rows, columns], p[rows, columns] = found.T, tested.T
        means[columns, rows], p[columns, rows] = -found, tested
    np.fill_diagonal(p, np.nan)
    if family == "board":
        upper = np.triu_indices(m, 1)
        adjusted = np.full((m, m), np.nan)
        adjusted[upper] = holm(p[upper])
        adjusted.T[upper] = adjusted[upper]
    else:
        adjusted = holm(p)
    significant = np.nan_to_num(adjusted, nan=1.0) < alpha
    return Pairs(
        better=significant & (np.nan_to_num(means) > 0),
        worse=significant & (np.nan_to_num(means) < 0),
        tested=np.isfinite(p),
    )


def separated(
    values: Values,
    direction: Direction,
    resolution: float = 0.0,
    alpha: float = ALPHA,
    family: Family = "method",
) -> list[tuple[int, int] | None]:
    """For each method, how many others are significantly (better, worse), by :func:`separations`.

    None for a method that no test compares with any other (fewer than two seeds in common), unless it is alone.
    """
    pairs = separations(values, direction, resolution, alpha, family)
    if len(values) == 1:
        return [(0, 0)]
    return [
        (int(better.sum()), int(worse.sum())) if tested.any() else None
        for better, worse, tested in zip(pairs.better, pairs.worse, pairs.tested, strict=True)
    ]


def ranks(
    values: Values,
    complete: NDArray[np.bool_],
    direction: Direction,
    resolution: float = 0.0,
    alpha: float = ALPHA,
    family: Family = "method",
) -> list[Rank | None]:
    """The range of ranks of each method (see :func:`separated`); ranges overlap where differences do not separate.

    A method with failed jobs (``complete`` is False) ranks behind every complete one, among the other incomplete
    ones. None where no test is possible, or no value is there.
    """
    result: list[Rank | None] = [None] * len(values)
    offset = 0
    for group in (np.flatnonzero(complete), np.flatnonzero(~complete)):
        with_values = group[np.isfinite(values[group]).any(axis=1)] if len(group) else group
        counts = separated(values[with_values], direction, resolution, alpha, family)
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
    mean, p = _test(over_seeds(ceiling, floor), floor, resolution)
    better = mean > 0 if direction == "max" else mean < 0
    return better and p < alpha


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

    At five seeds it covers 93 to 97 % where floor and ceiling are clearly apart. Where they barely separate (the test
    finds a gap four times in five), it covers 92 to 97 % of the gaps that are shown, and with a fixed ceiling and
    scores as skewed as a lognormal with σ = 0.5 it covers 92 to 94 %.
    """
    return gaps_closed(method[None], floor, ceiling, direction, resolution)[0]


def gaps_closed(
    values: Values, floor: Values, ceiling: Values, direction: Direction, resolution: float = 0.0
) -> list[Estimate | None]:
    """:func:`gap_closed` of each method of ``values`` (M, seeds)."""
    if not separates(ceiling, floor, direction, resolution):
        return [None] * len(values)
    ceiling = over_seeds(ceiling, floor)
    common = np.isfinite(values) & np.isfinite(floor) & np.isfinite(ceiling)
    counts = common.sum(axis=1)
    gain, width = (np.where(common, over - floor, 0.0) for over in (values, ceiling))
    by_definition = (gain == width).all(axis=1) | ~gain.any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = width.sum(axis=1) / counts
        ratios = gain.sum(axis=1) / counts / below + 0.0  # no negative zero
        linear = (gain - ratios[:, None] * width) / below[:, None]
        linear -= np.where(common, linear.sum(axis=1, keepdims=True) / counts[:, None], 0.0)
        halves = _half(linear, counts, LEVEL, np.where(by_definition, 0.0, resolution / np.abs(below)))
    return _estimates(ratios, halves, np.where(below == 0, 0, counts))
