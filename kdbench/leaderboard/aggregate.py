"""Over tasks: average ranks with their intervals, mean gap closed, and what failed.

Rules for failures, which every table over tasks states (:data:`RULE`): on a task where any job of a method failed, it
ranks behind all methods that did all their jobs there, and one without any result shares the last place; in the mean
gap closed a failed job counts as the floor, or as the mean of the method's other seeds where that is worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdbench.leaderboard.resampling import SEED_RESAMPLES, resampled_ranks
from kdbench.leaderboard.statistics import LEVEL, Direction, Estimate, Values, mean_interval

RULE = (
    "average rank: over the tasks where a method has jobs, with the 95 % percentile interval of resampled tasks and, "
    "within each, seeds; where methods are missing on a task, the place r among m is scaled to the M of the table as "
    "1/2 + (r - 1/2) M / m; a method with failed jobs ranks behind all methods without on that task. "
    "gap closed: mean over tasks with its t interval over tasks; a failed job counts as the floor (0), or as the mean "
    "of the method's other seeds where that is worse. "
    "solved: tasks on which the interval of gap closed is above 0 and no job failed; worse: below 0"
)
"""What a table over tasks needs to be read."""


@dataclass(frozen=True)
class RankIntervals:
    """Average ranks over tasks (M,), 1 being the best, with percentile intervals; NaN for a method without jobs."""

    mean: Values
    low: Values
    high: Values
    tasks: NDArray[np.int64]
    """Tasks on which each method has jobs."""


def rank_intervals(
    values: Values,
    directions: Sequence[Direction],
    *,
    failed: NDArray[np.int64] | None = None,
    resamples: int = SEED_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> RankIntervals:
    """Average ranks of ``values`` (tasks, M, seeds) over tasks, by mean over seeds, with percentile intervals.

    ``failed`` (tasks, M) is how many jobs of a method failed on a task: it then ranks behind all methods that did all
    their jobs there, among those that failed as well, by the seeds that it has; one without any result shares the
    last place with its like. NaN without a failure is a job that was not run. Methods missing on a task have no place
    there: the place r among the m that are is scaled to all M as 1/2 + (r - 1/2) M / m, which keeps the mean of all
    places and makes the first among few less than the first among many. Equal means share their places.

    Tasks are resampled, and within each its seeds (:mod:`kdbench.leaderboard.resampling`), so that the interval speaks
    of tasks like these, ranked by as many seeds; a method on one task has the interval of its seeds. Deterministic for
    a ``seed``.

    What it covers, by simulation (eight methods, five seeds): the average rank that new tasks and seeds would give in
    91 to 99 % of cases from three tasks on, and in 87 % for two. It is no interval of the rank by true means: noise of
    the seeds draws all ranks to the middle, and where methods are about equal no bootstrap of ranks is exact (Mogstad,
    Romano, Shaikh, Wilhelm 2024). The places that are certain on one task are those of
    :func:`kdbench.leaderboard.statistics.ranks`.

    Raises ``ValueError`` where shapes do not fit.
    """
    if values.ndim != 3 or len(directions) != len(values):
        raise ValueError(f"values are (tasks, methods, seeds) with a direction each, not {values.shape}")
    failures = np.zeros(values.shape[:2], np.int64) if failed is None else failed
    if failures.shape != values.shape[:2]:
        raise ValueError(f"failed jobs are (tasks, methods), not {failures.shape}")
    finite = np.isfinite(values).any(axis=2)
    group = np.where(failures > 0, np.where(finite, 1, 2), np.where(finite, 0, -1))
    some = group.max(axis=1, initial=-1) >= 0
    tasks = (group >= 0).sum(axis=0)
    if not some.any() or values.shape[1] == 0:
        nothing = np.full(values.shape[1], np.nan)
        return RankIntervals(nothing, nothing.copy(), nothing.copy(), tasks)
    sign = np.array([-1.0 if direction == "max" else 1.0 for direction in directions])
    signed = (sign[:, None, None] * values)[some]
    mean, resampled = resampled_ranks(signed, group[some], resamples=resamples, seed=seed)
    low, high = np.full(len(mean), np.nan), np.full(len(mean), np.nan)
    there = tasks > 0
    low[there], high[there] = np.nanquantile(resampled[:, there], [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return RankIntervals(mean, low, high, tasks)


@dataclass(frozen=True)
class Overall:
    """A method over all tasks of a table."""

    rank: float | None
    """Average rank, 1 being the best; None for a method without jobs."""
    rank_low: float | None
    rank_high: float | None
    gap: Estimate | None
    """Mean gap closed over the tasks where it is defined, failed jobs counted by the rule of the module."""
    tasks: int
    """Tasks on which it has jobs."""
    judged: int
    """Of those, tasks where floor and ceiling separate, so that some method has a gap closed."""
    solved: int
    """Of the judged, tasks on which it is better than the floor: the interval of its gap closed is above 0, and no job
    failed."""
    worse: int
    """Of the judged, tasks on which it is worse than the floor: the interval is below 0."""
    failed_jobs: int
    failed_tasks: int
    """Tasks with a failed job."""


def overall(
    values: Values,
    gaps: Sequence[Sequence[Estimate | None]],
    directions: Sequence[Direction],
    *,
    failed: NDArray[np.int64],
    resamples: int = SEED_RESAMPLES,
    seed: int = 0,
) -> list[Overall]:
    """One row per method over tasks, in the order of the methods.

    ``values`` (tasks, M, seeds), ``failed`` (tasks, M) and ``directions`` as for :func:`rank_intervals`; ``gaps``
    [task][method] is gap closed on each task, None where there is none. The interval of the mean gap is Student's over
    tasks: it speaks of tasks like these, and is None for a method judged on fewer than two. Raises ``ValueError``
    where shapes do not fit.
    """
    if len(gaps) != len(values) or any(len(row) != values.shape[1] for row in gaps):
        raise ValueError("gaps are [task][method], as values")
    ranks = rank_intervals(values, directions, failed=failed, resamples=resamples, seed=seed)
    done = np.isfinite(values).sum(axis=2)
    judged = [any(gap is not None for gap in row) for row in gaps]
    rows = []
    for m in range(values.shape[1]):
        here = [t for t in range(len(values)) if done[t, m] or failed[t, m]]
        found = {t: gaps[t][m] for t in here if judged[t]}
        counted = np.array([counted_gap(gap, int(done[t, m]), int(failed[t, m])) for t, gap in found.items()])
        rows.append(
            Overall(
                rank=_known(ranks.mean[m]),
                rank_low=_known(ranks.low[m]),
                rank_high=_known(ranks.high[m]),
                gap=mean_interval(counted) if np.isfinite(counted).any() else None,
                tasks=len(here),
                judged=len(found),
                solved=sum(_above(gap) and not failed[t, m] for t, gap in found.items()),
                worse=sum(_below(gap) for gap in found.values()),
                failed_jobs=int(failed[:, m].sum()),
                failed_tasks=int((failed[:, m] > 0).sum()),
            )
        )
    return rows


def counted_gap(gap: Estimate | None, done: int, failed: int) -> float:
    """What gap closed on a task counts for in the mean over tasks, where ``done`` jobs gave a value and others failed.

    A failed job counts as the floor (0), or as the mean of the others where that is worse. NaN where there is neither
    a gap nor a failed job.
    """
    if gap is None:
        return 0.0 if failed else np.nan
    return (done * gap.mean + failed * min(gap.mean, 0.0)) / (done + failed) if failed else gap.mean


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _above(gap: Estimate | None) -> bool:
    return gap is not None and gap.low is not None and gap.low > 0


def _below(gap: Estimate | None) -> bool:
    return gap is not None and gap.high is not None and gap.high < 0
