"""Queries that people write: read-only, without files, extensions or settings, and for a limited time.

DuckDB itself refuses everything that reaches outside (:data:`kdbench.store.duck.OPEN`); in addition only one
statement that returns rows is run.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import Problem, UsageError
from kdbench.store import duck

if TYPE_CHECKING:
    import duckdb

TIME_LIMIT = 60.0
"""Seconds."""
MOST_ROWS = 5_000_000
"""Rows of a result."""


def run(
    results: Path, text: str, *, seconds: float = TIME_LIMIT, problems: list[Problem] | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of one query on the state of the spool.

    Raises ``UsageError`` with one line for whatever is wrong with the query: syntax, unknown names, writing, files,
    settings, extensions, more than one statement, too much time or memory, too many rows.
    """
    import duckdb

    try:
        return duck.query(results, lambda con: _run(con, text, seconds), problems)
    except duckdb.InterruptException as error:
        message = f"the query took longer than {seconds:g} s and was stopped"
        raise UsageError(message, place="sql", hint="narrow it with WHERE, or give --timeout SECONDS") from error
    except duckdb.Error as error:
        raise UsageError(_one_line(str(error)), place="sql", hint=_hint(error)) from error


def _run(con: duckdb.DuckDBPyConnection, text: str, seconds: float) -> tuple[list[str], list[tuple[Any, ...]]]:
    import duckdb

    statements = con.extract_statements(text)
    if len(statements) != 1:
        raise UsageError(f"one query is needed, not {len(statements)}", place="sql")
    if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise UsageError(
            f"{statements[0].type.name} is not a query; results are read-only here",
            place="sql",
            hint="SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN are",
        )
    timer = threading.Timer(seconds, con.interrupt)
    timer.start()
    try:
        found = con.execute(statements[0])
        columns = [item[0] for item in found.description or ()]
        rows: list[tuple[Any, ...]] = []
        while part := found.fetchmany(10_000):
            rows += part
            if len(rows) > MOST_ROWS:
                raise UsageError(f"the result has more than {MOST_ROWS:,} rows", place="sql", hint="add LIMIT")
            if not timer.is_alive():
                raise duckdb.InterruptException("time limit")
    finally:
        timer.cancel()
    return columns, rows


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    kept = [line for line in lines[:4] if not line.startswith(("LINE ", "^"))]
    return " ".join(kept) if kept else "the query failed"


def _hint(error: Exception) -> str:
    if "does not exist" in str(error) or "not found" in str(error):
        return "SHOW TABLES lists the views; SELECT * FROM duckdb_columns() WHERE schema_name = 'main' explains columns"
    return ""
