"""Regularised (aging) evolution over any space with a random draw and a mutation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def aging_evolution(
    initial: Sequence[T],
    mutate: Callable[[T, np.random.Generator], T],
    fitness: Callable[[T], float],
    *,
    sample: int,
    evaluations: int,
    rng: np.random.Generator,
) -> list[tuple[T, float]]:
    """Every individual that was evaluated with its fitness, in order (Real et al., AAAI 2019, algorithm 1).

    The population starts as ``initial``. Until ``evaluations`` individuals, the initial ones included, are evaluated:
    ``sample`` members are drawn without replacement, the best of them is mutated, the child joins the population and
    the oldest member leaves it, however good it is. More fitness is better. Raises ``ValueError`` where the sample is
    larger than the population or no individual is there.
    """
    if not 1 <= sample <= len(initial):
        raise ValueError(f"a sample of {sample} cannot be drawn from a population of {len(initial)}")
    history = [(individual, fitness(individual)) for individual in initial[:evaluations]]
    population = deque(history)
    while len(history) < evaluations:
        drawn = [population[int(i)] for i in rng.permutation(len(population))[:sample]]
        child = mutate(best(drawn)[0], rng)
        history.append((child, fitness(child)))
        population.append(history[-1])
        population.popleft()
    return history


def best(history: Sequence[tuple[T, float]]) -> tuple[T, float]:
    """The individual of the largest fitness, the earliest of equals."""
    return max(history, key=lambda one: one[1])
