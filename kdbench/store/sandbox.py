"""The process in which a query that people write runs: a program of its own, started by :mod:`kdbench.store.sql`.

It imports nothing of kdbench. What DuckDB refuses to a query is in the order's ``config``; here are the limits that
DuckDB does not keep by itself: a single function can take all memory and ignore an interrupt, so that the system has to
stop it. Nothing can be written to a file, and a process without its parent ends by its limit of processor seconds.

The order comes as JSON on standard input, the answer as pickled frames through the pipe ``fd``: ``("ready",)``, then
``("columns", names)``, any number of ``("rows", rows)`` and ``("end",)``; or ``("refused", message, hint)`` for what is
no single query, or ``("error", class, message)``.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

import duckdb

CHUNK = 2048
"""Rows of a frame: DuckDB's own unit."""


def main() -> None:
    """Carry out the order."""
    order = json.load(sys.stdin)
    to = Connection(order["fd"], readable=False)
    try:
        with duckdb.connect(order["path"], read_only=True, config=order["config"]) as con:
            _limit(order["memory"], order["seconds"])
            _send(to, "ready")
            answer(con, order["query"], to)
    except duckdb.Error as error:
        _send(to, "error", type(error).__name__, str(error))
    except MemoryError:
        _send(to, "error", "OutOfMemoryException", "Out of Memory Error: the query needs more than it may have")


def _limit(memory: int, seconds: float) -> None:
    """Bytes of private memory, and the processor seconds after which a process that nobody waits for is killed."""
    for limit, value in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, int((seconds + 10) * (os.cpu_count() or 1))),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, most))


def answer(con: duckdb.DuckDBPyConnection, query: str, to: Connection) -> None:
    """Answer one query. Raises ``duckdb.Error``."""
    statements = con.extract_statements(query)
    if len(statements) != 1:
        _send(to, "refused", f"one query is needed, not {len(statements)}", "")
        return
    kind = _kind(statements[0])
    if kind not in ("SELECT", "EXPLAIN"):
        hint = "SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN are"
        _send(to, "refused", f"{kind} is not a query; results are read-only here", hint)
        return
    found = con.execute(statements[0])
    _send(to, "columns", [item[0] for item in found.description or ()])
    while rows := found.fetchmany(CHUNK):
        _send(to, "rows", rows)
    _send(to, "end")


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # DuckDB's Python package does not know all of DuckDB's statements
        return "this"


def _send(to: Connection, *frame: Any) -> None:
    to.send_bytes(pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    main()
