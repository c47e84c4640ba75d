"""Two methods against each other: over seeds, and over the examples of the test set."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.errors import UsageError, did_you_mean
from kdbench.leaderboard import statistics
from kdbench.leaderboard.boards import Board, Row, Selection, load_boards
from kdbench.leaderboard.resampling import Bootstrap, paired_bootstrap
from kdbench.leaderboard.statistics import Difference, Values
from kdbench.store import duck, spool

if TYPE_CHECKING:
    import duckdb

    from kdbench.errors import Problem


@dataclass
class Comparison:
    """A minus B on one task."""

    board: Board
    a: Row
    b: Row
    seeds: Difference | None
    """Over common seeds; None where there is none."""
    examples: Bootstrap | None
    """Over test examples, each averaged over the common seeds; None where no values of examples were kept."""
    notes: list[str] = field(default_factory=list)


def compare(
    results: Path,
    a: str,
    b: str,
    *,
    task: str | None = None,
    metric: str | None = None,
    problems: list[Problem] | None = None,
) -> list[Comparison]:
    """Comparisons on every task (or the given one) where both have results.

    ``a`` and ``b`` are labels (``taid(t_start=0.4)``), slugs or ``track/slug``; a slug is the method at its defaults.
    Raises ``UsageError`` where one is unknown or the two share no task.
    """

    def work(con: duckdb.DuckDBPyConnection) -> list[tuple[Board, Row, Row, dict[str, list[str]]]]:
        boards = load_boards(con, Selection(task=task), metric)
        rows = [row for board in boards for row in board.rows]
        for name in (a, b):
            if not any(_fits(row, name) for row in rows):
                known = sorted({row.label for row in rows} | {row.method for row in rows})
                raise UsageError(f"no results of the method {name!r}", hint=did_you_mean(name, known))
        pairs = [(board, _row(board, a), _row(board, b)) for board in boards]
        return [
            (board, first, second, _job_ids(con, board, (first, second)))
            for board, first, second in pairs
            if first is not None and second is not None
        ]

    found = duck.query(results, work, problems)
    if not found:
        raise UsageError(f"{a!r} and {b!r} have no task in common")
    return [_compare(results, *item) for item in found]


def _fits(row: Row, name: str) -> bool:
    return name in (row.label, row.method, row.method.split("/", 1)[-1])


def _row(board: Board, name: str) -> Row | None:
    rows = [row for row in board.rows if _fits(row, name)]
    exact = [row for row in rows if name in (row.label, f"{board.task.split('/')[0]}/{row.label}")]
    if len(rows) > 1 and not exact:
        labels = ", ".join(row.label for row in rows[:6])
        raise UsageError(f"{name!r} has several rows on {board.title}: {labels}", hint="name one of them")
    return next(iter(exact or rows), None)


def _job_ids(con: duckdb.DuckDBPyConnection, board: Board, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Ids of the successful jobs of rows, in the order of the board's seeds ('' where there is none), by label."""
    found = {}
    for row in rows:
        ids = dict(
            con.execute(
                "SELECT seed, id FROM store.current_jobs "
                "WHERE current AND status = 'ok' AND spec_digest = ? AND method = ? AND label = ?",
                [board.spec_digest, row.method, row.label],
            ).fetchall()
        )
        found[row.label] = [ids.get(seed, "") for seed in board.seeds]
    return found


def _compare(results: Path, board: Board, a: Row, b: Row, ids: dict[str, list[str]]) -> Comparison:
    comparison = Comparison(board, a, b, None, None)
    comparison.notes += [f"the task refuses a leaderboard: {reason}" for reason in board.refused]
    common = np.isfinite(a.values) & np.isfinite(b.values)
    if not common.any():
        comparison.notes.append("no seed in common")
        return comparison
    comparison.seeds = statistics.paired_difference(a.values, b.values, board.resolution)
    try:
        rows = [_examples(results, [ids[row.label][i] for i in np.flatnonzero(common)], board.metric) for row in (a, b)]
        comparison.examples = paired_bootstrap(rows[0], rows[1])
    except _NoExamples as reason:
        comparison.notes.append(f"not compared over examples: {reason}")
    except ValueError as error:
        comparison.notes.append(f"not compared over examples: {error}")
    return comparison


class _NoExamples(Exception):
    """Why there are no values of examples."""


def _examples(results: Path, ids: Sequence[str], metric: str) -> Values:
    """Values of the metric by example (n,), averaged over jobs."""
    rows = []
    for id in ids:
        path = spool.job_folder(results, id) / spool.EXAMPLES
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if metric not in arrays:
                    raise _NoExamples(f"{path} has no {metric!r} by example")
                rows.append(np.asarray(arrays[metric], dtype=np.float64))
        except FileNotFoundError:
            raise _NoExamples(f"{path} is missing") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise _NoExamples(f"{path} is damaged: {error}") from error
    if len({row.shape for row in rows}) != 1:
        raise _NoExamples("the jobs have different numbers of examples")
    mean: Values = np.mean(rows, axis=0)
    return mean
