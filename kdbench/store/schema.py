"""The form of the DuckDB store: private tables in the schema ``store``, public views in ``main``.

Nothing here imports DuckDB.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdbench.store import pairs
from kdbench.store.pairs import TEST_EXAMPLES
from kdbench.store.views import COSTS, VIEWS

__all__ = ["COSTS", "KEYED", "PER_JOB", "TABLES", "TEST_EXAMPLES", "VERSION", "VIEWS", "quoted", "statements"]

VERSION = 3
"""Of the tables and the views. A store of another version is made anew from the spool."""

TABLES: dict[str, dict[str, str]] = {
    "meta": {"key": "VARCHAR", "value": "VARCHAR"},
    "jobs": {
        "id": "VARCHAR",
        "stamp": "VARCHAR",
        "track": "VARCHAR",
        "task": "VARCHAR",
        "scale": "VARCHAR",
        "spec_digest": "VARCHAR",
        "method": "VARCHAR",
        "slug": "VARCHAR",
        "label": "VARCHAR",
        "params": "JSON",
        "params_digest": "VARCHAR",
        "method_digest": "VARCHAR",
        "seed": "BIGINT",
        "suite": "VARCHAR",
        "status": "VARCHAR",
        "score": "DOUBLE",
        "error_type": "VARCHAR",
        "error": "VARCHAR",
        "traceback": "VARCHAR",
        "started_at": "TIMESTAMP",
        "finished_at": "TIMESTAMP",
        "attempts": "INTEGER",
        "track_version": "INTEGER",
        "protocol": "INTEGER",
        "version": "VARCHAR",
        "modules_digest": "VARCHAR",
        "git_commit": "VARCHAR",
        "git_dirty": "BOOLEAN",
        "device": "VARCHAR",
        "artifacts": "JSON",
        "provenance": "JSON",
        "asked": "JSON",
        "gate": "JSON",
        "current": "BOOLEAN",
    },
    "tasks": {
        "spec_digest": "VARCHAR",
        "family": "VARCHAR",
        "headline": "VARCHAR",
        "floor": "VARCHAR",
        "ceiling": "VARCHAR",
        "limits": "JSON",
        "spec": "JSON",
    },
    "task_metrics": {
        "spec_digest": "VARCHAR",
        "metric": "VARCHAR",
        "headline": "BOOLEAN",
        "direction": "VARCHAR",
        "unit": "VARCHAR",
        "lower": "DOUBLE",
        "upper": "DOUBLE",
    },
    "modules": {"modules_digest": "VARCHAR", "module": "VARCHAR", "digest": "VARCHAR"},
    "metrics": {"id": "VARCHAR", "metric": "VARCHAR", "value": "DOUBLE", "official": "BOOLEAN"},
    "costs": {"id": "VARCHAR", "cost": "VARCHAR", "value": "DOUBLE"},
    "curves": {"id": "VARCHAR", "step": "BIGINT", "metric": "VARCHAR", "value": "DOUBLE"},
    "suites": {"suite": "VARCHAR", "id": "VARCHAR"},
    "cards": {
        "method": "VARCHAR",
        "kind": "VARCHAR",
        "title": "VARCHAR",
        "year": "INTEGER",
        "venue": "VARCHAR",
        "arxiv": "VARCHAR",
        "url": "VARCHAR",
        "source": "VARCHAR",
        "requires": "JSON",
        "tags": "JSON",
    },
    "claims": {
        "method": "VARCHAR",
        "track": "VARCHAR",
        "claim": "INTEGER",
        "task": "VARCHAR",
        "scale": "VARCHAR",
        "spec_digest": "VARCHAR",
        "metric": "VARCHAR",
        "kind": "VARCHAR",
        "margin": "DOUBLE",
        "subject": "VARCHAR",
        "reference": "VARCHAR",
        "n": "INTEGER",
        "effect": "DOUBLE",
        "low": "DOUBLE",
        "high": "DOUBLE",
        "verdict": "VARCHAR",
        "note": "VARCHAR",
        "command": "VARCHAR",
    },
    "student": {"df": "INTEGER", "t": "DOUBLE"},
}
"""Name to columns (name to type) of every private table."""

PER_JOB = ("jobs", "metrics", "costs", "curves")
"""Tables whose rows belong to one outcome: replaced when the outcome is."""

KEYED = {"tasks": ("spec_digest",), "task_metrics": ("spec_digest",), "modules": ("modules_digest",)}
"""Tables shared by many outcomes: rows are added where their key is new. Keys are digests, so rows never change."""

# A method that was edited has outcomes under its old and its new version: ``current`` says which are of the newest.
# It is a column, kept by whoever writes jobs, because a window over all jobs would be most of what a board costs.
_CURRENT_JOBS = "CREATE VIEW store.current_jobs AS SELECT * FROM store.jobs"

# What a task said against a leaderboard in its newest job that was asked.
_REFUSALS = """CREATE VIEW store.refusals AS
SELECT spec_digest, arg_max_null(gate, finished_at) AS reasons
FROM store.jobs WHERE current AND status = 'ok' GROUP BY spec_digest"""


def statements() -> Iterator[str]:
    """Everything that makes an empty store, in order."""
    yield "CREATE SCHEMA store"
    for name, columns in TABLES.items():
        body = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        yield f"CREATE TABLE store.{name} ({body})"
    yield _CURRENT_JOBS
    yield _REFUSALS
    yield pairs.STUDENT_P
    yield f"COMMENT ON MACRO main.student_p IS {quoted(pairs.STUDENT_P_DOC)}"
    yield from pairs.PRIVATE
    for view in VIEWS:
        yield f"CREATE VIEW main.{view.name} AS {view.query}"
        yield f"COMMENT ON VIEW main.{view.name} IS {quoted(view.doc)}"
        for column in view.columns:
            yield f'COMMENT ON COLUMN main.{view.name}."{column.name}" IS {quoted(column.doc)}'


def quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"
