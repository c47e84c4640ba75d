"""Which charts pages have: those of a task and those of a method, with the choices above them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.leaderboard import fronts
from kdbench.leaderboard.board import Board, Row
from kdbench.leaderboard.report import charts

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.leaderboard.report.method_page import Result

AXES = ("train_seconds", "flops", "teacher_queries", "generated_tokens", "parameters", "peak_rss_bytes")
"""Costs that come first among those that a board can be drawn against."""
MOST_COSTS = 6
CURVE_BYTES = 100_000
"""Of the learning curves that a page holds, about: ``loss`` of every task first, as many as fit."""
_POINT = 40
"""Bytes of a point of a curve, about."""


def task_charts(board: Board, href: Callable[[Row], str]) -> dict[str, Any]:
    """What the template of a task needs for its charts: ``charts`` (the last is that of intervals) and their rows.

    Without any chart where the board is refused or no row has a score.
    """
    if board.refused or not any(row.score for row in board.rows):
        return {"charts": [], "chart_rows": []}
    found = charts.costs(board)
    order = [name for name in AXES if name in found] + [name for name in found if name not in AXES]
    found_fronts = {cost: fronts.front(board, cost) for cost in order[:MOST_COSTS]}
    drawing = charts.quality_cost(board, found_fronts, href)
    names = charts.names(board)
    made = [
        {
            "id": f"spec-{number}",
            "cost": cost,
            "title": charts.cost_title(cost),
            "spec": spec,
            "front": [(names[i], float(found_fronts[cost].share[i])) for i in found_fronts[cost].on.nonzero()[0]],
        }
        for number, (cost, spec) in enumerate(drawing.specs.items(), 1)
    ]
    made.append(
        {"id": "spec-intervals", "cost": "", "title": "intervals", "spec": charts.intervals(board), "front": []}
    )
    return {"charts": made, "chart_rows": drawing.rows}


def method_charts(results: Sequence[Result], frame: pd.DataFrame | None, tasks: Mapping[str, str]) -> dict[str, Any]:
    """What the template of a method needs for its charts: gap closed by task, and learning curves.

    ``tasks``: path of the page of a task by its digest.
    """
    entries = [
        charts.GapEntry(_place(result), "../" + tasks[result.board.spec_digest], result.row.gap)
        for result in results
        if result.row.gap is not None
    ]
    gaps = charts.gap_by_task(entries) if entries else None
    made: dict[str, Any] = {"gaps": gaps, "curves": [], "curve_spec": {}, "curves_said": "", "curves_left_out": 0}
    if frame is not None and len(frame):
        made |= _curves(frame)
    return made | {"charts": [name for name in ("gaps", "curves") if made[name]]}


def _place(result: Result) -> str:
    """The task without its track, and the parameters that differ from the defaults."""
    task, slug = result.board.title.split("/", 1)[-1], result.row.method.split("/", 1)[-1]
    return task if result.row.label in (slug, "") else f"{task} {result.row.label.removeprefix(slug)}"


def _curves(frame: pd.DataFrame) -> dict[str, Any]:
    found = charts.curves(frame)
    titles = dict(zip(frame["spec_digest"], frame["task"], strict=True))
    ordered = sorted(found.rows.items(), key=lambda item: (item[0][1] != "loss", titles[item[0][0]], item[0][1]))
    points = np.cumsum([sum(len(row["step"]) for row in rows) for _, rows in ordered])
    shown = max(int((points * _POINT <= CURVE_BYTES).sum()), 1)
    return {
        "curves": [
            {"title": f"{metric} on {titles[digest]}", "rows": rows} for (digest, metric), rows in ordered[:shown]
        ],
        "curves_left_out": len(ordered) - shown,
        "curve_spec": found.spec,
        "curves_said": "; ".join(_last(titles[digest], metric, rows) for (digest, metric), rows in ordered[:3]),
    }


def _last(task: str, metric: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The last value of each line, for readers who see no chart."""
    lines = ", ".join(
        f"{row['value'][-1]:.4g} ({row['name']})" if len(rows) > 1 else f"{row['value'][-1]:.4g}" for row in rows
    )
    return f"{metric} on {task} {lines}"
