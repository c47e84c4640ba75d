"""Statistics against scipy, and the rules that ranks and gap closed state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kdbench.leaderboard import statistics as s

NAN = math.nan
ROWS = hnp.arrays(np.float64, st.integers(2, 9), elements=st.floats(-100, 100, width=32))


@given(ROWS)
@settings(deadline=None, max_examples=50)
def test_interval_is_students(values: np.ndarray) -> None:
    estimate = s.mean_interval(values)
    if np.ptp(values) < 1e-6:
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.half == pytest.approx((high - low) / 2)


def test_interval_of_one_seed_and_of_missing_ones() -> None:
    assert s.mean_interval(np.array([0.5, NAN, math.inf])) == s.Estimate(0.5, None, None, 1)
    assert s.mean_interval(np.array([0.5, NAN, 0.7])).n == 2
    with pytest.raises(ValueError, match="at least one"):
        s.mean_interval(np.array([NAN]))


def test_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        estimate = s.mean_interval(rng.normal(3.0, 2.0, 5))
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= 3.0 <= estimate.high
    assert inside / 4000 == pytest.approx(0.95, abs=0.01)


@given(ROWS, st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_paired_difference_is_scipys(a: np.ndarray, seed: int) -> None:
    b = a + np.random.default_rng(seed).normal(0.1, 1.0, len(a))
    result = s.paired_difference(a, b)
    assert result.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert result.mean == pytest.approx((a - b).mean())
    reverse = s.paired_difference(b, a)
    assert reverse.p == pytest.approx(result.p)
    assert reverse.mean == pytest.approx(-result.mean)


def test_paired_difference_uses_common_seeds_only() -> None:
    a, b = np.array([1.0, 2.0, 9.0, NAN]), np.array([0.9, 1.7, NAN, 5.0])
    result = s.paired_difference(a, b)
    assert result.n == 2
    assert result.mean == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least one"):
        s.paired_difference(np.array([1.0, NAN]), np.array([NAN, 1.0]))
    assert s.paired_difference(np.array([1.0]), np.array([0.5])) == s.Difference(0.5, None, None, 1, None)


def test_constant_differences() -> None:
    a = np.array([0.1, 0.2, 0.3])
    assert s.paired_difference(a, a).p == 1.0
    assert s.paired_difference(a + 1, a).p == 0.0
    rounded = np.array([0.1 + 0.2, 0.1 + 0.2])
    assert s.paired_difference(rounded, np.array([0.3, 0.3])).p == 1.0
    assert s.paired_difference(a[:2] + 1, a[:2]).p is None, "two seeds that agree are no test"


def test_seeds_that_agree_are_no_more_certain_than_a_test_example() -> None:
    one, other = np.full(3, 0.90), np.full(3, 0.91)
    close = s.paired_difference(other, one, resolution=0.01)
    assert close.p is not None
    assert close.p > 0.05
    assert close.low is not None
    assert close.low < 0 < close.mean == pytest.approx(0.01)
    assert s.ranks(np.stack([one, other]), np.array([True, True]), "max", 0.01) == [(1, 2), (1, 2)]
    assert s.ranks(np.stack([one, other]), np.array([True, True]), "max", 0.001) == [(2, 2), (1, 1)]
    assert s.ranks(np.stack([one, other])[:, :2], np.array([True, True]), "max") == [None, None]
    assert s.separates(other, one, "max", 0.001)
    assert not s.separates(other, one, "max", 0.01)
    # a spread that is seen counts as it is
    noisy = np.array([0.80, 0.95, 0.85])
    assert s.paired_difference(noisy, one, 1e-3) == s.paired_difference(noisy, one)


def test_gap_closed_of_constant_scores_has_an_interval() -> None:
    floor, method, ceiling = np.full(3, 0.5), np.full(3, 0.6), np.full(3, 0.9)
    gap = s.gap_closed(method, floor, ceiling, "max", resolution=0.01)
    assert gap is not None
    assert gap.mean == pytest.approx(0.25)
    assert gap.half == pytest.approx(s.t_quantile(3) * 0.01 / 0.4 / math.sqrt(3))
    for reference, value in ((floor, 0.0), (ceiling, 1.0)):  # by definition, not by measurement
        exact = s.gap_closed(reference, floor, ceiling, "max", resolution=0.01)
        assert exact is not None
        assert (exact.mean, exact.half) == (value, 0.0)


def test_holm_by_hand() -> None:
    # Holm 1979: 0.01 * 4, max(0.04, 0.02 * 3), max(.06, 0.03 * 2), 0.5 * 1
    p = np.array([0.5, 0.01, 0.03, NAN, 0.02])
    assert s.holm(p) == pytest.approx([0.5, 0.04, 0.06, NAN, 0.06], nan_ok=True)
    assert s.holm(np.array([0.6, 0.7])).max() == 1.0
    assert s.holm(np.array([])).shape == (0,)


@given(hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)))
@settings(deadline=None)
def test_holm_lies_between_raw_and_bonferroni(p: np.ndarray) -> None:
    adjusted = s.holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


@pytest.mark.parametrize("m", [1, 2, 5, 10, 45])
def test_holm_is_that_of_statsmodels(m: int) -> None:
    p = np.random.default_rng(m).uniform(0, 1, m) ** 4
    p[m // 2] = p[0]  # ties
    rejected, adjusted, _, _ = multipletests(p, alpha=s.ALPHA, method="holm")
    assert s.holm(p) == pytest.approx(adjusted)
    assert ((s.holm(p) < s.ALPHA) == rejected).all()


def spread(mean: float, noise: float, seed: int, n: int = 5) -> np.ndarray:
    return mean + noise * np.random.default_rng(seed).standard_normal(n)


def test_ranks_share_where_differences_do_not_separate() -> None:
    values = np.stack([spread(0.9, 1e-3, 0), spread(0.8, 0.02, 1), spread(0.8, 0.02, 2), spread(0.1, 1e-3, 3)])
    all_complete = np.ones(4, bool)
    assert s.ranks(values, all_complete, "max") == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert s.ranks(values, all_complete, "min") == [(4, 4), (2, 3), (2, 3), (1, 1)]
    assert s.ranks(-values, all_complete, "min") == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert [str(rank) for rank in s.ranks(values, all_complete, "max")] == ["1", "2-3", "2-3", "4"]


def test_a_noisy_method_may_be_anywhere() -> None:
    # the middle one is separated from nobody, while the last loses to the first
    values = np.stack([spread(0.90, 1e-4, 0), spread(0.89, 0.3, 1), spread(0.88, 1e-4, 2)])
    assert s.ranks(values, np.ones(3, bool), "max") == [(1, 2), (1, 3), (2, 3)]


def test_failed_methods_rank_behind_all_complete_ones() -> None:
    best = spread(0.99, 1e-4, 0)
    best[4] = NAN
    values = np.stack([best, spread(0.5, 1e-4, 1), spread(0.4, 1e-4, 2), np.full(5, NAN)])
    assert s.ranks(values, np.array([False, True, True, False]), "max") == [(3, 3), (1, 1), (2, 2), None]


def test_pairs_are_scipys_tests_corrected_by_statsmodels() -> None:
    values = np.stack([spread(mean, 0.02, index) for index, mean in enumerate([0.5, 0.52, 0.55, 0.58, 0.7])])
    pairs, board = s.separations(values, "max"), s.separations(values, "max", family="board")
    p = np.array([[stats.ttest_rel(a, b).pvalue if a is not b else np.nan for b in values] for a in values])
    higher = values.mean(axis=1)[None] > values.mean(axis=1)[:, None]
    for index in range(5):
        others = np.arange(5) != index
        rejected = multipletests(p[index, others], method="holm")[0]
        assert (pairs.better[index, others] == (rejected & higher[index, others])).all()
        assert (pairs.worse[index, others] == (rejected & ~higher[index, others])).all()
        assert not pairs.better[index, index]
    upper = np.triu_indices(5, 1)
    rejected = multipletests(p[upper], method="holm")[0]
    assert (board.separated[upper] == rejected).all()
    assert (board.separated == board.separated.T).all()
    assert (board.separated <= pairs.separated).all(), "the family of a board finds nothing more"
    assert pairs.separated.any()
    assert (s.separations(-values, "min").better == pairs.better).all()
    assert pairs.tested.sum() == 20


def test_pairs_of_methods_with_missing_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(0.5, 0.05, (12, 6)) + 0.1 * np.arange(12)[:, None]
    values[rng.random(values.shape) < 0.3] = NAN
    pairs = s.separations(values, "max")
    for i, a in enumerate(values):
        p = np.full(12, NAN)
        for j, b in enumerate(values):
            common = np.isfinite(a) & np.isfinite(b)
            if i != j and common.sum() >= 2:
                p[j] = stats.ttest_rel(a[common], b[common]).pvalue
        assert (pairs.tested[i] == np.isfinite(p)).all()
        significant = np.nan_to_num(s.holm(p), nan=1.0) < s.ALPHA
        assert ((pairs.better[i] | pairs.worse[i]) == significant).all()
    assert (pairs.better | pairs.worse).any()
    assert not (pairs.better & pairs.worse).any()
    monkeypatch.setattr(s, "_BLOCK", 5)
    blocks = s.separations(values, "max")
    for name in ("better", "worse", "tested"):
        assert (getattr(blocks, name) == getattr(pairs, name)).all()


def test_rows_are_independent() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(0.85, 0.01, (6, 5))
    values[1, :2], values[2], values[3, 1:] = NAN, NAN, NAN
    floor, ceiling = spread(0.8, 0.01, 0), spread(0.95, 0.01, 1)
    means, gaps = s.mean_intervals(values), s.gaps_closed(values, floor, ceiling, "max")
    assert [estimate and estimate.n for estimate in means] == [5, 3, None, 1, 5, 5]
    assert [estimate and estimate.n for estimate in gaps] == [5, 3, None, 1, 5, 5]
    for row, mean, gap in zip(values, means, gaps, strict=True):
        if mean is not None:
            assert s.mean_interval(row) == mean
            alone = s.gap_closed(row, floor, ceiling, "max")
            assert alone is not None
            assert gap is not None
            assert alone.mean == pytest.approx(gap.mean)
    kept = slice(2, None)
    gain, width = values[1, kept] - floor[kept], (ceiling - floor)[kept]
    linear = (gain - gain.mean() / width.mean() * width) / width.mean()
    assert gaps[1] is not None
    assert gaps[1].mean == pytest.approx(gain.mean() / width.mean())
    assert gaps[1].half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(linear))
    assert s.mean_intervals(np.empty((0, 5))) == []
    assert s.gaps_closed(np.empty((0, 5)), floor, ceiling, "max") == []


def test_families_of_ranks() -> None:
    values = np.stack([spread(mean, 0.02, index) for index, mean in enumerate([0.5, 0.53, 0.56, 0.59, 0.62, 0.65])])
    complete = np.ones(6, bool)
    narrow, wide = s.ranks(values, complete, "max"), s.ranks(values, complete, "max", family="board")
    for one, other in zip(narrow, wide, strict=True):
        assert one is not None
        assert other is not None
        assert other.best <= one.best <= one.worst <= other.worst
    assert narrow != wide


def test_one_seed_gives_no_rank_and_a_lone_method_the_first() -> None:
    assert s.ranks(np.array([[0.5], [0.4]]), np.ones(2, bool), "max") == [None, None]
    assert s.ranks(np.array([[0.5, 0.6]]), np.ones(1, bool), "max") == [(1, 1)]
    assert s.ranks(np.empty((0, 3)), np.ones(0, bool), "max") == []


def test_no_false_better_beyond_the_level() -> None:
    rng = np.random.default_rng(1)
    complete = np.ones(6, bool)
    wrong = sum(s.ranks(rng.normal(0.5, 0.1, (6, 5)), complete, "max")[0] != (1, 6) for _ in range(1500))
    assert wrong / 1500 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1500)


def test_gap_closed_identities() -> None:
    floor, ceiling = spread(0.80, 0.01, 0), spread(0.95, 0.01, 1)
    assert s.gap_closed(floor, floor, ceiling, "max") == s.Estimate(0.0, 0.0, 0.0, 5)
    top = s.gap_closed(ceiling, floor, ceiling, "max")
    assert top is not None
    assert (top.mean, top.low, top.high) == pytest.approx((1, 1, 1))
    half = s.gap_closed((floor + ceiling) / 2, floor, ceiling, "max")
    assert half is not None
    assert (half.mean, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))


def test_gap_closed_does_not_depend_on_scale_or_direction() -> None:
    floor, method, ceiling = spread(0.80, 0.01, 0), spread(0.9, 0.01, 1), spread(0.95, 0.01, 2)
    first = s.gap_closed(method, floor, ceiling, "max")
    other = s.gap_closed(3 - 2 * method, 3 - 2 * floor, 3 - 2 * ceiling, "min")
    assert first is not None
    assert other is not None
    assert (other.mean, other.low, other.high) == pytest.approx((first.mean, first.low, first.high))


def test_gap_closed_with_a_fixed_ceiling_of_other_seeds() -> None:
    floor, method = spread(0.80, 0.01, 0), spread(0.9, 0.01, 1)
    fixed = np.array([NAN, NAN, NAN, NAN, 0.95])
    everywhere = s.gap_closed(method, floor, np.full(5, 0.95), "max")
    assert s.gap_closed(method, floor, fixed, "max") == everywhere
    assert everywhere is not None
    assert everywhere.n == 5
    varying = np.array([NAN, NAN, 0.94, 0.95, 0.96])
    paired = s.gap_closed(method, floor, varying, "max")
    assert paired is not None
    assert paired.n == 3


def test_gap_closed_is_null_where_floor_and_ceiling_do_not_separate() -> None:
    floor, method = spread(0.8, 0.05, 0), spread(0.9, 0.05, 1)
    assert s.gap_closed(method, floor, floor + 1e-3 * spread(0, 10, 2), "max") is None
    assert s.gap_closed(method, floor, floor - 0.1, "max") is None
    assert s.gap_closed(method, floor, np.full(5, NAN), "max") is None
    assert s.gap_closed(method, np.full(5, NAN), floor + 1, "max") is None
    assert s.gap_closed(np.full(5, NAN), floor, floor + 1, "max") is None


def test_gap_closed_interval_covers() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    rounds = 2000
    for _ in range(rounds):
        shared = rng.normal(0, 0.01, 5)
        floor, ceiling = 0.8 + shared + rng.normal(0, 0.005, 5), 0.95 + rng.normal(0, 0.005, 5)
        estimate = s.gap_closed(0.9 + shared + rng.normal(0, 0.005, 5), floor, ceiling, "max")
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= 0.1 / 0.15 <= estimate.high
    assert 0.93 <= inside / rounds <= 0.97


def test_equal_values_have_an_interval_without_width() -> None:
    estimate = s.mean_interval(np.full(3, 0.1))
    assert (estimate.mean, estimate.low, estimate.high) == (0.1, 0.1, 0.1)
