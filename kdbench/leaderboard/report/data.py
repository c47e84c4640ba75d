"""What the pages are made of: read from the store once, before any page is written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.boards import Board, Row, Selection, load_boards
from kdbench.leaderboard.claims import Finding, load_claims

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from kdbench.registry import Registry

CURVE_POINTS = 60
"""Points of a learning curve that are read."""
PICTURES = (".png", ".gif", ".svg", ".jpg", ".jpeg", ".webp")
SHOWN = ("samples", "artifacts")
"""Folders of a job whose pictures are shown."""
SAMPLES = 16
"""Pictures that a method's page shows."""
FAILED = "status NOT IN ('ok', 'interrupted')"


@dataclass(frozen=True)
class FailedJob:
    """A job that ended without a result."""

    id: str
    method: str
    label: str
    task: str
    scale: str
    spec_digest: str
    seed: int
    status: str
    error_type: str
    error: str
    started_at: datetime
    finished_at: datetime
    attempts: int
    device: str
    suite: str
    params: str
    """JSON."""

    @property
    def title(self) -> str:
        """``task@scale``."""
        return f"{self.task}@{self.scale}"


@dataclass(frozen=True)
class Origin:
    """Jobs of a method that were made by the same code on the same kind of machine."""

    method_digest: str
    track_version: int
    protocol: int
    version: str
    git_commit: str
    git_dirty: bool
    device: str
    python: str
    cpu: str
    packages: Mapping[str, str]
    jobs: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Sample:
    """A picture that a job of a method left."""

    id: str
    """Job."""
    path: str
    """In the job's folder."""
    task: str
    label: str
    seed: int
    caption: str = ""
    """What it shows."""


@dataclass
class Material:
    """Everything of a results folder that pages show."""

    boards: list[Board]
    specs: dict[str, dict[str, Any]]
    """What decides the results of a task, by the digest of it."""
    findings: list[Finding]
    failed: list[FailedJob]
    jobs: int
    newest: datetime
    """When the last of the jobs ended."""
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Learning curves by method: see :func:`_curves`."""
    origins: dict[str, list[Origin]] = field(default_factory=dict)
    """By method, those of most jobs first."""
    suites: dict[str, list[str]] = field(default_factory=dict)
    """Suites that hold jobs of a method."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def rows(self) -> dict[str, list[tuple[Board, Row]]]:
        """Rows of boards by method."""
        found: dict[str, list[tuple[Board, Row]]] = defaultdict(list)
        for board in self.boards:
            for row in board.rows:
                found[row.method].append((board, row))
        return found


def load(con: duckdb.DuckDBPyConnection, registry: Registry, selection: Selection) -> Material:
    """Read what the selected jobs left. Raises ``UsageError`` where nothing fits the selection."""
    boards = load_boards(con, selection)
    where, values = selection.where()
    jobs, newest = con.execute(f"SELECT count(*), max(finished_at) FROM store.jobs WHERE {where}", values).fetchall()[0]
    rows = con.execute("SELECT spec_digest, spec::VARCHAR FROM store.tasks").fetchall()
    return Material(
        boards=boards,
        specs={digest: json.loads(spec) for digest, spec in rows},
        findings=_findings(con, registry, selection, boards),
        failed=_failed(con, where, values),
        jobs=jobs,
        newest=newest,
        curves=_curves(con, where, values),
        origins=_origins(con, where, values),
        suites=_suites(con, where, values),
        samples=_samples(con, where, values),
    )


def _findings(
    con: duckdb.DuckDBPyConnection, registry: Registry, selection: Selection, boards: list[Board]
) -> list[Finding]:
    """Of all cards of the selected tracks; of a suite, those that its tasks say something about."""
    chosen = [key for key, method in registry.methods.items() if selection.track in (None, method.track)]
    found = load_claims(con, registry, methods=chosen)
    if selection.suite is None:
        return found
    digests = {board.spec_digest for board in boards}
    return [finding for finding in found if finding.jobs and finding.spec_digest in digests]


def _failed(con: duckdb.DuckDBPyConnection, where: str, values: list[str]) -> list[FailedJob]:
    rows = con.execute(
        "SELECT id, method, label, task, scale, spec_digest, seed, status, coalesce(error_type, ''), "
        "coalesce(error, ''), started_at, finished_at, attempts, coalesce(device, ''), suite, params::VARCHAR "
        f"FROM store.current_jobs WHERE current AND {FAILED} AND {where} ORDER BY task, scale, label, seed, id",
        values,
    ).fetchall()
    return [FailedJob(*row) for row in rows]


def _curves(con: duckdb.DuckDBPyConnection, where: str, values: list[str]) -> dict[str, pd.DataFrame]:
    """Logged values of successful jobs by method: a row per task, label, metric and step.

    Columns: ``spec_digest``, ``task`` (``track/name@scale``), ``label``, ``metric``, ``step``, and over the seeds that
    logged it ``value`` (mean), ``low`` and ``high`` (smallest and largest) and ``seeds``. Of more than
    :data:`CURVE_POINTS` steps every k-th and the last are read.
    """
    frame = con.execute(
        "WITH lines AS ("
        "  SELECT j.method, j.spec_digest, j.task || '@' || j.scale AS task, j.label, c.metric, c.step,"
        "         avg(c.value) AS value, min(c.value) AS low, max(c.value) AS high, count(*) AS seeds"
        "  FROM store.curves AS c JOIN ("
        f"   SELECT * FROM store.current_jobs WHERE current AND status = 'ok' AND {where}) AS j USING (id)"
        "  WHERE isfinite(c.value) GROUP BY ALL"
        ") SELECT * FROM lines "
        "WINDOW whole AS (PARTITION BY method, spec_digest, label, metric),"
        "  line AS (PARTITION BY method, spec_digest, label, metric ORDER BY step) "
        "QUALIFY (row_number() OVER line - 1) % greatest(ceil(count(*) OVER whole / ?), 1) = 0"
        "  OR row_number() OVER line = count(*) OVER whole "
        "ORDER BY method, task, spec_digest, label, metric, step",
        [*values, CURVE_POINTS - 1],
    ).df()
    # texts as objects of Python: columns of Arrow are slow to go through, which the charts do for each method
    frame = frame.astype(dict.fromkeys(("method", "spec_digest", "task", "label", "metric"), object))
    return {str(method): part.drop(columns="method") for method, part in frame.groupby("method", sort=False)}


def _origins(con: duckdb.DuckDBPyConnection, where: str, values: list[str]) -> dict[str, list[Origin]]:
    rows = con.execute(
        "SELECT method, method_digest, track_version, protocol, coalesce(version, ''), coalesce(git_commit, ''), "
        "coalesce(git_dirty, false), coalesce(device, ''), coalesce(provenance ->> '$.python', ''), "
        "coalesce(provenance ->> '$.hardware.cpu', ''), coalesce(provenance ->> '$.packages', '{}'), "
        "count(*), min(started_at), max(finished_at) "
        f"FROM store.current_jobs WHERE current AND {where} GROUP BY ALL ORDER BY method, count(*) DESC",
        values,
    ).fetchall()
    found: dict[str, list[Origin]] = defaultdict(list)
    for method, *parts in rows:
        parts[9] = json.loads(parts[9])
        found[method].append(Origin(*parts))
    return dict(found)


def _suites(con: duckdb.DuckDBPyConnection, where: str, values: list[str]) -> dict[str, list[str]]:
    rows = con.execute(
        "SELECT DISTINCT j.method, s.suite FROM store.suites AS s "
        f"JOIN (SELECT id, method FROM store.jobs WHERE {where}) AS j USING (id) ORDER BY ALL",
        values,
    ).fetchall()
    found: dict[str, list[str]] = defaultdict(list)
    for method, suite in rows:
        found[method].append(suite)
    return dict(found)


def _samples(con: duckdb.DuckDBPyConnection, where: str, values: list[str]) -> dict[str, list[Sample]]:
    """Pictures in :data:`SHOWN` by method, at most :data:`SAMPLES` of each: one of every task in turn."""
    folders, suffixes = "|".join(SHOWN), "|".join(suffix[1:] for suffix in PICTURES)
    rows = con.execute(
        "SELECT method, task || '@' || scale, label, seed, id, artifacts::VARCHAR FROM store.current_jobs "
        "WHERE current AND status = 'ok' AND regexp_matches(artifacts::VARCHAR, ?, 'i') "
        f"AND {where} ORDER BY method, seed, task, scale, label",
        [f'"({folders})/[^"]*[.]({suffixes})"', *values],
    ).fetchall()
    turns: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for method, task, label, seed, id, artifacts in rows:
        for path in json.loads(artifacts):
            pure = PurePosixPath(path)
            if pure.parts[0] in SHOWN and pure.suffix.lower() in PICTURES and ".." not in pure.parts:
                turns[method][task].append(Sample(id, path, task, label, seed))
    return {method: _in_turn(list(by_task.values()))[:SAMPLES] for method, by_task in turns.items()}


def _in_turn(groups: list[list[Sample]]) -> list[Sample]:
    longest = max(map(len, groups), default=0)
    return [group[index] for index in range(longest) for group in groups if index < len(group)]
