"""From outcomes to rows, and rows into an open DuckDB store.

Rows go in as Arrow tables, one transaction per batch of outcomes, so that a store is never left with half a job.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from kdbench.errors import Problem, UsageError
from kdbench.job import Outcome
from kdbench.spec import canonical_json, digest
from kdbench.store import membership, schema, spool

BATCH = 1000
"""Outcomes per transaction."""

ARROW = {
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us"),
}
"""Types of the store's columns."""

ASKED = {"method_file", "module", "resources", "timeout", "heartbeat", "checkpoint_every", "keep"}
"""Fields of a job that neither decide its results nor have a column."""

MOST_FREEDOM = 1000
"""Degrees of freedom up to which the store has Student's quantiles; those of more are within 0.1 % of the last."""

Rows = list[tuple[Any, ...]]


@dataclass
class Batch:
    """Rows of some outcomes, by table; shared rows by their key."""

    rows: dict[str, Rows] = field(default_factory=lambda: {name: [] for name in schema.PER_JOB})
    shared: dict[str, dict[str, Rows]] = field(default_factory=lambda: {name: {} for name in schema.KEYED})

    def add(self, outcome: Outcome, stamp: spool.Stamp, curve: Sequence[Mapping[str, float | None]]) -> None:
        """Add the rows of an outcome with its curve."""
        job = outcome.job
        spec_digest = job.spec_digest
        provenance = outcome.provenance
        modules = {name: str(value) for name, value in _mapping(provenance.get("modules")).items()}
        git = _mapping(provenance.get("git"))
        modules_digest = digest(modules)
        values = {
            "id": outcome.id,
            "stamp": spool.stamp_text(stamp),
            "track": job.track,
            "task": job.task,
            "scale": job.scale,
            "spec_digest": spec_digest,
            "method": job.method,
            "slug": job.method.split("/", 1)[-1],
            "label": job.label or job.method.split("/", 1)[-1],
            "params": canonical_json(job.params),
            "params_digest": digest(job.params),
            "method_digest": job.method_digest,
            "seed": job.seed,
            "suite": job.suite,
            "status": outcome.status,
            "score": outcome.headline,
            "error_type": outcome.error.type if outcome.error else None,
            "error": outcome.error.message if outcome.error else None,
            "traceback": outcome.error.traceback if outcome.error else None,
            "started_at": outcome.started_at,
            "finished_at": outcome.finished_at,
            "attempts": outcome.attempts,
            "track_version": job.track_version,
            "protocol": job.protocol,
            "version": digest([job.method_digest, job.track_version, job.protocol]),
            "modules_digest": modules_digest,
            "git_commit": git.get("commit"),
            "git_dirty": git.get("dirty"),
            "device": provenance.get("device"),
            "artifacts": json.dumps(outcome.artifacts),
            "provenance": json.dumps(provenance, default=str),
            "asked": job.model_dump_json(include=ASKED),
            "gate": json.dumps(provenance["gate"]) if provenance.get("gate") else None,
            "current": None,  # see _mark_current
        }
        self.rows["jobs"].append(tuple(values[name] for name in schema.TABLES["jobs"]))
        for metrics, official in ((outcome.metrics, True), (outcome.extra, False)):
            self.rows["metrics"] += [(outcome.id, name, value, official) for name, value in metrics.items()]
        self.rows["costs"] += [(outcome.id, name, value) for name, value in outcome.cost.items()]
        for point in curve:
            step = point["step"]
            if step is not None:
                self.rows["curves"] += [
                    (outcome.id, int(step), name, value) for name, value in point.items() if name != "step"
                ]
        self._share("modules", modules_digest, [(modules_digest, *pair) for pair in modules.items()])
        if spec_digest not in self.shared["tasks"]:
            self._share("tasks", spec_digest, [_task_row(spec_digest, job.spec)])
            self._share("task_metrics", spec_digest, _metric_rows(spec_digest, job.spec))

    def _share(self, table: str, key: str, rows: Rows) -> None:
        self.shared[table].setdefault(key, rows)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _task_row(spec_digest: str, spec: Mapping[str, Any]) -> tuple[Any, ...]:
    # limits keep their order: the first is the primary unit
    limits = json.dumps(spec.get("limits", {}))
    headline = _mapping(spec.get("headline")).get("name")
    return (
        spec_digest,
        spec.get("family"),
        headline,
        spec.get("floor"),
        spec.get("ceiling"),
        limits,
        canonical_json(dict(spec)),
    )


def _metric_rows(spec_digest: str, spec: Mapping[str, Any]) -> Rows:
    rows: Rows = []
    for number, metric in enumerate([spec.get("headline"), *spec.get("metrics", ())]):
        about = _mapping(metric)
        lower, upper = about.get("bounds") or (None, None)
        row = (spec_digest, about.get("name"), number == 0, about.get("direction"), about.get("unit"), lower, upper)
        rows.append(row)
    return rows


def create(con: duckdb.DuckDBPyConnection) -> None:
    """Make an empty store of the current form."""
    from scipy.special import stdtrit  # a third of a second, which only a new store needs

    con.execute("BEGIN")
    for statement in schema.statements():
        con.execute(statement)
    con.execute("INSERT INTO store.meta VALUES ('schema', ?)", [str(schema.VERSION)])
    append(con, "student", [(df, float(stdtrit(df, 0.975))) for df in range(1, MOST_FREEDOM + 1)])
    con.execute("COMMIT")


def version_of(con: duckdb.DuckDBPyConnection) -> int | None:
    """Version of a store's form; None for a database that is no store."""
    try:
        found = con.execute("SELECT value FROM store.meta WHERE key = 'schema'").fetchone()
    except duckdb.CatalogException:  # there is no such table
        return None
    return int(found[0]) if found else None


def known_stamps(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Stamp of every outcome in the store, by job id."""
    return dict(con.execute("SELECT id, stamp FROM store.jobs").fetchall())


def known_members(con: duckdb.DuckDBPyConnection) -> set[tuple[str, str]]:
    """Pairs of suite and job id in the store."""
    return {(suite, id) for suite, id in con.execute("SELECT suite, id FROM store.suites").fetchall()}


def spool_members(results: Path, problems: list[Problem] | None) -> set[tuple[str, str]]:
    """Pairs of suite and job id in the spool."""
    return {(members.suite, id) for members in membership.every(results, problems) for id in members.jobs}


def replace_jobs(
    con: duckdb.DuckDBPyConnection,
    results: Path,
    changed: Mapping[str, spool.Stamp],
    gone: Iterable[str],
    problems: list[Problem] | None,
) -> int:
    """Bring the rows of these jobs up to the spool: ``changed`` are read again, ``gone`` are removed.

    Damaged outcomes and curves are reported and left out. Returns the number of outcomes that were read.
    """
    _remove(con, gone)
    ids = list(changed)
    return sum(
        _replace(con, results, {id: changed[id] for id in ids[start : start + BATCH]}, problems)
        for start in range(0, len(ids), BATCH)
    )


def _remove(con: duckdb.DuckDBPyConnection, ids: Iterable[str]) -> None:
    gone = list(ids)
    if gone:
        _write(con, Batch(), gone)


def _replace(
    con: duckdb.DuckDBPyConnection, results: Path, changed: Mapping[str, spool.Stamp], problems: list[Problem] | None
) -> int:
    batch = Batch()
    found: list[Problem] = []
    count = sum(_read(results, id, stamp, batch, found) for id, stamp in changed.items())
    try:
        _write(con, batch, list(changed))
    except (pa.ArrowException, OverflowError) as error:
        # a value that no column holds, such as a number of 70 bits: find whose it is, keep the others
        if len(changed) > 1:
            return sum(_replace(con, results, {id: stamp}, problems) for id, stamp in changed.items())
        (id,) = changed
        _remove(con, [id])
        place = str(spool.job_folder(results, id) / spool.OUTCOME)
        found, count = [Problem(place, f"holds a value that cannot be stored: {error}")], 0
    if found:
        spool.report(UsageError(found), problems)
    return count


def _read(results: Path, id: str, stamp: spool.Stamp, batch: Batch, problems: list[Problem]) -> bool:
    folder = spool.job_folder(results, id)
    try:
        outcome = spool.read_outcome(folder)
        if outcome is not None and outcome.id != id:
            raise UsageError(f"is of job {outcome.id}", place=str(folder / spool.OUTCOME), hint="delete the folder")
    except UsageError as error:
        spool.report(error, problems)
        return False
    if outcome is None:
        return False
    try:
        curve = spool.read_curve(folder)
    except UsageError as error:
        spool.report(error, problems)
        curve = []
    try:
        batch.add(outcome, stamp, curve)
    except (KeyError, ValueError, TypeError) as error:
        message = f"damaged outcome: its task is incomplete: {error!r}"
        spool.report(UsageError(message, place=str(folder / spool.OUTCOME)), problems)
        return False
    return True


def _write(con: duckdb.DuckDBPyConnection, batch: Batch, replaced: Sequence[str]) -> None:
    con.execute("BEGIN")
    try:
        con.register("replaced", pa.table({"id": pa.array(replaced, pa.string())}))
        touched = set(con.execute(f"SELECT {_ROW} FROM store.jobs SEMI JOIN replaced USING (id)").fetchall())
        for table in schema.PER_JOB:
            con.execute(f"DELETE FROM store.{table} WHERE id IN (SELECT id FROM replaced)")
            append(con, table, batch.rows[table])
        touched |= set(con.execute(f"SELECT {_ROW} FROM store.jobs SEMI JOIN replaced USING (id)").fetchall())
        con.unregister("replaced")
        _mark_current(con, touched)
        for table, (key,) in schema.KEYED.items():
            known = {value for (value,) in con.execute(f"SELECT DISTINCT {key} FROM store.{table}").fetchall()}
            new = [row for value, rows in batch.shared[table].items() if value not in known for row in rows]
            append(con, table, new)
        con.execute("COMMIT")
    except BaseException:
        roll_back(con)
        raise


def roll_back(con: duckdb.DuckDBPyConnection) -> None:
    """Undo the transaction that an error interrupted."""
    with suppress(duckdb.Error):  # where it was COMMIT that failed, as on a full disk, there is nothing to undo
        con.execute("ROLLBACK")


_ROW = "spec_digest, method, params_digest"
"""What a row of a board is of."""


def _mark_current(con: duckdb.DuckDBPyConnection, touched: Iterable[tuple[str, str, str]]) -> None:
    """Say of the jobs of these rows of boards which are of the newest version: that of the job that ended last."""
    rows = list(touched)
    if not rows:
        return
    con.register("touched", pa.table(dict(zip(_ROW.split(", "), zip(*rows, strict=True), strict=True))))
    con.execute(
        "UPDATE store.jobs SET current = (jobs.version = newest.version) FROM ("
        f"  SELECT {_ROW}, arg_max(version, (finished_at, version)) AS version"
        f"  FROM store.jobs SEMI JOIN touched USING ({_ROW}) GROUP BY ALL) AS newest "
        "WHERE jobs.spec_digest = newest.spec_digest AND jobs.method = newest.method "
        "AND jobs.params_digest = newest.params_digest "
        "AND jobs.current IS DISTINCT FROM (jobs.version = newest.version)"
    )
    con.unregister("touched")


def replace_members(con: duckdb.DuckDBPyConnection, members: Iterable[tuple[str, str]]) -> None:
    """Make the store's table of suites hold exactly these pairs."""
    con.execute("BEGIN")
    con.execute("DELETE FROM store.suites")
    append(con, "suites", sorted(members))
    con.execute("COMMIT")


def append(con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add rows, with the columns of :data:`kdbench.store.schema.TABLES`, to a private table."""
    if not rows:
        return
    columns = schema.TABLES[table]
    # from_pandas: NaN becomes null, because SQL's aggregates would carry it into every mean; infinities stay
    arrays = {
        name: pa.array(values, ARROW[kind], from_pandas=True)
        for (name, kind), values in zip(columns.items(), zip(*rows, strict=True), strict=True)
    }
    con.register("appended", pa.table(arrays))
    con.execute(f"INSERT INTO store.{table} SELECT * FROM appended")
    con.unregister("appended")
