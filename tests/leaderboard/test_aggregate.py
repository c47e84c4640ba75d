"""Over tasks: ranks by their definition, what failures cost, and what the intervals speak of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdbench.leaderboard.aggregate import Overall, counted_gap, overall, rank_intervals
from kdbench.leaderboard.statistics import Direction, Estimate

NAN = np.nan


def scores(tasks: int, methods: int, seeds: int = 5, noise: float = 0.1, rng_seed: int = 0) -> np.ndarray:
    """(tasks, methods, seeds): the later a method, the better by 1."""
    rng = np.random.default_rng(rng_seed)
    return np.arange(methods)[None, :, None] + noise * rng.standard_normal((tasks, methods, seeds))


def maximal(tasks: int) -> list[Direction]:
    return ["max"] * tasks


def test_average_ranks_are_scipys() -> None:
    values = np.random.default_rng(1).normal(size=(7, 9, 5)).round(1)  # with ties
    result = rank_intervals(values, maximal(7))
    expected = np.mean([stats.rankdata(-row.mean(axis=1).round(12)) for row in values], axis=0)
    assert result.mean == pytest.approx(expected)
    assert (result.low <= result.high).all()
    assert result.tasks.tolist() == [7] * 9


def test_clear_differences_leave_no_doubt() -> None:
    result = rank_intervals(scores(4, 3, noise=0.01), maximal(4))
    assert (result.mean.tolist(), result.low.tolist(), result.high.tolist()) == ([3, 2, 1],) * 3


def test_each_task_has_its_own_direction_and_unit() -> None:
    values = scores(3, 4, noise=0.4)
    turned = values.copy()
    turned[1] = 1000 - 50 * values[1]
    first, other = rank_intervals(values, maximal(3)), rank_intervals(turned, ["max", "min", "max"])
    for name in ("mean", "low", "high"):
        assert getattr(first, name) == pytest.approx(getattr(other, name))


def test_intervals_narrow_with_tasks_and_do_not_depend_on_anything_but_the_seed() -> None:
    values = np.random.default_rng(2).normal(size=(40, 6, 5)) + 0.3 * np.arange(6)[None, :, None]
    few, many = rank_intervals(values[:5], maximal(5)), rank_intervals(values, maximal(40))
    assert (many.high - many.low).mean() < 0.6 * (few.high - few.low).mean()
    state = np.random.get_state()[1].copy()
    again = rank_intervals(values, maximal(40))
    assert (again.low == many.low).all()
    assert (again.high == many.high).all()
    assert (np.random.get_state()[1] == state).all()
    assert (rank_intervals(values, maximal(40), seed=1).low != many.low).any()


def test_one_task_has_the_interval_of_its_seeds() -> None:
    values = scores(1, 3, noise=0.01)
    values[0, 1] = values[0, 2] + 0.05 * np.array([1.0, -1.0, 1.0, -1.0, 0.3])
    result = rank_intervals(values, maximal(1))
    assert (result.low[0], result.high[0]) == (3, 3)
    assert (result.low[1:].tolist(), result.high[1:].tolist()) == ([1, 1], [2, 2])
    alone = rank_intervals(values[:, :, :1], maximal(1))
    assert (alone.low == alone.high).all(), "one seed on one task has nothing to resample"


def test_seeds_that_methods_share_stay_paired() -> None:
    shared = 10 * np.random.default_rng(3).standard_normal(5)
    values = np.stack([np.stack([shared, shared + 1e-3, shared - 1e-3])])
    result = rank_intervals(values, maximal(1))
    assert (result.low.tolist(), result.high.tolist()) == ([2, 1, 3], [2, 1, 3])


def test_a_method_that_is_missing_has_places_among_those_that_are_there_scaled_to_all() -> None:
    values = scores(2, 4, noise=0.0)
    values[1, 2:] = NAN
    result = rank_intervals(values, maximal(2))
    # task 0: 4, 3, 2, 1; task 1: places 2 and 1 of 2 are 1/2 + 1.5 * 2 = 3.5 and 1/2 + 0.5 * 2 = 1.5 of 4
    assert result.mean == pytest.approx([(4 + 3.5) / 2, (3 + 1.5) / 2, 2, 1])
    assert result.tasks.tolist() == [2, 2, 1, 1]
    only = np.full((2, 3, 5), NAN)
    only[0, 0] = 1.0
    alone = rank_intervals(only, maximal(2))
    assert alone.mean[0] == 2, "nothing to compare with: the middle"
    assert np.isnan(alone.mean[1:]).all()
    assert np.isnan(alone.low[1:]).all()


@pytest.mark.parametrize("lost", [1, 4, 5])
def test_failures_rank_behind_whatever_the_other_seeds_say(lost: int) -> None:
    values = scores(3, 4, noise=0.1)
    failed = np.zeros((3, 4), int)
    values[:, 3, :lost] = NAN
    failed[:, 3] = lost
    result = rank_intervals(values, maximal(3), failed=failed)
    assert result.mean.tolist() == [3, 2, 1, 4]
    assert (result.low[3], result.high[3]) == (4, 4)


def test_those_that_failed_are_ordered_by_what_they_have_and_share_the_end_without() -> None:
    values = scores(1, 6, noise=0.0)
    failed = np.array([[0, 1, 2, 5, 5, 0]])
    values[0, 1, :1] = values[0, 2, :2] = NAN
    values[0, 3:5] = NAN
    assert rank_intervals(values, maximal(1), failed=failed).mean.tolist() == [2, 4, 3, 5.5, 5.5, 1]


def test_a_failure_never_improves_an_average_rank() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        values = rng.normal(size=(4, 5, 3))
        before = rank_intervals(values, maximal(4), resamples=10).mean[0]
        task, seed = int(rng.integers(4)), int(rng.integers(3))
        values[task, 0, seed] = NAN
        failed = np.zeros((4, 5), int)
        failed[task, 0] = 1
        assert rank_intervals(values, maximal(4), failed=failed, resamples=10).mean[0] >= before


def test_nothing_to_rank() -> None:
    assert rank_intervals(np.empty((0, 0, 0)), []).mean.shape == (0,)
    assert np.isnan(rank_intervals(np.full((2, 3, 5), NAN), maximal(2)).mean).all()
    assert rank_intervals(np.ones((2, 3, 5)), maximal(2)).mean.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="direction each"):
        rank_intervals(np.ones((2, 3, 5)), maximal(3))
    with pytest.raises(ValueError, match="failed jobs are"):
        rank_intervals(np.ones((2, 3, 5)), maximal(2), failed=np.zeros((2, 2), int))


def gap(mean: float, half: float = 0.1, n: int = 5) -> Estimate:
    return Estimate(mean, mean - half, mean + half, n)


def rows(values: np.ndarray, gaps: list[list[Estimate | None]], failed: np.ndarray | None = None) -> list[Overall]:
    none = np.zeros(values.shape[:2], int)
    return overall(values, gaps, maximal(len(values)), failed=none if failed is None else failed, resamples=200)


def test_mean_gap_is_students_over_tasks() -> None:
    gaps = [[gap(0.5)], [gap(0.7)], [gap(0.9)]]
    (row,) = rows(scores(3, 1), gaps)
    low, high = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem([0.5, 0.7, 0.9]))
    assert row.gap is not None
    assert (row.gap.mean, row.gap.low, row.gap.high) == pytest.approx((0.7, low, high))
    assert (row.gap.n, row.tasks, row.judged, row.solved, row.worse) == (3, 3, 3, 3, 0)
    assert (row.rank, row.rank_low, row.rank_high) == (1, 1, 1)


def test_solved_and_worse_count_what_is_significant() -> None:
    gaps: list[list[Estimate | None]] = [
        [gap(0.5), gap(0.05)],
        [gap(-0.5), gap(0.5)],
        [None, None],  # floor and ceiling do not separate: nobody is judged
    ]
    first, second = rows(scores(3, 2), gaps)
    assert (first.tasks, first.judged, first.solved, first.worse) == (3, 2, 1, 1)
    assert (second.tasks, second.judged, second.solved, second.worse) == (3, 2, 1, 0)
    assert first.gap is not None
    assert (first.gap.mean, first.gap.n) == (pytest.approx(0.0), 2)


def test_failed_jobs_count_as_the_floor_or_worse() -> None:
    assert counted_gap(gap(0.5), 4, 1) == pytest.approx(0.4)
    assert counted_gap(gap(-0.5), 4, 1) == pytest.approx(-0.5)
    assert counted_gap(None, 0, 5) == 0.0
    assert np.isnan(counted_gap(None, 5, 0))
    assert counted_gap(gap(0.5), 5, 0) == 0.5
    values = scores(2, 2)
    values[0, 1, :2] = NAN
    values[1, 1] = NAN
    failed = np.array([[0, 2], [0, 5]])
    whole, broken = rows(values, [[gap(0.9), gap(0.9)], [gap(0.9), None]], failed)
    assert whole.gap is not None
    assert broken.gap is not None
    assert whole.gap.mean == pytest.approx(0.9)
    assert broken.gap.mean == pytest.approx((0.9 * 3 / 5 + 0) / 2)
    assert (broken.solved, broken.judged, broken.failed_jobs, broken.failed_tasks) == (0, 2, 7, 2)
    assert whole.rank == 1
    assert broken.rank == 2


def test_a_method_without_jobs_or_gap_has_none() -> None:
    values = scores(2, 2)
    values[:, 1] = NAN
    there, missing = rows(values, [[None, None], [None, None]])
    assert there.gap is None
    assert there.rank == 1.5, "the only one on its tasks: the middle"
    assert missing == Overall(None, None, None, None, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="task"):
        rows(values, [[None, None]])
