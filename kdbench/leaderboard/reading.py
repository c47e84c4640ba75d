"""What boards need from the store, as few and as plain values as possible."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdbench.errors import UsageError, did_you_mean
from kdbench.leaderboard.selection import Selection
from kdbench.leaderboard.statistics import Values

if TYPE_CHECKING:
    import duckdb


class BoardJob(NamedTuple):
    """A job as a board sees it."""

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


def read_jobs(con: duckdb.DuckDBPyConnection, selection: Selection, metric: str | None) -> list[BoardJob]:
    """Selected jobs of the newest versions with their value of ``metric`` (None: the headline of each task)."""
    where, values = selection.where()
    columns = (
        "id, spec_digest, method, label, params::VARCHAR, seed, status, {value}, modules_digest, track_version, "
        "protocol, device, finished_at, gate::VARCHAR"
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
    return [BoardJob._make(row) for row in rows]


def check_metric(con: duckdb.DuckDBPyConnection, selection: Selection, metric: str, jobs: Sequence[BoardJob]) -> None:
    """Raise ``UsageError`` where none of ``jobs`` has the metric, with what is close."""
    if any(job.value is not None for job in jobs):
        return
    where, values = selection.where()
    known = con.execute(
        f"SELECT DISTINCT metric FROM store.metrics WHERE id IN (SELECT id FROM store.jobs WHERE {where})", values
    ).fetchall()
    hint = did_you_mean(metric, [name for (name,) in known], label="measured")
    raise UsageError(f"no result has the metric {metric!r}", place="--metric", hint=hint)


def read_tasks(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Specifications of all tasks by digest; their limits keep their order, the first being the primary unit."""
    rows = con.execute("SELECT spec_digest, spec::VARCHAR, limits::VARCHAR FROM store.tasks").fetchall()
    return {digest: {**json.loads(spec), "limits": json.loads(limits)} for digest, spec, limits in rows}


@dataclass(frozen=True)
class Spent:
    """What jobs spent."""

    meters: tuple[str, ...]
    position: dict[str, int]
    """Of each job in ``values``."""
    values: Values
    """(jobs, meters); NaN where a job has no such meter."""

    def of(self, ids: Sequence[str]) -> Values:
        """(len(ids), meters)."""
        found: Values = self.values[[self.position[id] for id in ids]]
        return found


def read_costs(con: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> Spent:
    """What these jobs spent."""
    names = [name for (name,) in con.execute("SELECT DISTINCT cost FROM store.costs ORDER BY cost").fetchall()]
    found = con.execute(  # numbers alone: making texts of a hundred thousand rows would take most of the time
        "SELECT place, list_position(?, cost) AS meter, value FROM store.costs JOIN "
        "(SELECT unnest(?) AS id, generate_subscripts(?, 1) AS place) USING (id)",
        [names, list(ids), list(ids)],
    ).fetchnumpy()
    values = np.full((len(ids), len(names)), np.nan)
    places = tuple(np.asarray(found[name]) - 1 for name in ("place", "meter"))
    values[places] = np.ma.filled(np.ma.asarray(found["value"], np.float64), np.nan)
    used = ~np.isnan(values).all(axis=0)
    meters = tuple(name for name, there in zip(names, used, strict=True) if there)
    return Spent(meters, {id: number for number, id in enumerate(ids)}, values[:, used])


def read_modules(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """Digests of kdbench's modules, by the digest of the set that a job used."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key, module, digest in con.execute("SELECT modules_digest, module, digest FROM store.modules").fetchall():
        found[key][module] = digest
    return found


def read_older(con: duckdb.DuckDBPyConnection, selection: Selection) -> Counter[str]:
    """How many results of earlier versions of methods there are, by digest of the task."""
    where, values = selection.where()
    rows = con.execute(
        f"SELECT spec_digest, count(*) FROM store.current_jobs WHERE NOT current AND {where} GROUP BY ALL", values
    ).fetchall()
    return Counter(dict(rows))
