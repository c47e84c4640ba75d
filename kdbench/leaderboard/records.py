"""Boards as flat rows for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from kdbench.leaderboard import fronts
from kdbench.leaderboard.board import Board, Row
from kdbench.store import schema


def records(boards: Iterable[Board], by: str | None = None) -> list[dict[str, Any]]:
    """Boards as flat rows: one per method, the same keys in every row.

    A refused board is one row without a method, with the reasons under ``refused``. ``by``: with the mean of this
    cost, its interval, whether the row is on the Pareto front and the share of resamples in which it is (null for a
    row that takes no part), the cheapest first.
    """
    return [record for board in boards for record in _records(board, by)]


def _records(board: Board, by: str | None) -> list[dict[str, Any]]:
    about = board.about()
    if board.refused:
        end = {"limits": json.dumps(board.limits), "mixed": "", "refused": board.refused}
        return [about | dict.fromkeys(_ROW_KEYS) | dict.fromkeys(_FRONT_KEYS if by else ()) | end]
    against = _fronts(board, by) if by else [{}] * len(board.rows)
    found = []
    for index in fronts.by_cost(board, by) if by else range(len(board.rows)):
        row = board.rows[index]
        own = {"spec_digest": row.spec_digest or board.spec_digest}
        limits = row.limits if board.budgets else board.limits
        end = {"limits": json.dumps(limits), "mixed": ", ".join(row.mixed), "refused": []}
        found.append(about | own | _record(row) | against[index] | end)
    return found


_ROW_KEYS = (
    *("rank_best", "rank_worst", "ties", "method", "label", "params", "mean", "low", "high", "n", "n_failed"),
    *("gap_closed", "gap_low", "gap_high", *schema.COSTS),
)
_FRONT_KEYS = ("cost", "cost_mean", "cost_low", "cost_high", "front", "front_share")


def _record(row: Row) -> dict[str, Any]:
    score, gap = row.score, row.gap
    values = (
        *(row.rank or (None, None)),
        *(row.ties, row.method, row.label, json.dumps(row.params, sort_keys=True)),
        *((score.mean, score.low, score.high, score.n) if score else (None, None, None, 0)),
        row.n_failed,
        *((gap.mean, gap.low, gap.high) if gap else (None, None, None)),
        *(row.costs.get(name) for name in schema.COSTS),
    )
    return dict(zip(_ROW_KEYS, values, strict=True))


def _fronts(board: Board, by: str) -> list[dict[str, Any]]:
    found = fronts.front(board, by)
    rows = []
    for cost, on, share in zip(fronts.cost_estimates(board, by), found.on, found.share, strict=True):
        part = bool(np.isfinite(share))
        spent = (cost.mean, cost.low, cost.high) if cost else (None, None, None)
        values = (by, *spent, bool(on) if part else None, float(share) if part else None)
        rows.append(dict(zip(_FRONT_KEYS, values, strict=True)))
    return rows
