"""The compiled resampling against scipy's and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdbench.leaderboard.resampling import RESAMPLES, packed, paired_bootstrap, resampled_means, resampled_ranks


def test_interval_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.exponential(1.0, 300)
    b = a * 0.9 + rng.normal(0, 0.2, 300)
    ours = paired_bootstrap(a, b)
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng)
    width = ours.high - ours.low
    assert ours.mean == pytest.approx((a - b).mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_p_value_is_near_the_t_tests() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.15, 1, 200), np.zeros(200)
    assert paired_bootstrap(a, b).p == pytest.approx(stats.ttest_1samp(a, 0).pvalue, abs=0.01)
    assert paired_bootstrap(a + 5, b).p == pytest.approx(2 / (RESAMPLES + 1))
    assert paired_bootstrap(a, a).p == 1.0


def test_symmetric_and_repeatable() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 1, 50), rng.normal(0.3, 1, 50)
    state = np.random.get_state()[1].copy()
    first, again, swapped = paired_bootstrap(a, b), paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert first == again
    assert (swapped.low, swapped.high, swapped.p) == pytest.approx((-first.high, -first.low, first.p))
    assert (np.random.get_state()[1] == state).all()


def test_bad_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired_bootstrap(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="non-empty"):
        paired_bootstrap(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap(np.array([np.nan]), np.ones(1))


def test_resampled_means_have_the_spread_of_a_mean() -> None:
    values = np.random.default_rng(5).normal(0, 1, (3, 5)) * np.array([[1.0], [5.0], [0.0]])
    means = resampled_means(values, resamples=40_000)
    assert means.shape == (40_000, 3)
    assert means.mean(axis=0) == pytest.approx(values.mean(axis=1), abs=0.05)
    assert means.std(axis=0) == pytest.approx(stats.sem(values, axis=1), rel=0.02), "with n draws: 11 % too little"


def test_resampled_means_are_pairs_and_repeat() -> None:
    values = np.random.default_rng(6).normal(0, 1, (1, 5))
    both = np.concatenate([values, 3 * values + 1])
    means = resampled_means(both, resamples=100)
    assert means[:, 1] == pytest.approx(3 * means[:, 0] + 1)
    assert (resampled_means(values, resamples=100)[:, 0] == means[:, 0]).all(), "others do not change what is drawn"
    assert (resampled_means(values, resamples=100, seed=1)[:, 0] != means[:, 0]).any()
    assert len(np.unique(means[:, 0])) > 20


def test_resampled_means_of_missing_seeds() -> None:
    nan = np.nan
    values = np.array([[nan, 1.0, nan, 3.0], [2.0, nan, nan, nan], [nan] * 4, [np.inf, 5.0, nan, nan]])
    means = resampled_means(values, resamples=500)
    assert set(means[:, 0]) == {1.0, 3.0}, "n - 1 of two seeds is one draw"
    assert (means[:, 1] == 2.0).all()
    assert np.isnan(means[:, 2]).all()
    assert (means[:, 3] == 5.0).all()
    front, counts = packed(values)
    assert counts.tolist() == [2, 1, 0, 1]
    assert front[0, :2].tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="methods, seeds"):
        resampled_means(np.ones(3))


def test_ranks_of_groups() -> None:
    values = np.array([[[1.0], [0.0], [0.5], [np.nan], [np.nan], [1.0]]])
    group = np.array([[0, 1, 0, 2, -1, 0]])
    mean, resampled = resampled_ranks(values, group, resamples=20)
    scaled = 0.5 + (np.array([2.5, 4, 1, 5, 2.5]) - 0.5) * 6 / 5
    assert mean[[0, 1, 2, 3, 5]] == pytest.approx(scaled)
    assert np.isnan(mean[4])
    assert resampled.shape == (20, 6)
    assert resampled[:, [0, 1, 2, 3, 5]] == pytest.approx(np.tile(scaled, (20, 1))), "one task and one seed do not vary"


def test_tasks_are_resampled_with_one_draw_less() -> None:
    # the ranks of two methods on four tasks: 1 and 2 by turns; a mean of three draws of four has the spread of a mean
    better = np.array([1.0, 1.0, -1.0, -1.0])
    values = np.stack([better, -better], axis=1)[..., None]
    mean, resampled = resampled_ranks(values, np.zeros((4, 2), np.int64), resamples=20_000)
    assert mean.tolist() == [1.5, 1.5]
    assert resampled.std(axis=0) == pytest.approx([stats.sem([1, 1, 2, 2])] * 2, rel=0.03)
    assert resampled.sum(axis=1) == pytest.approx(3.0)
