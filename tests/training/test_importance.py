"""Functional ANOVA of pipelines, and recommendations for tasks that were left out."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.training.importance import fanova, leave_one_task_out, one_hot, product_grid, variance_shares

NAMES, SIZES = ("a", "b", "c"), (3, 2, 4)


def test_the_grid_has_every_point_once():
    grid = product_grid(SIZES)
    assert grid.shape == (24, 3)
    assert len(np.unique(grid, axis=0)) == 24
    assert one_hot(grid, SIZES).sum(axis=1).tolist() == [3.0] * 24


def test_shares_of_a_sum_are_those_of_its_parts():
    a, b = np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0])
    values = (a[:, None, None] + b[None, :, None]) * np.ones((1, 1, 4))
    shares = variance_shares(values)
    assert shares[0,] == pytest.approx(a.var() / (a.var() + b.var()))
    assert shares[1,] == pytest.approx(b.var() / (a.var() + b.var()))
    assert shares[2,] == shares[0, 1] == pytest.approx(0.0, abs=1e-12)


def test_what_only_two_slots_together_say_is_their_own_share():
    values = np.where(np.indices((2, 2, 3))[:2].sum(axis=0) == 1, 1.0, 0.0)
    shares = variance_shares(values)
    assert shares[0, 1] == pytest.approx(1.0)
    assert shares[0,] == shares[1,] == pytest.approx(0.0, abs=1e-12)
    assert not any(variance_shares(np.full((2, 3), 0.7)).values())


def sampled(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    levels = product_grid(SIZES)[rng.integers(0, 24, count)]
    return levels, levels[:, 2] + 0.3 * levels[:, 0] + 0.05 * rng.normal(size=count)


def test_the_slot_that_decides_is_found_from_few_pipelines():
    shares = fanova(*sampled(40), NAMES, SIZES)
    assert shares["c"] > 0.7 > 0.3 > shares["a"] > shares["b"]
    assert sum(shares.values()) < 1.001
    assert set(shares) == {"a", "b", "c", "a x b", "a x c", "b x c"}


def test_scores_that_do_not_differ_have_no_cause():
    levels, _ = sampled(30)
    assert not any(fanova(levels, np.full(30, 0.5), NAMES, SIZES).values())


def test_what_is_good_elsewhere_is_recommended():
    levels = np.concatenate([product_grid(SIZES)] * 3)
    task = np.repeat(["one", "two", "three"], 24).tolist()
    offset = np.repeat([0.2, 0.3, 0.4], 24)
    ratios = offset + 0.1 * (levels[:, 2] == 1) + 0.02 * levels[:, 1]
    found = leave_one_task_out(task, {"one": [1.0], "two": [2.0], "three": [3.0]}, levels, ratios, SIZES)
    assert set(found) == {"one", "two", "three"}
    for number, name in enumerate(found):
        each = found[name]
        assert each["regret"] < 0.021 < each["random_regret"]
        assert each["best"] == pytest.approx(0.2 + 0.1 * number + 0.12)
        assert levels[int(each["chosen"])][2] == 1
        assert task[int(each["chosen"])] == name


def test_one_task_alone_cannot_be_recommended_for():
    with pytest.raises(ValueError, match="another one"):
        leave_one_task_out(["one"] * 24, {"one": [1.0]}, product_grid(SIZES), np.ones(24), SIZES)
