"""Results of another machine, as an import reads them: a results folder, an exported folder, or a DuckDB store.

Nothing that stands there is trusted. Files are opened by names that are fixed here, databases without any access to
files, and an outcome counts only if its id is the digest of the job that it holds.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from kdbench.cache import file_digest
from kdbench.errors import Problem, UsageError
from kdbench.job import OUTCOME_SCHEMA, Outcome
from kdbench.spec import digest
from kdbench.store import duck, export, membership, schema, spool

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

BATCH = 1000
"""Outcomes that are made of rows at a time."""

NEEDED = {
    "jobs": (
        *("id", "spec_digest", "task", "method", "method_digest", "label", "params", "seed", "suite", "status"),
        *("score", "error_type", "error", "traceback", "started_at", "finished_at", "attempts", "track_version"),
        *("protocol", "artifacts", "provenance", "asked"),
    ),
    "tasks": ("spec_digest", "limits", "spec"),
    "metrics": ("id", "metric", "value", "official"),
    "costs": ("id", "cost", "value"),
    "curves": ("id", "step", "metric", "value"),
    "suites": ("suite", "id"),
}
"""Tables and columns that outcomes are made of."""

_KEYS = {"metrics": "metric", "costs": "cost"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Arrival:
    """An outcome of another machine."""

    outcome: Outcome
    fill: Callable[[Path], None]
    """Writes what else there is of the job into a folder: its curve and, from a results folder, log and artifacts."""


class Source(Protocol):
    """Results of another machine, whose form is checked already."""

    def ids(self) -> list[str]:
        """Jobs that have an outcome, sorted."""
        ...

    def arrivals(self, ids: Sequence[str]) -> Iterator[Arrival]:
        """Their outcomes, each once. Raises ``UsageError`` for the first one that is not what it should be."""
        ...

    def members(self) -> dict[str, list[str]]:
        """Ids of the jobs with an outcome, by suite."""
        ...


@contextmanager
def opened(place: Path) -> Iterator[Source]:
    """The results at a place. Raises ``UsageError`` where there are none, or where they are of a newer form."""
    if export.is_export(place):
        with _exported(place) as source:
            yield source
    elif spool.jobs_folder(place).is_dir():
        yield FolderSource(place)
    elif place.is_file():
        with _database(place) as source:
            yield source
    else:
        what = "holds neither jobs nor an export" if place.exists() else "does not exist"
        hint = f"give a results folder, a folder of kdbench export, or a {duck.PUBLISHED}"
        raise UsageError(what, place=str(place), hint=hint)


def _checked(outcome: Outcome, id: str, place: str) -> Outcome:
    """The outcome, if it is of this job and a store can hold it."""
    from kdbench.store.ingest import Batch

    try:
        made = outcome.job.id
        Batch().add(outcome, (0, 0, 0), ())
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"job {id!r} is incomplete: {error!r}", place=place) from error
    if not id == outcome.id == made:
        message = f"{id!r} is not the id of the job that it stands for, which is {made!r}"
        raise UsageError(message, place=place, hint="the results were edited, or written by another kdbench")
    return outcome


# --- a results folder -------------------------------------------------------------------------------------------------


class FolderSource:
    """The spool of another results folder; links and special files in it are left out."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def ids(self) -> list[str]:
        return [folder.name for folder in spool.iter_folders(self.results) if _is_plain(folder / spool.OUTCOME)]

    def arrivals(self, ids: Sequence[str]) -> Iterator[Arrival]:
        for id in ids:
            folder = spool.job_folder(self.results, id)
            outcome = spool.read_outcome(folder)
            if outcome is None:
                raise UsageError(f"job {id!r} has gone meanwhile", place=str(self.results), hint="import again")
            if _is_plain(folder / spool.CURVE):
                spool.read_curve(folder)
            yield Arrival(_checked(outcome, id, str(folder / spool.OUTCOME)), partial(_copy, folder))

    def members(self) -> dict[str, list[str]]:
        known = set(self.ids())
        problems: list[Problem] = []
        found = {
            members.suite: [id for id in members.jobs if id in known]
            for members in membership.every(self.results, problems)
        }
        if problems:
            raise UsageError(problems)
        return _suites(found, str(self.results))


def _is_plain(path: Path) -> bool:
    """Whether this is a file: neither a link, nor a pipe that never ends."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _copy(source: Path, target: Path) -> None:
    """Everything of a job's folder but for its outcome and what a killed process left."""
    own = {entry for entry in source.iterdir() if entry.name in (spool.OUTCOME, spool.CHECKPOINT)}
    own |= set(source.glob(f"{spool.TEMPORARY_PREFIX}*"))
    _copy_plain(set(source.iterdir()) - own, target)


def _copy_plain(entries: Iterable[Path], target: Path) -> None:
    for entry in entries:
        state = entry.lstat().st_mode
        if stat.S_ISDIR(state):
            (target / entry.name).mkdir()
            _copy_plain(entry.iterdir(), target / entry.name)
        elif stat.S_ISREG(state):
            shutil.copyfile(entry, target / entry.name, follow_symlinks=False)


# --- tables -----------------------------------------------------------------------------------------------------------


class TableSource:
    """Outcomes as rows: the tables of a store or of an export.

    ``tables``: by name, what stands for a table in SQL. ``place`` is named in errors.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, tables: Mapping[str, str], place: Path) -> None:
        self._con = con
        self._tables = tables
        self._place = str(place)
        self._check_columns()
        self._check_ids()
        self._specs = {digest: (limits, spec) for digest, limits, spec in self._rows("tasks")}

    def _query(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        import duckdb

        try:
            return self._con.execute(query, values).fetchall()
        except duckdb.Error as error:
            raise UsageError(_first_line(error, "cannot be read"), place=self._place) from error

    def _check_columns(self) -> None:
        for table, needed in NEEDED.items():
            found = {name: kind for name, kind, *_ in self._query(f"DESCRIBE {self._tables[table]}")}
            for name in needed:
                expected = _plain_type(schema.TABLES[table][name])
                if name not in found:
                    message = f"the table {table} has no column {name}"
                    raise UsageError(message, place=self._place, hint="it was written by another version of kdbench")
                if _plain_type(found[name]) != expected:
                    message = f"the column {name} of the table {table} is {found[name]}, but {expected} was expected"
                    raise UsageError(message, place=self._place)

    def _check_ids(self) -> None:
        jobs = self._tables["jobs"]
        checks = [(f"SELECT id FROM {jobs} GROUP BY id HAVING count(*) > 1", "job {} is there more than once")]
        for table in ("metrics", "costs", "curves"):
            query = f"SELECT id FROM {self._tables[table]} WHERE id IS NULL OR id NOT IN (SELECT id FROM {jobs})"
            checks.append((query, f"{table} of job {{}}, which is not there"))
        for table, key in _KEYS.items():
            query = f"SELECT id FROM {self._tables[table]} GROUP BY id, {key} HAVING count(*) > 1 OR {key} IS NULL"
            checks.append((query, f"{table} of job {{}} have no name, or the same one twice"))
        # first of all: nothing is NOT IN a list with null
        checks.insert(0, (f"SELECT id FROM {jobs} WHERE id IS NULL", "job {} has no id"))
        for query, message in checks:
            for (found,) in self._query(f"{query} LIMIT 1"):
                raise UsageError(message.format(repr(found)), place=self._place)

    def ids(self) -> list[str]:
        return sorted(id for (id,) in self._query(f"SELECT id FROM {self._tables['jobs']}"))

    def arrivals(self, ids: Sequence[str]) -> Iterator[Arrival]:
        for start in range(0, len(ids), BATCH):
            yield from self._batch(ids[start : start + BATCH])

    def _batch(self, ids: Sequence[str]) -> Iterator[Arrival]:
        metrics: dict[str, dict[bool, dict[str, float]]] = defaultdict(lambda: {True: {}, False: {}})
        costs: dict[str, dict[str, float]] = defaultdict(dict)
        curves: dict[str, list[tuple[int, str, float | None]]] = defaultdict(list)
        for id, metric, value, official in self._rows("metrics", ids):
            metrics[id][bool(official)][metric] = _number(value)
        for id, cost, value in self._rows("costs", ids):
            costs[id][cost] = _number(value)
        for id, *point in self._rows("curves", ids):
            curves[id].append(tuple(point))
        for values in self._rows("jobs", ids):
            row = dict(zip(NEEDED["jobs"], values, strict=True))
            id = row["id"]
            outcome = self._outcome(row, metrics[id][True], metrics[id][False], costs[id])
            points = _points(curves[id], id, self._place)
            yield Arrival(_checked(outcome, id, self._place), partial(_write_curve, points))

    def _outcome(
        self, row: Row, metrics: Mapping[str, float], extra: Mapping[str, float], cost: Mapping[str, float]
    ) -> Outcome:
        try:
            ok = row["status"] == "ok"
            error = {"type": row["error_type"], "message": row["error"], "traceback": row["traceback"] or ""}
            return Outcome.model_validate(
                {
                    "schema_version": OUTCOME_SCHEMA,
                    "id": row["id"],
                    "job": self._job(row),
                    "headline": _number(row["score"]) if ok else None,
                    "metrics": metrics,
                    "extra": extra,
                    "cost": cost,
                    "error": None if row["error_type"] is None else error,
                    "artifacts": json.loads(row["artifacts"]),
                    "provenance": json.loads(row["provenance"]),
                    **{name: row[name] for name in ("status", "started_at", "finished_at", "attempts")},
                }
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"job {row['id']!r}: {name}: {first['msg']}", place=self._place) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(f"job {row['id']!r} is damaged: {error}", place=self._place) from error

    def _job(self, row: Row) -> dict[str, Any]:
        limits, spec = (json.loads(text) for text in self._specs[row["spec_digest"]])
        if spec.get("limits", {}) != limits:
            raise ValueError("its limits are not those of its task")
        identity = ("method", "method_digest", "task", "seed", "track_version", "protocol", "suite", "label")
        return {
            **json.loads(row["asked"]),
            **{name: row[name] for name in identity},
            "params": json.loads(row["params"]),
            "spec": {**spec, "limits": limits},  # in their order: the first is the primary unit
        }

    def _rows(self, table: str, ids: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        """The needed columns, of sorted neighbours among the jobs where ``ids`` are given."""
        names = ", ".join(f'"{name}"' for name in NEEDED[table])
        query = f"SELECT {names} FROM {self._tables[table]}"
        if ids is None:
            return self._query(query)
        return self._query(f"{query} WHERE id IN (SELECT unnest(?))", [list(ids)])

    def members(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        known = set(self.ids())
        for suite, id in self._rows("suites"):
            if id in known:
                found[suite].append(id)
        return _suites(found, self._place)


def _plain_type(kind: str) -> str:
    return "VARCHAR" if kind == "JSON" else kind


def _number(value: float | None) -> float:
    """A value of the store, where what is not a number is null."""
    return float("nan") if value is None else value


def _suites(found: Mapping[str, list[str]], place: str) -> dict[str, list[str]]:
    for name in found:
        try:
            digest(name)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{name!r} is not the name of a suite", place=place) from error
        if not isinstance(name, str):
            raise UsageError("a suite has no name", place=place)
    return {name: ids for name, ids in found.items() if ids}


def _points(rows: Iterable[tuple[int, str, float | None]], id: str, place: str) -> list[dict[str, float | None]]:
    """Points of a curve: neighbouring values of one step are one point."""
    points: list[dict[str, float | None]] = []
    for step, metric, value in rows:
        if step is None or metric is None or metric == "step":
            raise UsageError(f"the curve of job {id!r} has a value without a step or a name", place=place)
        if not points or points[-1]["step"] != step or metric in points[-1]:
            points.append({"step": step})
        points[-1][metric] = value
    return points


def _write_curve(points: Sequence[Mapping[str, float | None]], folder: Path) -> None:
    if points:
        lines = "".join(json.dumps(point) + "\n" for point in points)
        (folder / spool.CURVE).write_text(lines, encoding="utf-8")


# --- a store ----------------------------------------------------------------------------------------------------------


@contextmanager
def _database(path: Path) -> Iterator[TableSource]:
    import duckdb

    with duckdb.connect() as con:
        try:
            tables = _attached(con, path)
        except (duckdb.Error, ValueError) as error:
            raise UsageError(_first_line(error, "is not a store that can be read"), place=str(path)) from error
        for table in NEEDED:
            if table not in tables:
                hint = "kdbench rebuild makes it anew, where the results are"
                raise UsageError(f"has no table {table}", place=str(path), hint=hint)
        yield TableSource(con, {table: f"store.{table}" for table in NEEDED}, path)


def _attached(con: duckdb.DuckDBPyConnection, path: Path) -> set[str]:
    """Open a store without any access to files beside it; returns its tables, views left out."""
    from kdbench.store import ingest

    # under a name of ours: that of the file may be the one of the schema
    con.execute(f"ATTACH {schema.quoted(str(path.absolute()))} AS other (READ_ONLY)")
    con.execute("USE other")
    for option, value in duck.OPEN.items():
        con.execute(f"SET {option} = {schema.quoted(value) if isinstance(value, str) else value}")
    version = ingest.version_of(con)
    if version is None:
        raise UsageError("is a DuckDB database, but none of kdbench", place=str(path))
    if version > schema.VERSION:
        message = f"was written with version {version} of the store; this kdbench reads up to {schema.VERSION}"
        raise UsageError(message, place=str(path), hint="update kdbench")
    query = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'other' AND schema_name = 'store'"
    return {name for (name,) in con.execute(query).fetchall()}


def _first_line(error: Exception, what: str) -> str:
    lines = str(error).strip().splitlines()
    return f"{what}: {lines[0]}" if lines else what


# --- an export --------------------------------------------------------------------------------------------------------


@contextmanager
def _exported(folder: Path) -> Iterator[TableSource]:
    import duckdb

    manifest = export.read_manifest(folder)
    if not manifest.complete:
        raise UsageError("is an export that was interrupted", place=str(folder), hint="export again")
    _check_files(folder, manifest)
    with duckdb.connect(config=dict(duck.OPEN)) as con:
        for table in NEEDED:
            con.register(table, _read(folder / export.file_name(table, manifest.format), table, manifest.format))
        yield TableSource(con, {table: table for table in NEEDED}, folder)


def _check_files(folder: Path, manifest: export.Manifest) -> None:
    problems = []
    for table in export.TABLES:
        name = export.file_name(table, manifest.format)
        path, expected = folder / name, manifest.files.get(name)
        if not path.is_file() or expected is None:
            problems.append(Problem(str(path), "is missing", "export again"))
        elif path.stat().st_size != expected.bytes or file_digest(path) != expected.sha256:
            problems.append(Problem(str(path), "is not the file that was exported: damaged, or edited", "export again"))
    if problems:
        raise UsageError(problems)


def _read(path: Path, table: str, format: export.Format) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from kdbench.store.ingest import ARROW

    try:
        if format == "parquet":
            return pyarrow.parquet.read_table(path)
        kinds = {name: ARROW[kind] for name, kind in export.columns(table).items()}
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=min(path.stat().st_size + 1, 1 << 30)),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=kinds,
                include_columns=list(kinds),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise UsageError(_first_line(error, "cannot be read"), place=str(path)) from error
