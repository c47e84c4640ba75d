"""Which slot of a pipeline decides its score, and which pipeline a new task should get: analyses of many trainings.

A pipeline is a level for each slot; ``levels`` (N, F) are their numbers, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def one_hot(levels: Ints, sizes: Sequence[int]) -> Floats:
    """(N, F) numbers of levels to (N, sum of sizes) indicators."""
    return np.concatenate([np.eye(size)[levels[:, slot]] for slot, size in enumerate(sizes)], axis=1)


def product_grid(sizes: Sequence[int]) -> Ints:
    """All points of the product space, the last slot fastest; (product of sizes, F)."""
    return np.stack(np.meshgrid(*[np.arange(size) for size in sizes], indexing="ij"), axis=-1).reshape(-1, len(sizes))


def variance_shares(values: Floats) -> dict[tuple[int, ...], float]:
    """Shares of the variance of a function on a product space, (n_1, ..., n_F), by its slots and pairs of slots.

    The functional ANOVA: a slot's share is the variance of the means over all others, a pair's what its own means vary
    by beyond its two slots. All zero where the function is constant.
    """
    total = float(values.var())
    axes = range(values.ndim)
    if total <= 1e-24:
        return {part: 0.0 for size in (1, 2) for part in combinations(axes, size)}

    def marginal(part: tuple[int, ...]) -> float:
        return float(values.mean(axis=tuple(axis for axis in axes if axis not in part)).var()) / total

    shares: dict[tuple[int, ...], float] = {(axis,): marginal((axis,)) for axis in axes}
    for one, two in combinations(axes, 2):
        shares[one, two] = max(0.0, marginal((one, two)) - shares[one,] - shares[two,])
    return shares


def fanova(
    levels: Ints, scores: Floats, names: Sequence[str], sizes: Sequence[int], *, seed: int = 0, trees: int = 64
) -> dict[str, float]:
    """Share of the score's variance that each slot (``name``) and pair (``one x two``) explains, in [0, 1].

    A random forest is fitted to scores (N,) at ``levels`` (N, F); of each tree the functional ANOVA over the whole
    product space is taken exactly, and the shares are averaged (Hutter, Hoos and Leyton-Brown, ICML 2014). Trees that
    found nothing to split leave no shares and are left out; all zero where none did.
    """
    forest = RandomForestRegressor(trees, max_features=0.7, min_samples_leaf=2, random_state=seed)
    forest.fit(one_hot(levels, sizes), scores)
    grid = one_hot(product_grid(sizes), sizes)
    parts = [variance_shares(tree.predict(grid).reshape(tuple(sizes))) for tree in forest.estimators_]
    found = [shares for shares in parts if any(shares.values())]
    labels = {part: " x ".join(names[slot] for slot in part) for part in parts[0]}
    return {label: float(np.mean([each[part] for each in found])) if found else 0.0 for part, label in labels.items()}


def recommender(tasks: Floats, levels: Ints, ratios: Floats, sizes: Sequence[int], seed: int) -> Any:
    """Gradient-boosted trees from task features (N, M) and pipelines (N, F) to distillation ratios (N,)."""
    model = GradientBoostingRegressor(
        n_estimators=100, max_depth=3, learning_rate=0.1, subsample=0.8, random_state=seed
    )
    return model.fit(np.concatenate([tasks, one_hot(levels, sizes)], axis=1), ratios)


def leave_one_task_out(
    task: Sequence[str],
    features: Mapping[str, Sequence[float]],
    levels: Ints,
    ratios: Floats,
    sizes: Sequence[int],
    *,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """How good the recommendation for each task is that is made from all others alone.

    ``task`` (N) names and their ``features``, pipelines ``levels`` (N, F) with distillation ``ratios`` (N,). Of the
    pipelines that were tried on the held-out task the one with the best prediction is recommended. By task:
    ``recommended`` and ``best`` mean ratios, ``regret`` their difference, ``random_regret`` that of a pick at random,
    and ``chosen``, a row of ``levels`` with the recommended pipeline. Raises ``ValueError`` for fewer than two tasks.
    """
    names = list(dict.fromkeys(task))
    if len(names) < 2:
        raise ValueError("a recommendation for one task needs another one to learn from")
    owner = np.array([names.index(name) for name in task])
    described = np.array([features[name] for name in task], dtype=float)
    result = {}
    for number, name in enumerate(names):
        rest = owner != number
        model = recommender(described[rest], levels[rest], ratios[rest], sizes, seed)
        tried, first, group = np.unique(levels[~rest], axis=0, return_index=True, return_inverse=True)
        means = np.bincount(group.ravel(), weights=ratios[~rest]) / np.bincount(group.ravel())
        own = np.repeat([features[name]], len(tried), axis=0).astype(float)
        pick = int(np.argmax(model.predict(np.concatenate([own, one_hot(tried, sizes)], axis=1))))
        result[name] = {
            "recommended": float(means[pick]),
            "best": float(means.max()),
            "regret": float(means.max() - means[pick]),
            "random_regret": float(means.max() - means.mean()),
            "chosen": int(np.flatnonzero(~rest)[first[pick]]),
        }
    return result
