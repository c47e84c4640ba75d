"""The data of the page that compares any two methods: one small script for each method, which the page loads by need.

Pages that are opened as files may not fetch anything, so that the data are scripts that assign to ``kdbench.data``.
The page pairs the seeds itself; its t intervals are those of
:func:`kdbench.leaderboard.statistics.paired_difference`, of which it has the quantiles.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import plain
from kdbench.leaderboard import render
from kdbench.leaderboard.board import Board, Row, budget_text
from kdbench.leaderboard.report import assets, names
from kdbench.leaderboard.statistics import FEWEST_EQUAL, t_quantile

FOLDER = assets.FOLDER / "data"
INDEX = "compare"
"""Script with the methods, the tasks and the quantiles; those of methods have its name and a number."""


def write(boards: Sequence[Board], out: Path) -> list[Path]:
    """Write the scripts into ``out/assets/data``; returns their paths relative to ``out``."""
    scripts = {FOLDER / f"{name}.js": script(name, value) for name, value in data(boards).items()}
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for path, text in scripts.items():
        (out / path).write_text(text, encoding="utf-8")
    return list(scripts)


def script(name: str, value: Any) -> str:
    """A script that assigns a JSON value to ``kdbench.data[name]``."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return f"((window.kdbench ??= {{}}).data ??= {{}})[{json.dumps(name)}]={text};\n"


def data(boards: Sequence[Board]) -> dict[str, Any]:
    """Values by name of their script.

    ``compare``: ``methods`` (rows of boards, alike on all tasks: ``[name, page, script]``, the name being
    ``track/label``), ``tasks``, and ``quantiles``: of Student's distribution for 95 % intervals by number of seeds, the
    first two being null. ``compare-N``: of one method ``[task, values, failed]`` for each of its tasks, the values
    being those of the task's seeds, with null for none.
    """
    rows: dict[tuple[str, str], list[tuple[int, Row]]] = defaultdict(list)
    for task, board in enumerate(boards):
        for row, name in zip(board.rows, _names(board), strict=True):
            rows[name, row.method].append((task, row))
    found: dict[str, Any] = {}
    methods = []
    for number, ((name, method), entries) in enumerate(sorted(rows.items())):
        methods.append([name, names.method_page(method), f"{INDEX}-{number}"])
        found[f"{INDEX}-{number}"] = [_values(task, row) for task, row in entries]
    most = max((len(board.seeds) for board in boards), default=0)
    pages, titles = names.task_pages(boards), _titles(boards)
    about = {
        "methods": methods,
        "tasks": [_task(board, title, pages[board.spec_digest]) for board, title in zip(boards, titles, strict=True)],
        "quantiles": [None, None, *(t_quantile(n) for n in range(2, most + 1))],
        "fewest": FEWEST_EQUAL,
    }
    return {INDEX: about} | found


def _names(board: Board) -> list[str]:
    """``track/label`` of the rows, different for each. Labels are free texts: one that is not its method's own carries
    the slug too, and what is still the same is numbered."""
    found: list[str] = []
    for row in board.rows:
        slug = row.method.split("/", 1)[-1]
        own = row.label == slug or row.label.startswith(f"{slug}(")
        found.append(plain(f"{board.track}/{row.label}" if own else f"{board.track}/{row.label} [{slug}]"))
    counts = Counter(found)
    return [name if counts[name] == 1 else f"{name} #{place}" for place, name in enumerate(found, start=1)]


def _titles(boards: Sequence[Board]) -> list[str]:
    """Titles of the tasks; definitions of the same one carry their budget and digest."""
    counts = Counter(board.title for board in boards)
    return [
        plain(
            board.title
            if counts[board.title] == 1
            else f"{board.title} ({budget_text(board.limits)}; {board.spec_digest})"
        )
        for board in boards
    ]


def _task(board: Board, title: str, page: str) -> dict[str, Any]:
    return {
        "title": title,
        "page": page,
        "metric": plain(board.metric),
        "unit": plain(board.unit),
        "factor": render.factor_of(board),
        "direction": board.direction,
        "resolution": board.resolution,
        "seeds": board.seeds,
        "refused": bool(board.refused),
    }


def _values(task: int, row: Row) -> list[Any]:
    return [task, [value if math.isfinite(value) else None for value in row.values.tolist()], row.n_failed]
