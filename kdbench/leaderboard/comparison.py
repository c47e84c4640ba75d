"""Two methods against each other: over seeds, and over the examples of the test set."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.errors import UsageError, did_you_mean
from kdbench.leaderboard import statistics
from kdbench.leaderboard.board import budget_text
from kdbench.leaderboard.boards import Board, Row, Selection, load_boards
from kdbench.leaderboard.power import MOST_SEEDS, POWER, seeds_to_separate
from kdbench.leaderboard.resampling import Bootstrap, paired_bootstrap
from kdbench.leaderboard.statistics import Difference, Values
from kdbench.store import duck, spool

if TYPE_CHECKING:
    import duckdb

    from kdbench.errors import Problem

RULE = (
    f"over seeds: paired t test on common seeds at {100 * statistics.ALPHA:g} %, speaks of new students; boards "
    "correct it for all of a method's comparisons, so that theirs need more seeds. over examples: paired bootstrap "
    "(percentile interval), speaks of new test examples for these very students"
)
"""What a table of comparisons needs to be read."""


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
    needed: int | None = None
    """Seeds in all with which the paired t test would probably find a difference like this one
    (:func:`kdbench.leaderboard.power.seeds_to_separate`); None where no affordable number would."""

    title: str = ""
    """``task@scale``, with the budget or the digest where several definitions of the task are compared."""

    @property
    def separated(self) -> bool:
        """Whether the test over seeds separates the two, at ``statistics.ALPHA`` and uncorrected."""
        return self.seeds is not None and self.seeds.p is not None and self.seeds.p < statistics.ALPHA

    @property
    def more(self) -> int | None:
        """How many more seeds that are: 0 where these separate the two; None where no affordable number would."""
        if self.separated:
            return 0
        return None if self.needed is None or self.seeds is None else max(self.needed - self.seeds.n, 1)

    @property
    def outlook(self) -> str:
        """What more seeds would do, in a sentence; empty without a common seed."""
        if self.seeds is None:
            return ""
        have = f"{self.seeds.n} common seed{'s' * (self.seeds.n != 1)}"
        if self.separated:
            return f"{have} separate the two"
        if self.more is not None:
            return (
                f"about {self.more} more seed{'s' * (self.more != 1)} ({self.needed} in all) would separate the two in "
                f"{100 * POWER:.0f} % of cases, if their difference and its spread are what {have} say"
            )
        if self.seeds.n < 2:
            return f"{have} say nothing of the spread, nor of how many would separate the two: two at least are needed"
        if self.seeds.mean == 0:
            return f"{have} show no difference that more of them could confirm"
        return f"the difference is so small that {MOST_SEEDS:,} seeds would not separate the two"


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
    comparisons = [_compare(results, *item) for item in found]
    _entitle(comparisons)
    return comparisons


def _entitle(comparisons: Sequence[Comparison]) -> None:
    """Tell comparisons on definitions of the same task apart: by budget, and where that is the same by digest."""
    titles = Counter(item.board.title for item in comparisons)
    budgets = Counter((item.board.title, budget_text(item.board.limits)) for item in comparisons)
    for item in comparisons:
        item.title, budget = item.board.title, budget_text(item.board.limits)
        if titles[item.title] > 1:
            same = budgets[item.title, budget] > 1
            item.title += f" ({item.board.spec_digest})" if same else f" ({budget})"


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
    comparison.needed = seeds_to_separate(a.values - b.values, resolution=board.resolution)
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
