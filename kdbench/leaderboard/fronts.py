"""Boards against a cost: what each row spent, and which rows no other one beats in both score and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdbench.errors import UsageError, did_you_mean
from kdbench.leaderboard.board import Board
from kdbench.leaderboard.statistics import Estimate, Values, mean_intervals

if TYPE_CHECKING:
    from kdbench.leaderboard.pareto import Front

COUNTED = frozenset(
    {
        *("steps", "aux_steps", "samples", "tokens", "generated_tokens", "generated_samples"),
        *("teacher_queries", "cached_teacher_queries"),
    }
)
"""Meters that count what is done: a successful job without an entry did none of it. Of any other meter (flops,
memory, seconds), a job without an entry was not measured."""

FRONT_RULE = (
    "front: no other method is at least as good in both score and {cost} and better in one; in brackets the share of "
    "the resamples of the seeds in which that is so. methods with failed jobs and the ceiling, of which the task does "
    "not meter what it took to make, neither are on the front nor keep others from it"
)
"""What a board against a cost needs to be read; with ``cost`` for its name."""


def costs_of(board: Board) -> list[str]:
    """Meters that the board can be drawn against: those of which at least one of its jobs has an entry."""
    return [name for name in board.meters if any(name in row.costs for row in board.rows)]


def require_cost(boards: Sequence[Board], cost: str) -> None:
    """Raise ``UsageError``, with what is close, where no board has the cost."""
    known = sorted({name for board in boards for name in costs_of(board)})
    if cost not in known:
        hint = did_you_mean(cost, known, label="metered")
        raise UsageError(f"no result has the cost {cost!r}", place="--by", hint=hint)


def spent(board: Board, cost: str) -> Values:
    """What each row's jobs spent (rows, seeds); NaN where that is unknown or the job did not succeed."""
    values = np.full((len(board.rows), len(board.seeds)), np.nan)
    if cost not in costs_of(board):
        return values
    index = board.meters.index(cost)
    for number, row in enumerate(board.rows):
        values[number] = row.spent[index]
        if cost in COUNTED:
            succeeded = np.isfinite(row.spent).any(axis=0) | np.isfinite(row.values)
            values[number] = np.where(succeeded & np.isnan(values[number]), 0.0, values[number])
    return values


def cost_estimates(board: Board, cost: str) -> list[Estimate | None]:
    """Mean cost of each row over its successful seeds with Student's interval; None where it is unknown."""
    return mean_intervals(spent(board, cost))


def front(board: Board, cost: str) -> Front:
    """The Pareto front of the board's rows against a cost, less being better; arrays in the order of the rows.

    Methods with failed jobs take no part (their share is NaN), nor does the ceiling: it usually is a model that was
    there before the task, whose own cost nobody metered. Nobody does on a refused board, on one whose metric has no
    direction, or where nothing was metered by this name (:func:`costs_of`).
    """
    from kdbench.leaderboard.pareto import Front, pareto

    nobody = np.zeros(len(board.rows), dtype=bool)
    if board.direction is None or board.refused or not board.rows:
        return Front(nobody, np.full(len(board.rows), np.nan))
    ceiling = f"{board.track}/{board.ceiling}"
    part = np.array([row.complete and row.method != ceiling for row in board.rows], dtype=bool)
    scores = np.stack([row.values for row in board.rows])
    return pareto(scores, spent(board, cost), board.direction, complete=part)


def by_cost(board: Board, cost: str) -> list[int]:
    """Positions of the rows from the cheapest to the dearest, those that failed somewhere or of unknown cost last."""
    estimates = cost_estimates(board, cost)

    def position(index: int) -> tuple[bool, bool, float, int]:
        found, row = estimates[index], board.rows[index]
        return not row.complete, found is None, found.mean if found else 0.0, index

    return sorted(range(len(board.rows)), key=position)
