"""A method in brief: what became of its claims, and its best results so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.errors import plain
from kdbench.leaderboard import render
from kdbench.leaderboard.board import Board, Row
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.claims import load_claims
from kdbench.leaderboard.findings import Conclusion, conclude
from kdbench.leaderboard.selection import Selection
from kdbench.leaderboard.verdicts import VERDICTS

if TYPE_CHECKING:
    import duckdb

    from kdbench.registry import Registry


@dataclass(frozen=True)
class Best:
    """The best row of a method on one board."""

    board: Board
    row: Row

    def record(self) -> dict[str, Any]:
        """For programs."""
        score, rank, gap = self.row.score, self.row.rank, self.row.gap
        return {
            **self.board.about(),
            "label": self.row.label,
            "mean": score.mean if score else None,
            "half_interval": score.half if score else None,
            "n": score.n if score else 0,
            "rank_best": rank.best if rank else None,
            "rank_worst": rank.worst if rank else None,
            "among": len(self.board.rows),
            "gap_closed": gap.mean if gap else None,
            "failed": self.row.n_failed,
        }


@dataclass(frozen=True)
class Brief:
    """What the outcomes say about a method."""

    conclusions: list[Conclusion]
    """One per scale on which any job of its claims ran; and for the default scale."""
    best: list[Best]

    def claims(self) -> str:
        """Per scale the verdict and what it is made of; empty where no job of its claims ran."""
        return "; ".join(
            f"{conclusion.verdict} at scale {conclusion.scale} "
            f"({', '.join(f'{conclusion.counts[v]} {v}' for v in VERDICTS if conclusion.counts[v])})"
            for conclusion in self.conclusions
            if conclusion.ran
        )

    def table(self) -> render.Table:
        """A row per board."""
        columns = ["task", "metric", "best", "rank", "of", "gap closed (%)", "seeds", "failed", "as"]
        rows: list[list[object]] = [
            [
                plain(board.title),
                plain(board.metric + (f" ({board.unit})" if board.unit else "")),
                render.estimate(row.score, render.factor_of(board)) or "no result",
                "" if row.rank is None else str(row.rank),
                len(board.rows),
                render.estimate(row.gap, 100),
                row.score.n if row.score else 0,
                row.n_failed or None,
                plain(row.label),
            ]
            for board, row in ((best.board, best.row) for best in self.best)
        ]
        return columns, rows, ["best", "rank", "of", "gap closed (%)", "seeds", "failed"]


def brief(con: duckdb.DuckDBPyConnection, registry: Registry, key: str) -> Brief:
    """What the outcomes say about the method ``track/slug``."""
    findings = load_claims(con, registry, methods=[key]) if registry.methods[key].card.claims else []
    return Brief(conclude(findings), list(_best(con, key)))


def _best(con: duckdb.DuckDBPyConnection, key: str) -> Iterator[Best]:
    """Of each board that ranks, the method's row with the best mean; the first where no row has one."""
    where = "SELECT DISTINCT task, scale FROM store.jobs WHERE method = ? ORDER BY ALL"
    for task, scale in con.execute(where, [key]).fetchall():
        for board in load_boards(con, Selection(task=f"{task}@{scale}")):
            rows = [row for row in board.rows if row.method == key]
            if rows and board.direction is not None:
                yield Best(board, max(rows, key=lambda row: _goodness(board, row)))


def _goodness(board: Board, row: Row) -> float:
    if row.score is None:
        return -math.inf
    return row.score.mean if board.direction == "max" else -row.score.mean
