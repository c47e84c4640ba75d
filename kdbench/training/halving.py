"""Successive halving: many candidates at little cost, the better ones again at more; one rung is random search."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")
Level = TypeVar("Level", bound=Hashable)


@dataclass(frozen=True)
class Trial(Generic[T]):
    """One candidate at one rung."""

    candidate: T
    steps: int
    score: float
    """More is better."""


def survivors(candidates: int, rungs: int, keep: float) -> list[int]:
    """Candidates of each rung: of those before, a share ``keep`` in (0, 1], rounded up.

    >>> survivors(8, 3, 0.5)
    [8, 4, 2]
    """
    counts = [candidates]
    while len(counts) < rungs:
        counts.append(math.ceil(keep * counts[-1]))
    return counts


def rung_steps(total: int, candidates: int, rungs: int, keep: float) -> list[int]:
    """Steps of one trial at each rung: they grow by 1 / ``keep``, at least 1, and all trials take ``total`` at most.

    Raises ``ValueError`` where ``total`` does not give each trial a step.
    """
    counts = survivors(candidates, rungs, keep)
    weights = [(1 / keep) ** rung for rung in range(rungs)]
    unit = total / sum(count * weight for count, weight in zip(counts, weights, strict=True))
    steps = [math.floor(unit * weight + 1e-9) for weight in weights]
    if steps[0] < 1:
        raise ValueError(f"{total} steps are too few for {candidates} candidates in {rungs} rungs")
    return steps


def successive_halving(
    candidates: Sequence[T], trial: Callable[[T, int], float], *, total: int, rungs: int, keep: float
) -> list[Trial[T]]:
    """All trials in order; the last rung has the finalists (Jamieson and Talwalkar, AISTATS 2016).

    ``trial(candidate, steps)`` trains anew and scores, more is better; of equals the earlier candidate goes on. Raises
    as :func:`rung_steps`.
    """
    trials: list[Trial[T]] = []
    left = list(candidates)
    counts = survivors(len(left), rungs, keep)
    for count, steps in zip(counts, rung_steps(total, len(left), rungs, keep), strict=True):
        left = left[:count]
        rung = [Trial(candidate, steps, trial(candidate, steps)) for candidate in left]
        trials += rung
        left = [each.candidate for each in sorted(rung, key=lambda each: -each.score)]
    return trials


def winner(trials: Sequence[Trial[T]]) -> Trial[T]:
    """The best trial of the last rung, the earliest of equals."""
    last = max(each.steps for each in trials)
    return max((each for each in trials if each.steps == last), key=lambda each: each.score)


def sample_product(
    space: Mapping[str, Sequence[Level]], count: int, rng: np.random.Generator
) -> list[dict[str, Level]]:
    """``count`` different points of a product space, or all of them where there are fewer, in random order.

    Levels are spread evenly: in each block of as many points as a slot has levels, each level comes once, as far as
    points that are there already allow.
    """
    size = math.prod(len(levels) for levels in space.values())
    chosen: dict[tuple[Level, ...], None] = {}
    decks: dict[str, list[Level]] = {name: [] for name in space}
    while len(chosen) < min(count, size):
        point = []
        for name, levels in space.items():
            if not decks[name]:
                decks[name] = [levels[int(i)] for i in rng.permutation(len(levels))]
            point.append(decks[name].pop())
        chosen[tuple(point)] = None
    return [dict(zip(space, point, strict=True)) for point in chosen]
