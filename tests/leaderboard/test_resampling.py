"""The compiled bootstrap against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdbench.leaderboard.resampling import RESAMPLES, paired_bootstrap


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
