"""By simulation: intervals cover what they say, and tests find nothing more often than they say where nothing is.

Every seed of the simulations is fixed: a rate is a number, and does not change from run to run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kdbench.leaderboard import statistics as s
from kdbench.leaderboard.aggregate import rank_intervals
from kdbench.leaderboard.resampling import paired_bootstrap

SEEDS = 5
ROUNDS = 4000
"""The standard error of a coverage of 95 % is then 0.35 %."""

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def lognormal(sigma: float) -> Draw:
    """With mean 0; skewness 0.95 for σ = 0.3, 1.75 for 0.5, 6.2 for 1."""
    return lambda rng, shape: rng.lognormal(0, sigma, shape) - np.exp(sigma**2 / 2)


def accuracy(examples: int, rate: float, between: float = 0.0) -> Draw:
    """Accuracies minus their mean: counts of hits, of which the rate varies from seed to seed by ``between``."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        rates = rng.uniform(rate - between, rate + between, shape)
        return rng.binomial(examples, rates) / examples - rate

    return draw


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(0, 2, shape)


def covered(draw: Draw, rng_seed: int) -> float:
    """How often the t interval over five seeds holds the true mean, which is 0."""
    estimates = [s.mean_interval(row) for row in draw(np.random.default_rng(rng_seed), (ROUNDS, SEEDS))]
    return float(np.mean([e.low is not None and e.high is not None and e.low <= 0 <= e.high for e in estimates]))


@pytest.mark.parametrize(
    "draw",
    [
        normal, lognormal(0.2), lognormal(0.3), accuracy(50, 0.5), accuracy(100, 0.9), accuracy(500, 0.99),
        accuracy(1000, 0.8, 0.03), accuracy(300, 0.95, 0.02),
    ],
    ids=[
        "normal", "lognormal-0.2", "lognormal-0.3", "half-of-50", "0.9-of-100", "0.99-of-500",
        "varying-0.8", "varying-0.95",
    ],
)  # fmt: skip
def test_five_seeds_cover_the_mean(draw: Draw) -> None:
    assert 0.93 <= covered(draw, 1) <= 0.97


def test_where_five_seeds_do_not_cover() -> None:
    """The docstring of ``mean_interval`` says so."""
    assert covered(lognormal(0.5), 1) == pytest.approx(0.92, abs=0.01)
    assert covered(lognormal(1.0), 1) == pytest.approx(0.82, abs=0.015)
    assert covered(accuracy(50, 0.99), 1) == pytest.approx(0.91, abs=0.015)


def test_a_percentile_bootstrap_over_five_seeds_would_not() -> None:
    """Why headline intervals are Student's."""
    rng = np.random.default_rng(2)
    draws = rng.normal(0, 1, (2000, SEEDS))
    zero = np.zeros(SEEDS)
    found = [paired_bootstrap(row, zero, resamples=500) for row in draws]
    assert np.mean([b.low <= 0 <= b.high for b in found]) == pytest.approx(0.84, abs=0.025)


def test_paired_differences_cover_and_stay_silent_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    inside = wrong = 0
    for _ in range(2000):
        shared = rng.normal(0, 1, SEEDS)
        a, b = shared + rng.normal(0, 0.2, SEEDS), shared + rng.normal(0, 0.3, SEEDS)
        found = s.paired_difference(a, b)
        assert found.low is not None
        assert found.high is not None
        assert found.p is not None
        inside += found.low <= 0 <= found.high
        wrong += found.p < s.ALPHA
    assert inside + wrong == 2000, "interval and test agree"
    assert 0.93 <= inside / 2000 <= 0.97


def gap_coverage(
    width: float, true: float, noise: Draw, *, shared: float = 0.0, fixed: bool = False, rounds: int = 2000
) -> tuple[float, float]:
    """How often the interval of gap closed holds the ``true`` one, of those shown, and the share that is not shown."""
    rng = np.random.default_rng(4)
    inside = shown = 0
    for _ in range(rounds):
        floor, method, ceiling = noise(rng, (3, SEEDS)) + rng.normal(0, shared, SEEDS)
        ceiling = np.zeros(SEEDS) if fixed else ceiling
        found = s.gap_closed(0.7 + true * width + method, 0.7 + floor, 0.7 + width + ceiling, "max")
        if found is not None:
            assert found.low is not None
            assert found.high is not None
            shown += 1
            inside += found.low <= true <= found.high
    return inside / shown, 1 - shown / rounds


def small(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(0, 0.005, shape)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("width", "true"), [(0.2, 0.3), (0.1, 0.7), (0.05, 1.2), (0.1, -0.2)])
def test_gap_closed_covers(width: float, true: float, fixed: bool) -> None:
    rate, hidden = gap_coverage(width, true, small, shared=0.01, fixed=fixed)
    assert 0.93 <= rate <= 0.97
    assert hidden == 0


def test_gap_closed_covers_for_counted_examples() -> None:
    for fixed in (False, True):
        rate, _ = gap_coverage(0.1, 0.6, accuracy(500, 0.75), fixed=fixed)
        assert 0.93 <= rate <= 0.97


def test_where_gap_closed_does_not_cover() -> None:
    """The docstring of ``gap_closed`` says so: a gap that barely separates, skewed scores against a fixed ceiling."""
    barely, hidden = gap_coverage(0.02, 1.2, lambda rng, shape: rng.normal(0, 0.008, shape))
    assert 0.1 < hidden < 0.3
    assert 0.91 <= barely <= 0.97
    skewed, _ = gap_coverage(0.1, 0.6, lambda rng, shape: -0.01 * lognormal(0.5)(rng, shape), fixed=True)
    assert 0.91 <= skewed <= 0.95


def false_betters(family: s.Family, noise: Draw, rounds: int, resolution: float = 0.0) -> tuple[float, float]:
    """Of ten equal methods: how often one is put above or below any other, and how often that happens on a board."""
    rng = np.random.default_rng(5)
    one = board = 0.0
    for _ in range(rounds):
        shared = noise(rng, (1, SEEDS)) if not resolution else 0.0  # paired seeds
        pairs = s.separations(shared + noise(rng, (10, SEEDS)), "max", resolution, family=family)
        wrong = pairs.better | pairs.worse
        one += wrong.any(axis=1).mean()
        board += wrong.any()
    return one / rounds, board / rounds


def at_most(level: float, rounds: int) -> float:
    """The level with two standard errors of a rate over independent rounds."""
    return float(level + 2 * np.sqrt(level * (1 - level) / rounds))


def test_of_ten_equal_methods_each_is_misplaced_at_the_stated_level_at_most() -> None:
    one, board = false_betters("method", normal, 2000)
    assert one <= at_most(0.05, 2000)
    assert board == pytest.approx(0.2, abs=0.03), "as the docstring of separations says"
    one, _ = false_betters("method", accuracy(500, 0.9), 1000, resolution=1 / 500)
    assert one <= at_most(0.05, 1000)


def test_of_ten_equal_methods_no_board_as_a_whole_errs_beyond_the_stated_level() -> None:
    one, board = false_betters("board", normal, 2000)
    assert board <= at_most(0.05, 2000)
    assert one <= board


def test_rank_intervals_cover_the_average_rank_of_other_tasks() -> None:
    rng = np.random.default_rng(6)
    methods = 8

    def draw(tasks: int) -> np.ndarray:
        skill = 0.3 * np.arange(methods) + rng.normal(0, 1, (tasks, methods))
        return skill[..., None] + rng.normal(0, 1, (tasks, methods, SEEDS))

    many = draw(20_000).mean(axis=2)
    target = (np.argsort(np.argsort(-many, axis=1), axis=1) + 1).mean(axis=0)
    for tasks, expected in ((3, 0.91), (10, 0.95)):
        inside = []
        for index in range(250):
            found = rank_intervals(draw(tasks), ["max"] * tasks, resamples=400, seed=index)
            inside.append((found.low <= target) & (target <= found.high))
        assert np.mean(inside) == pytest.approx(expected, abs=0.03)
