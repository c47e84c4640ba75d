"""Boards: what ``kdbench leaderboard`` shows, one per (task, scale, digest of the task).

A board compares jobs that solved exactly the same task. Of a method that was edited, only the newest version counts.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdbench.errors import UsageError, did_you_mean
from kdbench.leaderboard import statistics
from kdbench.leaderboard.statistics import Direction, Estimate, Rank, Values
from kdbench.spec import SCALES
from kdbench.store import schema

if TYPE_CHECKING:
    import duckdb

UNFINISHED = "interrupted"
"""Status of jobs that neither succeeded nor failed: they run again, and no board counts them."""


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


@dataclass
class Board:
    """Every method on one task, by one metric."""

    task: str
    scale: str
    spec_digest: str
    metric: str
    headline: bool
    """Whether the metric is the task's headline."""
    direction: Direction | None
    """None for a metric that only methods themselves measured: rows are neither ranked nor related to the gap."""
    unit: str
    bounds: tuple[float | None, float | None]
    limits: dict[str, float]
    teacher_seed: int
    floor: str
    ceiling: str
    seeds: list[int]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    """What a reader must know: mixtures, older results left out, other definitions of the task."""
    refused: list[str] = field(default_factory=list)
    """Why the task refuses a board (``Task.board_problems``): the reasons are published instead of the rows."""

    @property
    def title(self) -> str:
        """``task@scale``."""
        return f"{self.task}@{self.scale}"

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


@dataclass(frozen=True)
class Selection:
    """Which jobs to show; None: all."""

    suite: str | None = None
    track: str | None = None
    task: str | None = None
    """``track/name``, ``name`` or either with ``@scale``."""
    method: str | None = None
    """``track/slug`` or ``slug``."""

    def where(self) -> tuple[str, list[str]]:
        """A condition on the columns of ``jobs`` with its values."""
        parts, values = ["TRUE"], []
        if self.suite is not None:
            parts.append("id IN (SELECT id FROM store.suites WHERE suite = ?)")
            values.append(self.suite)
        if self.track is not None:
            parts.append("track = ?")
            values.append(self.track)
        if self.task is not None:
            name, _, scale = self.task.partition("@")
            parts.append("task = ?" if "/" in name else "split_part(task, '/', 2) = ?")
            values.append(name)
            if scale:
                parts.append("scale = ?")
                values.append(scale)
        if self.method is not None:
            parts.append("method = ?" if "/" in self.method else "slug = ?")
            values.append(self.method)
        return " AND ".join(parts), values

    def check(self, con: duckdb.DuckDBPyConnection) -> None:
        """Raise ``UsageError`` where the results hold nothing that fits, with what is close."""
        where, values = self.where()
        if con.execute(f"SELECT count(*) FROM store.jobs WHERE {where}", values).fetchone() != (0,):
            return
        tasks = "SELECT DISTINCT task FROM store.jobs UNION SELECT DISTINCT task || '@' || scale FROM store.jobs"
        for option, value, known in (
            ("suite", self.suite, "SELECT DISTINCT suite FROM store.suites"),
            ("track", self.track, "SELECT DISTINCT track FROM store.jobs"),
            ("task", self.task, f"{tasks} UNION SELECT split_part(task, '/', 2) FROM store.jobs"),
            ("method", self.method, "SELECT DISTINCT method FROM store.jobs UNION SELECT slug FROM store.jobs"),
        ):
            if value is None:
                continue
            names = [name for (name,) in con.execute(known).fetchall()]
            if value not in names:
                message = f"no results of the {option} {value!r}"
                raise UsageError(message, place=f"--{option}", hint=did_you_mean(value, names, label="with results"))
        given = ", ".join(f"{name} {value!r}" for name, value in vars(self).items() if value is not None)
        raise UsageError(f"no results fit {given} together")


class _Job(NamedTuple):
    id: str
    spec_digest: str
    method: str
    label: str
    params: str
    seed: int
    status: str
    value: float | None
    modules_digest: str
    track_version: int
    protocol: int
    device: str | None
    finished_at: Any
    gate: str | None
    """JSON list of what the task said against a board; None where it said nothing."""


def load_boards(
    con: duckdb.DuckDBPyConnection, selection: Selection | None = None, metric: str | None = None
) -> list[Board]:
    """Boards of the selected jobs, by task, scale and (newest first) definition of the task.

    ``metric``: any official or extra metric; boards without it are left out. None: each task's headline metric.
    Raises ``UsageError`` where nothing fits.
    """
    selection = selection or Selection()
    selection.check(con)
    jobs = _jobs(con, selection, metric)
    if metric is not None:
        _check_metric(con, selection, metric, jobs)
    about = _tasks(con)
    costs = _costs(con, selection)
    modules = _modules(con)
    left_out = _older(con, selection)
    boards = []
    for spec_digest, group in _grouped(jobs, lambda job: job.spec_digest).items():
        if metric is None or any(job.value is not None for job in group):
            board = _board(group, about[spec_digest], metric, costs, modules)
            if left_out[spec_digest]:
                board.notes.append(f"{left_out[spec_digest]} results of earlier versions of its methods are left out")
            boards.append((max(job.finished_at for job in group), board))
    boards.sort(key=lambda pair: pair[0], reverse=True)
    boards.sort(key=lambda pair: (pair[1].task, SCALES.index(pair[1].scale) if pair[1].scale in SCALES else 99))
    found = [board for _, board in boards]
    several = Counter(board.title for board in found)
    for board in found:
        if several[board.title] > 1:
            board.notes.append(
                f"one of {several[board.title]} definitions of {board.title} (this one: {board.spec_digest}); "
                "they are different tasks and not comparable"
            )
    return found


def _grouped(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _jobs(con: duckdb.DuckDBPyConnection, selection: Selection, metric: str | None) -> list[_Job]:
    where, values = selection.where()
    columns = (
        "id, spec_digest, method, label, params::VARCHAR, seed, status, {value}, modules_digest, track_version, "
        "protocol, device, finished_at, provenance ->> '$.gate'"
    )
    order = "ORDER BY task, method, label, seed"
    if metric is None:
        source = f"SELECT {columns.format(value='score')} FROM store.current_jobs WHERE current AND {where} {order}"
        rows = con.execute(source, values).fetchall()
    else:
        source = (
            f"SELECT {columns.format(value='value')} FROM store.current_jobs "
            "LEFT JOIN (SELECT id, value FROM store.metrics WHERE metric = ?) USING (id) "
            f"WHERE current AND {where} {order}"
        )
        rows = con.execute(source, [metric, *values]).fetchall()
    return [_Job._make(row) for row in rows]


def _check_metric(con: duckdb.DuckDBPyConnection, selection: Selection, metric: str, jobs: Sequence[_Job]) -> None:
    if any(job.value is not None for job in jobs):
        return
    where, values = selection.where()
    known = con.execute(
        f"SELECT DISTINCT metric FROM store.metrics WHERE id IN (SELECT id FROM store.jobs WHERE {where})", values
    ).fetchall()
    hint = did_you_mean(metric, [name for (name,) in known], label="measured")
    raise UsageError(f"no result has the metric {metric!r}", place="--metric", hint=hint)


def _tasks(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    rows = con.execute("SELECT spec_digest, spec::VARCHAR, limits::VARCHAR FROM store.tasks").fetchall()
    return {digest: {**json.loads(spec), "limits": json.loads(limits)} for digest, spec, limits in rows}


def _costs(con: duckdb.DuckDBPyConnection, selection: Selection) -> dict[tuple[str, str, str], dict[str, float]]:
    where, values = selection.where()
    rows = con.execute(
        "SELECT spec_digest, method, params::VARCHAR, cost, avg(value) FROM store.costs JOIN ("
        "  SELECT id, spec_digest, method, params FROM store.current_jobs "
        f" WHERE current AND status = 'ok' AND {where}) USING (id) GROUP BY ALL ORDER BY cost",
        values,
    ).fetchall()
    found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for spec_digest, method, params, cost, value in rows:
        found[spec_digest, method, params][cost] = value
    return found


def _modules(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key, module, digest in con.execute("SELECT modules_digest, module, digest FROM store.modules").fetchall():
        found[key][module] = digest
    return found


def _older(con: duckdb.DuckDBPyConnection, selection: Selection) -> Counter[str]:
    where, values = selection.where()
    rows = con.execute(
        f"SELECT spec_digest, count(*) FROM store.current_jobs WHERE NOT current AND {where} GROUP BY ALL", values
    ).fetchall()
    return Counter(dict(rows))


def _board(
    jobs: Sequence[_Job],
    spec: Mapping[str, Any],
    metric: str | None,
    costs: Mapping[tuple[str, str, str], dict[str, float]],
    modules: Mapping[str, Mapping[str, str]],
) -> Board:
    metric = metric or str(spec["headline"]["name"])
    official = {item["name"]: item for item in (spec["headline"], *spec.get("metrics", ()))}
    about = official.get(metric, {})
    seeds = sorted({job.seed for job in jobs})
    column = {seed: index for index, seed in enumerate(seeds)}
    mixed = _mixtures(jobs, modules)
    rows = []
    for (method, params), group in _grouped(jobs, lambda job: (job.method, job.params)).items():
        started = [job for job in group if job.status != UNFINISHED]
        values = np.full(len(seeds), np.nan)
        for job in started:
            if job.status == "ok" and job.value is not None and np.isfinite(job.value):
                values[column[job.seed]] = job.value
        n = int(np.isfinite(values).sum())
        failures = Counter(job.status for job in started if job.status != "ok")
        if not started or (n == 0 and not about):
            continue  # a method's own metric says nothing about methods that do not measure it
        rows.append(
            Row(
                method=method,
                label=max(group, key=lambda job: job.finished_at).label,
                params=json.loads(params),
                score=None,
                values=values,
                n_failed=failures.total(),
                failures=dict(failures),
                costs=costs.get((group[0].spec_digest, method, params), {}),
                complete=n == len(started),
                mixed=sorted({part for job in group for part in mixed.get(job.id, ())}),
            )
        )
    scores = statistics.mean_intervals(np.array([row.values for row in rows]).reshape(len(rows), len(seeds)))
    for row, score in zip(rows, scores, strict=True):
        row.score = score
    lower, upper = about.get("bounds") or (None, None)
    board = Board(
        task=str(spec["name"]),
        scale=str(spec["scale"]),
        spec_digest=jobs[0].spec_digest,
        metric=metric,
        headline=metric == spec["headline"]["name"],
        direction=about.get("direction"),
        unit=about.get("unit", ""),
        bounds=(lower, upper),
        limits=dict(spec.get("limits", {})),
        teacher_seed=int(spec.get("teacher_seed", 0)),
        floor=str(spec.get("floor", "")),
        ceiling=str(spec.get("ceiling", "")),
        seeds=seeds,
        rows=rows,
        refused=_refused(jobs),
    )
    _compare(board)
    board.notes += _notes(board, jobs)
    return board


def _refused(jobs: Sequence[_Job]) -> list[str]:
    """What the task said against a board in the newest job that got as far as being asked."""
    asked = [job for job in jobs if job.status == "ok"]
    newest = max(asked, key=lambda job: job.finished_at, default=None)
    if newest is None or newest.gate is None:
        return []
    return [str(reason) for reason in json.loads(newest.gate)]


def _compare(board: Board) -> None:
    """Ranks, gap closed and order: by mean, the methods that failed somewhere behind, those without a value last."""
    sign = -1.0 if board.direction == "min" else 1.0

    def position(row: Row) -> tuple[bool, bool, float, str]:
        return row.score is None, not row.complete, -sign * row.score.mean if row.score else 0.0, row.label

    board.rows.sort(key=position)
    if board.direction is None or not board.rows:
        return
    values = np.stack([row.values for row in board.rows])
    complete = np.array([row.complete for row in board.rows])
    ranks = statistics.ranks(values, complete, board.direction, board.resolution)
    for row, rank in zip(board.rows, ranks, strict=True):
        row.rank = rank
    floor, ceiling = reference(board, board.floor), reference(board, board.ceiling)
    if floor is None or ceiling is None:
        return
    gaps = statistics.gaps_closed(values, floor.values, ceiling.values, board.direction, board.resolution)
    for row, gap in zip(board.rows, gaps, strict=True):
        row.gap = gap


def reference(board: Board, slug: str) -> Row | None:
    """The row of a task's floor or ceiling: the method at its defaults, or its only row."""
    track = board.task.split("/", 1)[0]
    rows = [row for row in board.rows if row.method == f"{track}/{slug}"]
    return next((row for row in rows if row.label == slug), rows[0] if len(rows) == 1 else None)


def _mixtures(jobs: Sequence[_Job], modules: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """For each job, the parts of kdbench of which another job of the board used a newer version."""
    newest: dict[str, str] = {}
    track_version = max(job.track_version for job in jobs)
    protocol = max(job.protocol for job in jobs)
    for job in sorted(jobs, key=lambda job: job.finished_at):
        newest.update(modules.get(job.modules_digest, {}))
    by_set = {
        key: [module for module, digest in modules.get(key, {}).items() if newest[module] != digest]
        for key in {job.modules_digest for job in jobs}
    }
    found = {}
    for job in jobs:
        parts = list(by_set[job.modules_digest])
        if job.track_version != track_version:
            parts.append(f"track version {job.track_version}")
        if job.protocol != protocol:
            parts.append(f"protocol {job.protocol}")
        if parts:
            found[job.id] = parts
    return found


def _notes(board: Board, jobs: Sequence[_Job]) -> list[str]:
    notes = []
    mixed = [row for row in board.rows if row.mixed]
    if mixed:
        parts = sorted({part for row in mixed for part in row.mixed})
        shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
        notes.append(
            f"rows marked * come from an older version of kdbench's own code ({shown}); kdbench run with "
            "--stale rerun makes them anew"
        )
    devices = sorted({job.device.split(":")[0] for job in jobs if job.device})
    if len(devices) > 1:
        notes.append(f"jobs ran on different devices ({', '.join(devices)}): do not compare their seconds")
    if board.direction is None:
        notes.append(f"{board.metric} is measured by methods themselves: not ranked")
    elif board.rows and all(row.rank is None for row in board.rows):
        notes.append("ranks need at least two seeds per method")
    return notes


def records(boards: Iterable[Board]) -> list[dict[str, Any]]:
    """Boards as flat rows for programs: one per method, the same keys in every row.

    A refused board is one row without a method, with the reasons under ``refused``.
    """
    return [record for board in boards for record in _records(board)]


def _records(board: Board) -> list[dict[str, Any]]:
    about = board.about()
    end = {"limits": json.dumps(board.limits)}
    if board.refused:
        return [about | dict.fromkeys(_ROW_KEYS) | end | {"mixed": "", "refused": board.refused}]
    return [about | _record(row) | end | {"mixed": ", ".join(row.mixed), "refused": []} for row in board.rows]


_ROW_KEYS = (
    *("rank_best", "rank_worst", "method", "label", "params", "mean", "low", "high", "n", "n_failed"),
    *("gap_closed", "gap_low", "gap_high", *schema.COSTS),
)


def _record(row: Row) -> dict[str, Any]:
    score, gap = row.score, row.gap
    values = (
        *(row.rank or (None, None)),
        *(row.method, row.label, json.dumps(row.params, sort_keys=True)),
        *((score.mean, score.low, score.high, score.n) if score else (None, None, None, 0)),
        row.n_failed,
        *((gap.mean, gap.low, gap.high) if gap else (None, None, None)),
        *(row.costs.get(name) for name in schema.COSTS),
    )
    return dict(zip(_ROW_KEYS, values, strict=True))
