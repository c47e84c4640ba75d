"""What a board is: methods on one task, by one metric. Made by :mod:`kdbench.leaderboard.boards`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdbench.leaderboard.statistics import Direction, Estimate, Rank, Values
from kdbench.store import schema


@dataclass
class Row:
    """A method with parameters on a board."""

    method: str
    """``track/slug``."""
    label: str
    params: dict[str, Any]
    score: Estimate | None
    """Mean over seeds with its interval; None where no job succeeded."""
    values: Values
    """(seeds,) of the board; NaN where there is none."""
    n_failed: int
    failures: dict[str, int]
    """Failed jobs by status."""
    costs: dict[str, float]
    """Mean of each meter over the seeds that succeeded."""
    complete: bool
    """Every job gave a value."""
    rank: Rank | None = None
    """Places that the paired tests leave open."""
    gap: Estimate | None = None
    """Gap closed between floor (0) and ceiling (1) of the task."""
    mixed: list[str] = field(default_factory=list)
    """Parts of kdbench of which this row used an older version than the newest on its board."""
    ties: str = ""
    """Letters that it shares with the methods that no test separates from it; empty on a board of more than
    ``boards.LETTERS`` methods, and for a method that failed somewhere or was not tested."""
    spent: Values = field(default_factory=lambda: np.empty((0, 0)))
    """(meters, seeds) of the board: what each successful job spent; NaN where nothing was recorded."""
    limits: dict[str, float] = field(default_factory=dict)
    """What its jobs could spend (unit to amount); on one board they differ only where budgets are mixed."""
    spec_digest: str = ""
    """Of the task that its jobs solved, limits included."""


@dataclass
class Board:
    """Every method on one task, by one metric."""

    task: str
    scale: str
    spec_digest: str
    """Digest of the task; of the task without its limits where budgets are mixed."""
    metric: str
    headline: bool
    """Whether the metric is the task's headline."""
    direction: Direction | None
    """None for a metric that only methods themselves measured: rows are neither ranked nor related to the gap."""
    unit: str
    bounds: tuple[float | None, float | None]
    limits: dict[str, float]
    """Of every row; empty where budgets are mixed."""
    teacher_seed: int
    floor: str
    ceiling: str
    seeds: list[int]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    """What a reader must know: mixtures, older results left out, other definitions of the task."""
    refused: list[str] = field(default_factory=list)
    """Why the task refuses a board (``Task.board_problems``): the reasons are published instead of the rows."""
    meters: tuple[str, ...] = ()
    """Names of what jobs spent, in the order of :attr:`Row.spent`."""
    budgets: list[dict[str, float]] = field(default_factory=list)
    """The limits that are mixed, where they are; empty for one budget."""

    @property
    def title(self) -> str:
        """``task@scale``."""
        return f"{self.task}@{self.scale}"

    @property
    def track(self) -> str:
        return self.task.split("/", 1)[0]

    def about(self) -> dict[str, Any]:
        """Which task and metric it is about, for machines."""
        return {name: getattr(self, name) for name in ("task", "scale", "spec_digest", "metric", "direction", "unit")}

    @property
    def resolution(self) -> float:
        """What one test example can change in the metric; 0 where the metric has no bounds or that is unknown."""
        lower, upper = self.bounds
        examples = max((row.costs.get(schema.TEST_EXAMPLES, 0.0) for row in self.rows), default=0.0)
        if not self.headline or lower is None or upper is None or examples < 1:
            return 0.0
        return (upper - lower) / examples

    @property
    def failed(self) -> bool:
        """Whether any job of it failed, or gave no value of the metric."""
        return any(not row.complete for row in self.rows)


def budget_text(limits: dict[str, float]) -> str:
    """Limits for people: ``100 steps, 6400 teacher_queries``."""
    return ", ".join(f"{amount:g} {unit}" for unit, amount in limits.items()) or "none"


def reference(board: Board, slug: str, spec_digest: str | None = None) -> Row | None:
    """The row of a task's floor or ceiling: the method at its defaults, or its only row.

    ``spec_digest``: among the rows of this budget, where budgets are mixed.
    """
    rows = [
        row for row in board.rows if row.method == f"{board.track}/{slug}" and spec_digest in (None, row.spec_digest)
    ]
    return next((row for row in rows if row.label == slug), rows[0] if len(rows) == 1 else None)
