"""Results on their way out: one file per table and a manifest, written by DuckDB.

The manifest names the versions of what wrote the export, and size and SHA-256 of every file, so that an import finds
out what was damaged or edited. It says that the export is complete only after the last file is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdbench import __version__
from kdbench.cache import file_digest
from kdbench.errors import Problem, UsageError
from kdbench.job import OUTCOME_SCHEMA, utcnow
from kdbench.store import duck, schema, spool

if TYPE_CHECKING:
    import duckdb

    from kdbench.leaderboard.selection import Selection

Format = Literal["parquet", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

MANIFEST = "kdbench-export.json"
WORK = ".partial"
"""Folder in that of the export in which files are written before they replace earlier ones."""

VERSION = 1
"""Of the form of exports: which tables there are, and how the files are written."""

TABLES = ("jobs", "tasks", "task_metrics", "metrics", "costs", "curves", "suites")
"""Tables of the store that make up an export; all others are derived from them, or from what is installed."""

LOCAL = {"jobs": ("stamp",)}
"""Columns that mean something in the results folder alone."""

PLACES = {
    "asked": (r'"method_file":"/(?:[^"]*/)?([^/"]*)"', r'"method_file":"\1"'),
    "provenance": (r'"from": "/(?:[^"]*/)?([^/"]*)"', r'"from": "\1"'),
    "traceback": (r'File "/(?:[^"]*/)?([^/"]+/[^/"]+)"', r'File "\1"'),
}
"""Of texts that name folders of this machine, which say nothing elsewhere and may name people: a pattern, and what of
it is written. The file of a method, what an import came from, and the files of a traceback with one folder each."""

_ORDER = {"tasks": "spec_digest", "task_metrics": "spec_digest", "suites": "suite"}
"""By which column the rows of a table are sorted; those that are missing here by the job."""

_WRITING = {"parquet": "FORMAT parquet, COMPRESSION zstd", "csv": "FORMAT csv, HEADER"}


class File(BaseModel):
    """A file of an export."""

    model_config = ConfigDict(extra="forbid")

    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """What an export says of itself; fields that a newer version adds are ignored."""

    version: int
    """Of the form of the export."""
    schema_version: int
    """Of the tables."""
    outcome_schema: int
    """Of the outcomes that the tables were filled from."""
    kdbench: str
    """Version of kdbench that wrote it."""
    created: datetime
    """Naive UTC."""
    format: Format
    selection: dict[str, str]
    """What was chosen, by option; empty: everything."""
    files: dict[str, File]
    """By name."""
    complete: bool
    """False while files are being replaced, and where that was interrupted."""


def columns(table: str) -> dict[str, str]:
    """Columns of an exported table with their types in DuckDB."""
    return {name: kind for name, kind in schema.TABLES[table].items() if name not in LOCAL.get(table, ())}


def file_name(table: str, format: Format) -> str:
    """Name of the file that holds a table."""
    return f"{table}.{format}"


def is_export(folder: Path) -> bool:
    """Whether a folder was written by :func:`export`, completely or not."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export. Raises ``UsageError`` for a damaged one and for one of a newer form."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", place=str(path)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"is not the manifest of an export: {f'{place}: ' if place else ''}{first['msg']}"
        raise UsageError(message, place=str(path), hint="export again") from error
    for what, written, known in (
        ("exports", manifest.version, VERSION),
        ("tables", manifest.schema_version, schema.VERSION),
        ("outcomes", manifest.outcome_schema, OUTCOME_SCHEMA),
    ):
        if written > known:
            message = f"was written by kdbench {manifest.kdbench} with version {written} of the form of {what}"
            raise UsageError(f"{message}; this kdbench reads up to {known}", place=str(path), hint="update kdbench")
    return manifest


def export(
    results: Path, folder: Path, format: Format, selection: Selection, problems: list[Problem] | None = None
) -> Manifest:
    """Write the selected jobs with all that belongs to them, but for logs and artifacts, into ``folder``.

    An earlier export there is replaced, and stays whole until all new files are written. The results are only read:
    the connection that writes the files cannot change the store, and reaches no other folder. Raises ``UsageError``
    where nothing fits the selection, or the folder holds something else or cannot be written.
    """
    import duckdb

    duck.query(results, selection.check, problems)  # also brings the store up to date
    if not duck.published_path(results).exists():
        message = "cannot be written, and has no DuckDB store that could be exported"
        raise UsageError(message, place=str(results), hint="export where it can be written, or import the folder")
    folder = folder.absolute()
    try:
        work = _prepared(folder)
        try:
            with _connect(duck.published_path(results), work) as con:
                rows = _copy(con, work, format, selection)
            chosen = {name: value for name, value in vars(selection).items() if isinstance(value, str)}
            return _put(work, folder, format, rows, chosen)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", place=str(folder)) from error
    except duckdb.IOException as error:  # a disk that is full
        raise UsageError(f"cannot be written: {str(error).splitlines()[0]}", place=str(folder)) from error


def _prepared(folder: Path) -> Path:
    """An empty folder to work in, in ``folder``, which is an export from now on."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", place=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f".{MANIFEST}-*"):  # of an export that was killed
        path.unlink()
    if not is_export(folder):
        if any(folder.iterdir()):
            message = "holds other files than those of an export"
            raise UsageError(message, place=str(folder), hint="choose a folder that is new or empty")
        _write(folder, _manifest("parquet", {}, {}, complete=False))
    work = folder / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def _connect(database: Path, folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection that reads the store and writes files into one folder, and nothing else."""
    import duckdb

    con = duckdb.connect(str(database), read_only=True)
    con.execute(f"SET allowed_directories = [{schema.quoted(str(folder))}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    return con


def _copy(con: duckdb.DuckDBPyConnection, work: Path, format: Format, selection: Selection) -> dict[str, int]:
    """Write every table; returns the number of rows by table. Equal results give equal files."""
    where, values = selection.where()
    con.execute(f"CREATE TEMP TABLE chosen AS SELECT id, spec_digest FROM store.jobs WHERE {where}", values)
    rows = {}
    for table in TABLES:
        key = "spec_digest" if table in ("tasks", "task_metrics") else "id"
        names = ", ".join(f'{_written(name, kind)} AS "{name}"' for name, kind in columns(table).items())
        query = (
            f"SELECT {names} FROM store.{table} WHERE {key} IN (SELECT {key} FROM chosen) "
            f"ORDER BY {_ORDER.get(table, 'id')}, rowid"
        )
        target = schema.quoted(str(work / file_name(table, format)))
        found = con.execute(f"COPY ({query}) TO {target} ({_WRITING[format]})").fetchone()
        assert found is not None
        rows[table] = int(found[0])
    return rows


def _written(name: str, kind: str) -> str:
    """A column as it is written. JSON is text: the type that every reader of Parquet knows."""
    value = f'"{name}"::VARCHAR' if kind == "JSON" else f'"{name}"'
    if name not in PLACES:
        return value
    pattern, kept = map(schema.quoted, PLACES[name])
    return f"regexp_replace({value}, {pattern}, {kept}, 'g')"


def _put(work: Path, folder: Path, format: Format, rows: Mapping[str, int], selection: Mapping[str, str]) -> Manifest:
    """Replace the files of an earlier export by those in ``work``."""
    files = {}
    for table, count in rows.items():
        path = work / file_name(table, format)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = File(rows=count, bytes=path.stat().st_size, sha256=file_digest(path))
    _write(folder, _manifest(format, files, selection, complete=False))
    for name in files:
        os.replace(work / name, folder / name)
    for other in (file_name(table, form) for table in TABLES for form in FORMATS):
        if other not in files:
            (folder / other).unlink(missing_ok=True)
    manifest = _manifest(format, files, selection, complete=True)
    _write(folder, manifest)
    return manifest


def _manifest(format: Format, files: Mapping[str, File], selection: Mapping[str, str], *, complete: bool) -> Manifest:
    return Manifest(
        version=VERSION,
        schema_version=schema.VERSION,
        outcome_schema=OUTCOME_SCHEMA,
        kdbench=__version__,
        created=utcnow(),
        format=format,
        selection=dict(selection),
        files=dict(files),
        complete=complete,
    )


def _write(folder: Path, manifest: Manifest) -> None:
    spool.write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
