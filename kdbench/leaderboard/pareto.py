"""The Pareto front of quality against cost, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdbench.leaderboard.resampling import SEED_RESAMPLES, resampled_means
from kdbench.leaderboard.statistics import Direction, Values


@dataclass(frozen=True)
class Front:
    """Which methods no other one beats in both score and cost; arrays over methods (M,)."""

    on: NDArray[np.bool_]
    """On the front of the mean scores and mean costs."""
    share: Values
    """In [0, 1]: share of the resamples of the seeds in which the method is on the front; NaN for one that takes no
    part. A method with one seed does not vary."""


def pareto(
    scores: Values,
    costs: Values,
    direction: Direction,
    *,
    complete: NDArray[np.bool_] | None = None,
    resamples: int = SEED_RESAMPLES,
    seed: int = 0,
) -> Front:
    """The front of ``scores`` (M, seeds) against ``costs`` (M, seeds), less cost being better.

    A method is on the front where no other one is at least as good in both and better in one; equal ones share it.
    Seeds that lack either value (NaN) do not count. A method without a common seed takes no part, nor does one with
    failed jobs (``complete`` is False): what it costs to get a result from it is unknown, so that it neither is on the
    front nor takes a place from others. Score and cost of a seed are resampled together, by
    :func:`kdbench.leaderboard.resampling.resampled_means`; deterministic for a ``seed``.

    Raises ``ValueError`` where the shapes differ.
    """
    if scores.ndim != 2 or scores.shape != costs.shape:
        raise ValueError(f"scores and costs are both (methods, seeds), not {scores.shape} and {costs.shape}")
    both = np.isfinite(scores) & np.isfinite(costs)
    part = both.any(axis=1)
    if complete is not None:
        part &= complete
    on, share = np.zeros(len(scores), dtype=bool), np.full(len(scores), np.nan)
    if not part.any():
        return Front(on, share)
    sign = -1.0 if direction == "max" else 1.0
    losses = np.where(both, sign * scores, np.nan)[part]
    prices = np.where(both, costs, np.nan)[part]
    on[part] = _front(np.nanmean(losses, axis=1)[None], np.nanmean(prices, axis=1)[None])[0]
    open_ = ~_always_beaten(losses, prices)
    drawn = [resampled_means(values[open_], resamples=resamples, seed=seed) for values in (losses, prices)]
    share[part] = 0.0
    share[np.flatnonzero(part)[open_]] = _front(*drawn).mean(axis=0)
    return Front(on, share)


def _always_beaten(losses: Values, prices: Values) -> NDArray[np.bool_]:
    """Methods (M,) that another one beats in both on every seed, and so in every resample: most of a large board."""
    whole = np.flatnonzero(np.isfinite(losses).all(axis=1))
    both = np.concatenate([losses[whole], prices[whole]], axis=1)
    beaten = np.zeros(len(losses), dtype=bool)
    beaten[whole] = [bool((both < row).all(axis=1).any()) for row in both]
    return beaten


def _front(losses: Values, prices: Values) -> NDArray[np.bool_]:
    """For each row (B, M) of losses and prices, who is on the front, less being better in both."""
    order = np.lexsort((losses, prices), axis=-1)  # by price, then loss
    loss, price = (np.take_along_axis(values, order, axis=1) for values in (losses, prices))
    least = np.minimum.accumulate(loss, axis=1)
    before = np.concatenate([np.full((len(loss), 1), np.inf), least[:, :-1]], axis=1)
    new = loss < before
    # one that is equal in both to a method of the front, which comes right before it, shares the front
    for index in range(1, loss.shape[1]):
        equal = (loss[:, index] == loss[:, index - 1]) & (price[:, index] == price[:, index - 1])
        new[:, index] |= equal & new[:, index - 1]
    on = np.empty_like(new)
    np.put_along_axis(on, order, new, axis=1)
    return on
