"""The Pareto front against its definition, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdbench.leaderboard.pareto import pareto
from kdbench.leaderboard.statistics import Direction

NAN = np.nan


def front_by_definition(score: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(M,) whom nobody beats in one value without being beaten in the other; more score is better."""
    at_least = (score[None] >= score[:, None]) & (cost[None] <= cost[:, None])
    beats = at_least & ((score[None] > score[:, None]) | (cost[None] < cost[:, None]))
    return ~beats.any(axis=1)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 4)))
@settings(deadline=None, max_examples=200)
def test_the_front_is_whom_nobody_dominates(points: np.ndarray) -> None:
    score, cost = points[:, :1], points[:, 1:]
    front = pareto(score, cost, "max", resamples=3)
    assert (front.on == front_by_definition(score[:, 0], cost[:, 0])).all()
    assert (front.share == front.on).all(), "one seed does not vary"
    assert (pareto(-score, cost, "min", resamples=3).on == front.on).all()


def test_shares_say_how_sure_the_front_is() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.01, 5)
    scores = np.stack([1.2 + shared, 0.8 + shared, 0.7 + shared, 0.85 + rng.normal(0, 0.05, 5), 0.85 + np.zeros(5)])
    costs = np.stack([np.full(5, c) for c in (3.0, 2.0, 2.5, 2.2, 2.2)]) * rng.uniform(0.99, 1.01, 5)
    front = pareto(scores, costs, "max")
    assert front.on[:3].tolist() == [True, True, False]
    assert front.share[:3].tolist() == [1.0, 1.0, 0.0], "paired seeds: what all share changes nothing"
    assert 0 < front.share[3] < 1
    assert front.on[3] != front.on[4]
    assert front.share[3] + front.share[4] == pytest.approx(1.0), "equal costs: one beats the other in each resample"


def test_two_equal_methods_are_each_on_the_front_half_of_the_time() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(200):
        scores = rng.normal(0, 1, (2, 5))
        shares.append(pareto(scores, np.ones((2, 5)), "max", resamples=200).share)
    assert np.mean(shares, axis=0) == pytest.approx([0.5, 0.5], abs=0.08)


def test_who_takes_part() -> None:
    scores = np.array([[0.9, 0.9], [0.8, 0.8], [0.7, NAN], [NAN, NAN], [0.95, 0.95]])
    costs = np.array([[2.0, 2.0], [1.0, 1.0], [0.5, 9.0], [0.1, 0.1], [0.1, 0.1]])
    front = pareto(scores, costs, "max", complete=np.array([True, True, True, False, False]))
    assert front.on.tolist() == [True, True, True, False, False], "a method with failures neither is there nor beats"
    assert np.isnan(front.share).tolist() == [False, False, False, True, True]
    everybody = pareto(scores, costs, "max")
    assert everybody.on.tolist() == [False, False, False, False, True]
    nobody = pareto(np.full((2, 3), NAN), np.ones((2, 3)), "max")
    assert not nobody.on.any()
    assert np.isnan(nobody.share).all()
    assert pareto(np.empty((0, 3)), np.empty((0, 3)), "max").on.shape == (0,)


def test_seeds_without_a_cost_do_not_count() -> None:
    scores, costs = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([[1.0, NAN], [1.0, 1.0]])
    assert pareto(scores, costs, "max").on.tolist() == [True, False]


@pytest.mark.parametrize("direction", ["max", "min"])
def test_repeatable_and_independent_of_order_and_units(direction: Direction) -> None:
    rng = np.random.default_rng(2)
    scores, costs = rng.normal(0, 1, (6, 5)), np.exp(rng.normal(0, 1, (6, 5)))
    first = pareto(scores, costs, direction)
    assert (pareto(scores, costs, direction).share == first.share).all()
    scaled = pareto(7 * scores + 3, costs / 1e9, direction)
    assert (scaled.on == first.on).all()
    assert scaled.share == pytest.approx(first.share, abs=2e-3)
    turned = pareto(scores[::-1], costs[::-1], direction)
    assert (turned.on == first.on[::-1]).all()
    assert turned.share == pytest.approx(first.share[::-1])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="both"):
        pareto(np.ones((2, 3)), np.ones((2, 2)), "max")
    with pytest.raises(ValueError, match="both"):
        pareto(np.ones(3), np.ones(3), "max")


def test_leaving_out_who_is_beaten_on_every_seed_changes_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    for missing in (0.0, 0.1):
        scores, costs = (rng.random((30, 1)) + 0.1 * rng.random((30, 5)) for _ in range(2))
        scores[rng.random(scores.shape) < missing] = np.nan
        fast = pareto(scores, costs, "max", resamples=200)
        with monkeypatch.context() as patch:
            patch.setattr("kdbench.leaderboard.pareto._always_beaten", lambda losses, _: np.zeros(len(losses), bool))
            whole = pareto(scores, costs, "max", resamples=200)
        assert (fast.on == whole.on).all()
        np.testing.assert_array_equal(fast.share, whole.share)
        assert (whole.share == 0).sum() > 5
