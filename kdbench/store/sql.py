"""Queries that people write: read-only, without files, extensions or settings, and for a limited time.

DuckDB itself refuses everything that reaches outside (:data:`kdbench.store.duck.OPEN`), and only one statement that
returns rows is run. It runs in a process of its own (:mod:`kdbench.store.sandbox`), because time and memory that DuckDB
does not watch over itself are only the system's to limit.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import Problem, UsageError
from kdbench.store import duck

if TYPE_CHECKING:
    from kdbench.registry import Registry

TIME_LIMIT = 60.0
"""Seconds."""
START_LIMIT = 60.0
"""Seconds that the process of a query may take to open the database."""
MEMORY_LIMIT = 4 * 2**30
"""Bytes of the process of a query, all told; DuckDB's own part is less (:data:`kdbench.store.duck.OPEN`)."""
MOST_ROWS = 5_000_000
"""Rows of a result."""
MOST_BYTES = 2**30
"""Size of a result."""
THREADS = 8
"""That a query uses at most: each takes some memory."""

Result = tuple[list[str], list[tuple[Any, ...]]]


def run(
    results: Path,
    text: str,
    *,
    seconds: float = TIME_LIMIT,
    problems: list[Problem] | None = None,
    registry: Registry | None = None,
) -> Result:
    """Column names and rows of one query on the state of the spool.

    ``registry``: whose cards and claims the views show; default: of everything that is installed. Raises
    ``UsageError`` with one line for whatever is wrong with the query: syntax, unknown names, writing, files,
    settings, extensions, more than one statement, too much time or memory, too many rows.
    """
    from kdbench.registry import discover

    known = discover() if registry is None else registry
    try:
        return duck.at(results, lambda path: _run(path, text, seconds), problems, registry=known)
    except UsageError:
        raise
    except Exception as error:
        import duckdb

        if not isinstance(error, duckdb.Error):
            raise
        raise UsageError(_one_line(str(error)), place="sql", hint=_hint(error)) from error


def _run(path: Path, text: str, seconds: float) -> Result:
    """Raises ``duckdb.Error`` for what DuckDB refuses, ``UsageError`` for what is refused here."""
    answer, end = Pipe(duplex=False)
    threads = min(THREADS, os.cpu_count() or 1)
    order = {
        "path": str(path.absolute()),
        "query": text,
        "config": {**duck.OPEN, "threads": threads},
        "memory": MEMORY_LIMIT,
        "seconds": seconds,
        "fd": end.fileno(),
    }
    program = Path(__file__).with_name("sandbox.py")
    child = subprocess.Popen(
        [sys.executable, "-P", "-B", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[end.fileno()],
        env={**os.environ, "MALLOC_ARENA_MAX": "4"},
    )
    with child, answer:
        try:
            with end:
                assert child.stdin is not None
                child.stdin.write(json.dumps(order).encode())
                child.stdin.close()
            return _received(answer, child, seconds)
        finally:
            child.kill()


def _received(answer: Connection, child: subprocess.Popen[bytes], seconds: float) -> Result:
    columns: list[str] = []
    rows: list[tuple[Any, ...]] = []
    size, limit = 0, time.monotonic() + START_LIMIT
    while True:
        if not answer.poll(max(0.0, limit - time.monotonic())):
            message = f"the query took longer than {seconds:g} s and was stopped"
            raise UsageError(message, place="sql", hint="narrow it with WHERE, or give --timeout SECONDS")
        try:
            data = answer.recv_bytes()
        except (EOFError, ConnectionError) as error:
            child.wait()
            message = f"the query ended its process ({_ending(child.returncode)})"
            raise UsageError(message, place="sql", hint="it needs too much memory, or is nested too deeply") from error
        size += len(data)
        kind, *content = pickle.loads(data)  # of our own child, not of a file
        match kind:
            case "ready":
                limit = time.monotonic() + seconds
            case "columns":
                (columns,) = content
            case "rows":
                rows += content[0]
            case "end":
                return columns, rows
            case "refused":
                raise UsageError(content[0], place="sql", hint=content[1])
            case "error":
                raise _duckdb_error(*content)
        if len(rows) > MOST_ROWS:
            raise UsageError(f"the result has more than {MOST_ROWS:,} rows", place="sql", hint="add LIMIT")
        if size > MOST_BYTES:
            message = f"the result is larger than {MOST_BYTES // 2**20:,} MiB"
            raise UsageError(message, place="sql", hint="choose fewer columns, or add LIMIT")


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _duckdb_error(name: str, message: str) -> Exception:
    """The error that DuckDB raised in the other process."""
    import duckdb

    if os.strerror(errno.EFBIG) in message:  # it tried to go on in a file
        name, message = "OutOfMemoryException", "Out of Memory Error: the query needs more memory than it may have"
    kind = getattr(duckdb, name, duckdb.Error)
    error: Exception = kind(message)
    return error


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    kept = [line for line in lines[:4] if not line.startswith(("LINE ", "^"))]
    return " ".join(kept) if kept else "the query failed"


def _hint(error: Exception) -> str:
    if "does not exist" in str(error) or "not found" in str(error):
        return "SHOW TABLES lists the views; SELECT * FROM duckdb_columns() WHERE schema_name = 'main' explains columns"
    return ""
