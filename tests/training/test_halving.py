"""Successive halving and draws from a product space."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kdbench.training.halving import rung_steps, sample_product, successive_halving, survivors, winner

SPACE = {"a": ("x", "y"), "b": (0.0, 0.5, 1.0), "c": ("p", "q")}


@pytest.mark.parametrize(("candidates", "rungs", "keep"), [(16, 4, 0.5), (24, 3, 0.34), (7, 1, 0.5), (5, 3, 0.9)])
def test_the_rungs_spend_what_there_is(candidates, rungs, keep):
    steps = rung_steps(1200, candidates, rungs, keep)
    spent = sum(count * each for count, each in zip(survivors(candidates, rungs, keep), steps, strict=True))
    assert 0.9 * 1200 < spent <= 1200
    assert steps == sorted(steps)


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="10 steps are too few for 8 candidates in 3 rungs"):
        rung_steps(10, 8, 3, 0.5)


def test_the_better_ones_go_on_and_the_best_wins():
    asked = []

    def trial(candidate, steps):
        asked.append((candidate, steps))
        return -abs(candidate - 5) + steps / 1000

    trials = successive_halving(range(8), trial, total=240, rungs=3, keep=0.5)
    assert [steps for _, steps in asked] == [10] * 8 + [20] * 4 + [40] * 2
    assert {candidate for candidate, steps in asked if steps == 20} == {3, 4, 5, 6}
    assert winner(trials).candidate == 5
    assert [(each.candidate, each.steps) for each in trials] == asked


def test_one_that_falls_behind_late_does_not_win():
    trials = successive_halving([0, 1], lambda c, steps: c if steps < 50 else -c, total=200, rungs=2, keep=0.9)
    assert winner(trials).candidate == 0


def test_one_rung_is_random_search():
    trials = successive_halving(range(4), lambda c, steps: float(c == 2), total=100, rungs=1, keep=0.5)
    assert [each.steps for each in trials] == [25] * 4
    assert winner(trials).candidate == 2


def test_points_are_different_and_levels_come_equally_often():
    points = sample_product(SPACE, 6, np.random.default_rng(0))
    assert len({tuple(point.values()) for point in points}) == 6
    assert all(set(point) == set(SPACE) for point in points)
    counts = [Counter(point["a"] for point in sample_product(SPACE, 6, np.random.default_rng(s))) for s in range(20)]
    assert all(abs(count["x"] - count["y"]) <= 2 for count in counts)


def test_a_space_gives_no_more_than_it_has():
    points = sample_product(SPACE, 100, np.random.default_rng(0))
    assert len({tuple(point.values()) for point in points}) == 12 == len(points)
