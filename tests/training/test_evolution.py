"""Aging evolution: what is evaluated, what ages, what is found."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.training.evolution import aging_evolution, best


def step(x: int, rng: np.random.Generator) -> int:
    return x + int(rng.choice([-1, 1]))


def test_it_climbs_and_evaluates_as_often_as_told() -> None:
    calls: list[int] = []

    def fitness(x: int) -> float:
        calls.append(x)
        return -abs(x - 12.0)

    rng = np.random.default_rng(0)
    history = aging_evolution([0] * 5, step, fitness, sample=3, evaluations=200, rng=rng)
    assert len(history) == len(calls) == 200
    assert [x for x, _ in history[:5]] == [0] * 5
    assert best(history) == (12, 0.0)


def test_the_oldest_leaves_however_good_it_is() -> None:
    parents: list[int] = []

    def mutate(x: int, rng: np.random.Generator) -> int:
        parents.append(x)
        return 0

    rng = np.random.default_rng(0)
    aging_evolution([100, 1, 2], mutate, float, sample=3, evaluations=7, rng=rng)
    assert parents == [100, 2, 2, 0]  # 100 leaves after the first child, 1 after the second, 2 after the third


def test_the_parent_is_the_best_of_the_sample() -> None:
    parents: list[int] = []

    def mutate(x: int, rng: np.random.Generator) -> int:
        parents.append(x)
        return x

    aging_evolution([1, 2, 3], mutate, float, sample=3, evaluations=4, rng=np.random.default_rng(0))
    assert parents == [3]


def test_fewer_evaluations_than_the_population() -> None:
    rng = np.random.default_rng(0)
    assert len(aging_evolution([1, 2, 3], step, float, sample=2, evaluations=2, rng=rng)) == 2


def test_a_sample_must_fit() -> None:
    with pytest.raises(ValueError, match="sample of 4"):
        aging_evolution([1, 2, 3], step, float, sample=4, evaluations=5, rng=np.random.default_rng(0))
