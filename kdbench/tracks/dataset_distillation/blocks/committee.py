"""Committees: who takes part, and with what weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def voting_weights(priors: Sequence[float], temperature: float) -> tuple[float, ...]:
    """softmax(prior / temperature), summing to 1; priors in percent points.

    Equal priors vote equally, a temperature near 0 lets the best one alone.
    """
    scaled = np.asarray(priors, dtype=np.float64) / temperature
    shares = np.exp(scaled - scaled.max())
    return tuple(float(share) for share in shares / shares.sum())


def groups(members: int, size: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """``count`` groups of ``size`` of the members: all of them in turn where ``count`` is a multiple of how many there
    are, in random order, and random ones otherwise."""
    there = list(combinations(range(members), min(size, members)))
    if count % len(there) == 0:
        order = rng.permutation(len(there))
        return [there[order[k % len(there)]] for k in range(count)]
    return [there[int(rng.integers(len(there)))] for _ in range(count)]
