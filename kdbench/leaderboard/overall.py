"""One table over the tasks of a track: who is best on average, on how many tasks, and what failed.

The statistics, with their rules for failures and missing methods, are those of :mod:`kdbench.leaderboard.aggregate`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import UsageError
from kdbench.leaderboard.board import Board, Row, budget_text
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.selection import Selection

if TYPE_CHECKING:
    import duckdb

    from kdbench.leaderboard.aggregate import Overall


@dataclass
class Standing:
    """A method with parameters over the tasks of a table."""

    method: str
    """``track/slug``."""
    label: str
    params: dict[str, Any]
    total: Overall
    """Average rank, mean gap closed, tasks and failures."""


@dataclass
class Standings:
    """Every method of a track over its tasks at one scale, the best average rank first.

    Methods with jobs on fewer than half of the tasks come after all others: first on the one task that they were made
    for is not first on average.
    """

    track: str
    scale: str
    metric: str
    """Empty for the headline metric of each task."""
    boards: list[Board]
    """The tasks that count, one board each."""
    rows: list[Standing]
    notes: list[str] = field(default_factory=list)
    """What a reader must know: tasks, definitions and budgets that are left out."""

    @property
    def title(self) -> str:
        """``track@scale``."""
        return f"{self.track}@{self.scale}"


def load(
    con: duckdb.DuckDBPyConnection, selection: Selection | None = None, metric: str | None = None
) -> list[Standings]:
    """A table for each track and scale of the selected jobs. Raises ``UsageError`` where nothing fits."""
    return standings(load_boards(con, selection, metric), metric)


def standings(boards: Iterable[Board], metric: str | None = None) -> list[Standings]:
    """A table for each track and scale of ``boards`` in their order; ``metric`` as they were loaded with.

    Tracks have no methods in common and scales are sizes of the same tasks, so neither are averaged over. A task
    counts once: of several definitions (budgets, settings) the one with the most methods, the first of ``boards``
    among equals. Refused boards and metrics without a direction do not count; notes name all that is left out.
    Raises ``ValueError`` for boards that mix budgets.
    """
    groups: dict[tuple[str, str], list[Board]] = defaultdict(list)
    for board in boards:
        if board.budgets:
            raise ValueError(f"{board.title} mixes budgets: a table over tasks counts one budget of each")
        groups[board.track, board.scale].append(board)
    return [_standings(track, scale, metric or "", group) for (track, scale), group in groups.items()]


def one_budget(mix_budgets: bool) -> None:
    """Raise ``UsageError`` where a table over tasks is asked to mix budgets."""
    if mix_budgets:
        raise UsageError(
            "a table over tasks counts one budget of each",
            place="--mix-budgets",
            hint="leave it out, or leave --overall out; --suite picks the jobs of one budget",
        )


def _standings(track: str, scale: str, metric: str, boards: Sequence[Board]) -> Standings:
    notes: list[str] = []
    chosen = _chosen(boards, notes)
    table = Standings(track, scale, metric, chosen, [], notes)
    if not any(board.rows for board in chosen):
        notes.append("no task counts")
        return table
    from kdbench.leaderboard.aggregate import overall

    found: dict[tuple[str, str], list[tuple[int, Row]]] = defaultdict(list)
    for index, board in enumerate(chosen):
        for row in board.rows:
            found[row.method, json.dumps(row.params, sort_keys=True)].append((index, row))
    values = np.full((len(chosen), len(found), max(len(board.seeds) for board in chosen)), np.nan)
    failed = np.zeros((len(chosen), len(found)), np.int64)
    gaps: list[list[Any]] = [[None] * len(found) for _ in chosen]
    for position, rows in enumerate(found.values()):
        for index, row in rows:
            values[index, position, : len(row.values)] = row.values
            failed[index, position] = max(row.n_failed, 0 if row.complete else 1)
            gaps[index][position] = row.gap
    directions = [board.direction for board in chosen if board.direction is not None]
    totals = overall(values, gaps, directions, failed=failed)
    table.rows = [
        Standing(rows[0][1].method, rows[0][1].label, rows[0][1].params, total)
        for rows, total in zip(found.values(), totals, strict=True)
    ]

    def on_few(row: Standing) -> bool:
        return 2 * row.total.tasks < len(chosen)

    table.rows.sort(key=lambda row: (row.total.rank is None, on_few(row), row.total.rank or 0.0, row.label))
    few = sum(map(on_few, table.rows))
    partial = sum(row.total.tasks < len(chosen) for row in table.rows)
    if partial:
        notes.append(
            f"{partial} of {len(table.rows)} methods have jobs on some of the tasks only (column tasks): what they "
            "average over is not what the others do" + (f"; {few} on fewer than half come last" if few else "")
        )
    return table


def _chosen(boards: Sequence[Board], notes: list[str]) -> list[Board]:
    """One board for each task that counts; why others do not is added to ``notes``."""
    kept: dict[str, list[Board]] = defaultdict(list)
    for board in boards:
        if board.refused:
            notes.append(f"{board.task} refuses a leaderboard and does not count: {'; '.join(board.refused)}")
        elif board.direction is None:
            notes.append(f"{board.task} does not count: {board.metric} is measured by methods themselves, not ranked")
        else:
            kept[board.task].append(board)
    chosen = []
    for task, same in kept.items():
        most = max(same, key=lambda board: len(board.rows))
        chosen.append(most)
        others = [
            f"{budget_text(board.limits)} ({board.spec_digest}, {len(board.rows)} methods)"
            for board in same
            if board is not most
        ]
        if others:
            notes.append(
                f"{task} counts with budget {budget_text(most.limits)} ({most.spec_digest}), of which there are most "
                f"methods; left out: {', '.join(others)}"
            )
    return chosen


def records(tables: Iterable[Standings]) -> list[dict[str, Any]]:
    """Tables as flat rows for programs: one per method, the same keys in every row.

    Gaps closed are fractions; ``judged`` are tasks where floor and ceiling separate, of which ``solved`` and
    ``worse`` count some.
    """
    return [_record(table, row) for table in tables for row in table.rows]


def _record(table: Standings, row: Standing) -> dict[str, Any]:
    total, gap = row.total, row.total.gap
    return {
        "track": table.track,
        "scale": table.scale,
        "metric": table.metric or "headline",
        "method": row.method,
        "label": row.label,
        "params": json.dumps(row.params, sort_keys=True),
        "rank": total.rank,
        "rank_low": total.rank_low,
        "rank_high": total.rank_high,
        "gap_closed": gap.mean if gap else None,
        "gap_low": gap.low if gap else None,
        "gap_high": gap.high if gap else None,
        "tasks": total.tasks,
        "judged": total.judged,
        "solved": total.solved,
        "worse": total.worse,
        "failed_jobs": total.failed_jobs,
        "failed_tasks": total.failed_tasks,
        "of_tasks": len(table.boards),
    }
