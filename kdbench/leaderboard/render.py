"""Boards and rows as text: numbers with the digits that their intervals allow, tables, CSV, JSON, Parquet.

Labels, error messages and metric names come from plugins: control characters in them are never sent to a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.errors import plain
from kdbench.leaderboard import fronts
from kdbench.leaderboard.board import Board, budget_text
from kdbench.leaderboard.formats import FORMATS as FORMATS
from kdbench.leaderboard.formats import Format as Format
from kdbench.leaderboard.formats import Table as Table
from kdbench.leaderboard.formats import csv_text as csv_text
from kdbench.leaderboard.formats import json_text as json_text
from kdbench.leaderboard.formats import jsonable as jsonable
from kdbench.leaderboard.formats import markdown as markdown
from kdbench.leaderboard.formats import output as output
from kdbench.leaderboard.formats import write_parquet as write_parquet
from kdbench.leaderboard.statistics import ALPHA, Estimate
from kdbench.quantities import show_duration

if TYPE_CHECKING:
    from kdbench.leaderboard.overall import Standings

_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def compact(value: float | None) -> str:
    """A count or an amount with three significant digits and an SI prefix: ``6.4k``, ``1.23G``."""
    if value is None:
        return ""
    for factor, prefix in _SI:
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def estimate(value: Estimate | None, factor: float = 1.0) -> str:
    """``mean ± half interval`` with as many decimals as two digits of the half interval need.

    Without an interval (one seed) four significant digits of the mean.
    """
    if value is None:
        return ""
    mean, half = value.mean * factor, value.half
    if half is None:
        return f"{mean:.4g}"
    half *= factor
    if half == 0:
        return f"{mean:.4g} ± 0"
    decimals = min(max(1 - math.floor(math.log10(half)), 0), 6)
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def factor_of(board: Board) -> float:
    """100 for fractions that are shown in percent, 1 otherwise."""
    return 100.0 if board.unit == "%" and board.bounds[1] == 1 else 1.0


def header(board: Board) -> str:
    """One line: task, metric and direction, budget, seeds, and what the intervals are."""
    better = {"max": ", more is better", "min": ", less is better", None: ""}[board.direction]
    unit = f" in {board.unit}" if board.unit else ""
    mixed = f"budgets mixed ({'; '.join(map(budget_text, board.budgets))})"
    budget = mixed if board.budgets else f"budget {budget_text(board.limits)}"
    seeds = f"{board.seeds[0]}-{board.seeds[-1]}"
    if board.seeds != list(range(board.seeds[0], board.seeds[-1] + 1)):
        seeds = ", ".join(map(str, board.seeds[:8])) + (", ..." if len(board.seeds) > 8 else "")
    elif len(board.seeds) == 1:
        seeds = str(board.seeds[0])
    noun = "seed" if len(board.seeds) == 1 else "seeds"
    return plain(
        f"{board.title}: {board.metric}{unit}{better}; {budget}; student {noun} {seeds}; "
        f"± is the 95 % t interval over student seeds, with one teacher (seed {board.teacher_seed})"
    )


def board_table(board: Board, by: str | None = None) -> Table:
    """The table of a board, for people; ``by``: against this cost with the Pareto front, the cheapest first."""
    unit = f" ({board.unit})" if board.unit else ""
    columns: dict[str, list[object]] = {
        "rank": ["" if row.rank is None else str(row.rank) for row in board.rows],
        "method": [plain(row.label) + (" *" if row.mixed else "") for row in board.rows],
    }
    if board.budgets:
        columns["budget"] = [plain(budget_text(row.limits)) for row in board.rows]
    columns[plain(f"{board.metric}{unit}")] = [
        estimate(row.score, factor_of(board)) or "no result" for row in board.rows
    ]
    if any(row.ties for row in board.rows):
        columns["ties"] = [row.ties for row in board.rows]
    columns["gap closed (%)"] = [estimate(row.gap, 100) for row in board.rows]
    columns["n"] = [row.score.n if row.score else 0 for row in board.rows]
    columns["failed"] = [
        ", ".join(f"{count} {status}" for status, count in sorted(row.failures.items())) for row in board.rows
    ]
    order: Sequence[int] = range(len(board.rows))
    if by is None:
        # what a job took of processors or GPUs does not depend on what else the machine did, as the clock does
        seconds = [row.costs.get("device_seconds", row.costs.get("train_seconds")) for row in board.rows]
        columns["train"] = ["" if value is None else show_duration(value) for value in seconds]
        for name, cost in (("teacher queries", "teacher_queries"), ("FLOPs", "flops"), ("params", "parameters")):
            columns[name] = [compact(row.costs.get(cost)) for row in board.rows]
    else:
        columns[plain(by)] = [amount(value) for value in fronts.cost_estimates(board, by)]
        columns["front"] = _front_cells(board, by)
        order = fronts.by_cost(board, by)
    cells = [[column[index] for column in columns.values()] for index in order]
    return list(columns), cells, [name for name in columns if name not in ("method", "ties", "front")]


def _front_cells(board: Board, by: str) -> list[object]:
    """``yes (97 %)``: on the front, and in how many resamples; empty for a method that takes no part."""
    found = fronts.front(board, by)
    cells: list[object] = []
    for row, on, share in zip(board.rows, found.on, found.share, strict=True):
        known = f" ({100 * share:.0f} %)" if row.score is not None and row.score.n > 1 else ""
        cells.append("" if math.isnan(share) else ("yes" if on else "no") + known)
    return cells


def amount(value: Estimate | None) -> str:
    """What something cost: :func:`compact` for one seed, with half of the interval for several."""
    if value is None or value.half is None:
        return compact(value.mean if value else None)
    if value.half == 0:
        return f"{compact(value.mean)} ± 0"
    factor, prefix = next(((f, p) for f, p in _SI if abs(value.mean) >= f * 0.9995), (1.0, ""))
    mean, half = estimate(value, 1 / factor).split(" ± ")
    return f"{mean}{prefix} ± {half}{prefix}"


RULE = (
    "rank: the places that the data leave open, from 1 + the methods that are significantly better to all but those "
    "that are significantly worse; a spread over seeds counts as one test example at least. "
    "gap closed: (method - floor) / (ceiling - floor)"
)
"""What tables of boards need to be read; :func:`rules` says what each needs of its own."""
TESTS_RULE = (
    "better or worse: paired t tests over common seeds, Holm-corrected among a method's comparisons, "
    f"{100 * ALPHA:g} % per method"
)
TIES_RULE = "; methods that share a letter (ties) are not separated"
FAILURE_RULE = (
    "failed jobs: a method with a job that failed, or gave no value, ranks behind all that did all their jobs, "
    "whatever its mean, which is over its other seeds"
)
MIXED_RULE = (
    "budgets are mixed: what is better may only have spent more; gap closed is between floor and ceiling of the same "
    "budget"
)


def rules(board: Board, by: str | None = None) -> list[str]:
    """What is printed under a board: its gap, the level of its tests, its rule for failures, mixed budgets."""
    found = [gap_names(board)]
    if any(row.rank is not None for row in board.rows):
        found.append(TESTS_RULE + TIES_RULE * any(row.ties for row in board.rows))
    if board.failed:
        found.append(FAILURE_RULE)
    if board.budgets:
        found.append(MIXED_RULE)
    if by is not None and by not in fronts.costs_of(board):
        found.append(f"front: none, as no job here metered {by}")
    elif by is not None and board.direction is None:
        found.append(f"front: none, as nobody says whether more or less {board.metric} is better")
    return [plain(line) for line in found]


def closing(by: str | None = None) -> str:
    """What is printed once, after all boards."""
    return RULE if by is None else f"{RULE}. {plain(fronts.FRONT_RULE.format(cost=by))}"


def gap_names(board: Board) -> str:
    """Which methods are 0 and 100 % of the gap."""
    missing = [role for role in ("floor", "ceiling") if not getattr(board, role)]
    if missing:
        return f"gap closed: undefined, as the task has no {' and no '.join(missing)}"
    return f"gap closed: 0 is {board.floor}, 100 is {board.ceiling}"


def refusal(board: Board) -> list[str]:
    """What is shown instead of the rows of a refused board: one line of explanation, then the reasons."""
    return ["no leaderboard: these results say nothing about the methods, because", *map(plain, board.refused)]


def left_out(rows: Sequence[object], at_most: int | None) -> str:
    """How many rows are beyond the first ``at_most`` (None: all are shown); empty where none is."""
    more = len(rows) - len(rows[:at_most])
    return f"and {more} more method{'s' * (more != 1)}" if more else ""


def boards_markdown(boards: Sequence[Board], by: str | None = None, at_most: int | None = None) -> str:
    """Boards in Markdown, each with its header, rules and notes; ``by`` as for :func:`board_table`.

    ``at_most``: rows of a board, the first ones.
    """
    parts = []
    for board in boards:
        if board.refused:
            lines = refusal(board)
            parts.append(f"**{header(board)}**\n\n{lines[0]}\n\n" + "".join(f"- {line}\n" for line in lines[1:]))
            continue
        columns, rows, right = board_table(board, by)
        lines = [left_out(rows, at_most), *rules(board, by), *board.notes]
        notes = "".join(f"\n- {plain(note)}" for note in lines if note)
        parts.append(f"**{header(board)}**\n\n{markdown(columns, rows[:at_most], right)}{notes}\n")
    return "\n".join([*parts, f"{closing(by)}\n"])


# --- over tasks -------------------------------------------------------------------------------------------------------


def standings_header(table: Standings) -> str:
    """One line: the track, its tasks and by what they are judged."""
    names = [board.task.split("/", 1)[-1] for board in table.boards]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    metric = table.metric or "the headline metric of each"
    noun = "task" if len(names) == 1 else "tasks"
    return plain(f"{table.title} over {len(names)} {noun} ({shown}), by {metric}")


def standings_table(table: Standings) -> Table:
    """The table over tasks, for people."""
    columns = ["average rank", "95 % interval", "method", "gap closed (%)", "tasks", "solved", "worse", "failed jobs"]
    cells: list[list[object]] = []
    for row in table.rows:
        total = row.total
        known = total.rank_low is not None and total.rank_high is not None
        failed = f"{total.failed_jobs} on {total.failed_tasks} task{'s' * (total.failed_tasks != 1)}"
        cells.append(
            [
                "" if total.rank is None else f"{total.rank:.1f}",
                f"{total.rank_low:.1f}-{total.rank_high:.1f}" if known else "",
                plain(row.label),
                estimate(total.gap, 100),
                f"{total.tasks} of {len(table.boards)}",
                f"{total.solved} of {total.judged}",
                f"{total.worse} of {total.judged}",
                failed if total.failed_jobs else "",
            ]
        )
    return columns, cells, [name for name in columns if name != "method"]


def standings_markdown(tables: Sequence[Standings], at_most: int | None = None) -> str:
    """Tables over tasks in Markdown, with their notes and the rule; ``at_most``: rows of each, the first ones."""
    from kdbench.leaderboard import aggregate

    parts = []
    for table in tables:
        columns, rows, right = standings_table(table)
        body = markdown(columns, rows[:at_most], right) if rows else ""
        notes = "".join(f"\n- {plain(note)}" for note in [left_out(rows, at_most), *table.notes] if note)
        parts.append(f"**{standings_header(table)}**\n\n{body}{notes}".rstrip() + "\n")
    return "\n".join([*parts, f"{aggregate.RULE}\n"])
