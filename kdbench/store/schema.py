"""The form of the DuckDB store: private tables in the schema ``store``, public views in ``main``.

A view's columns are declared once, with the text that ``COMMENT ON COLUMN`` gets and that documentation prints.
Nothing here imports DuckDB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VERSION = 1
"""Of everything in this file. A store of another version is made anew from the spool."""

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
    "student": {"df": "INTEGER", "t": "DOUBLE"},
}
"""Name to columns (name to type) of every private table."""

PER_JOB = ("jobs", "metrics", "costs", "curves")
"""Tables whose rows belong to one outcome: replaced when the outcome is."""

KEYED = {"tasks": ("spec_digest",), "task_metrics": ("spec_digest",), "modules": ("modules_digest",)}
"""Tables shared by many outcomes: rows are added where their key is new. Keys are digests, so rows never change."""


@dataclass(frozen=True)
class Column:
    """A column of a view."""

    name: str
    doc: str
    sql: str = ""
    """Expression, where it is not a column of the same name."""


@dataclass(frozen=True)
class View:
    """A documented view."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    source: str
    """What follows the select list."""

    @property
    def query(self) -> str:
        chosen = ",\n  ".join(f"{column.sql or column.name} AS {column.name}" for column in self.columns)
        return f"SELECT\n  {chosen}\n{self.source}"


_CONTEXT = (
    Column("id", "Job: 16 hexadecimal digits; equal ids mean equal work", "j.id"),
    Column("track", "Family of problems, such as vision", "j.track"),
    Column("task", "Task as track/name", "j.task"),
    Column("scale", "Variant of the task by size: smoke, quick, cpu, nightly or paper", "j.scale"),
    Column("spec_digest", "Digest of the fully resolved task; only equal ones are comparable", "j.spec_digest"),
    Column("method", "Method as track/slug", "j.method"),
    Column("label", "Method with the parameters that differ from its defaults", "j.label"),
    Column("params_digest", "Digest of all parameters, defaults included", "j.params_digest"),
    Column("seed", "Seed of the student: initialisation, data order and the method's own randomness", "j.seed"),
    Column("status", "ok, failed, diverged, over_budget, timeout, oom, crashed or interrupted", "j.status"),
    Column("current", "Whether it ran with the newest version of its method, track and protocol", "j.current"),
)

_COST_COLUMNS = {
    "train_seconds": "Wall-clock seconds of train",
    "steps": "Optimizer steps of the returned student",
    "teacher_queries": "Samples that went through the teacher",
    "generated_tokens": "Tokens sampled while training",
    "flops": "Floating-point operations of training, where they were counted",
    "parameters": "Parameters of the evaluated model",
    "peak_rss_bytes": "Largest resident memory of the job's process, in bytes",
}

# The newest version per table row: a method that was edited has outcomes under its old and its new digest.
_CURRENT_JOBS = """
CREATE VIEW store.current_jobs AS
SELECT *, version = arg_max(version, finished_at) OVER (PARTITION BY spec_digest, method, params_digest) AS current
FROM store.jobs
"""

# Failed jobs count once per (method with parameters), whatever the metric; interrupted ones did not fail.
_LEADERBOARD_SOURCE = """FROM (
  SELECT spec_digest, method, params_digest, any_value(track) AS track, any_value(task) AS task,
         any_value(scale) AS scale, arg_max(label, finished_at) AS label,
         count(*) FILTER (WHERE status NOT IN ('ok', 'interrupted')) AS n_failed
  FROM store.current_jobs WHERE current GROUP BY ALL
) AS entry
JOIN (
  SELECT j.spec_digest, j.method, j.params_digest, m.metric, bool_and(m.official) AS official,
         count(*) AS n, avg(m.value) AS mean, stddev_samp(m.value) AS sd
  FROM store.current_jobs AS j JOIN store.metrics AS m USING (id)
  WHERE j.current AND j.status = 'ok' AND isfinite(m.value)
  GROUP BY ALL
) AS score USING (spec_digest, method, params_digest)
LEFT JOIN store.task_metrics AS t USING (spec_digest, metric)
LEFT JOIN (
  SELECT j.spec_digest, j.method, j.params_digest,
         {costs}
  FROM store.current_jobs AS j JOIN store.costs AS c USING (id)
  WHERE j.current AND j.status = 'ok'
  GROUP BY ALL
) AS cost USING (spec_digest, method, params_digest)
LEFT JOIN store.student AS q ON q.df = least(score.n - 1, (SELECT max(df) FROM store.student))""".format(
    costs=",\n         ".join(f"avg(c.value) FILTER (WHERE c.cost = '{name}') AS {name}" for name in _COST_COLUMNS)
)

VIEWS: tuple[View, ...] = (
    View(
        "jobs",
        "One row per finished job, failed ones included",
        (
            *_CONTEXT,
            Column("family", "Sub-suite of the task within its track", "t.family"),
            Column("slug", "Method without its track", "j.slug"),
            Column("params", "All parameters, defaults included, as JSON", "j.params"),
            Column("headline", "Name of the task's headline metric", "t.headline"),
            Column("score", "Value of the headline metric; null unless status is ok", "j.score"),
            Column("limits", "What the student may spend (unit to amount), as JSON; the first is primary", "t.limits"),
            Column("suite", "Suite that asked for the job first", "j.suite"),
            Column("error_type", "Class of the error, signal, or reason; null unless the job failed", "j.error_type"),
            Column("error", "Message of the error; null unless the job failed", "j.error"),
            Column("started_at", "When the job began, UTC", "j.started_at"),
            Column("finished_at", "When the outcome was written, UTC", "j.finished_at"),
            Column("seconds", "Wall-clock seconds from start to outcome", "epoch(j.finished_at) - epoch(j.started_at)"),
            Column("attempts", "How often the job was tried", "j.attempts"),
            Column("method_digest", "SHA-256 of the method's source file", "j.method_digest"),
            Column("track_version", "Version of the track's shared code, bumped by hand", "j.track_version"),
            Column("protocol", "Version of the code shared by all tracks, bumped by hand", "j.protocol"),
            Column("modules_digest", "Digest of the kdbench modules that the job used", "j.modules_digest"),
            Column("git_commit", "Commit of the working tree, where it is one", "j.git_commit"),
            Column("git_dirty", "Whether the working tree had uncommitted changes", "j.git_dirty"),
            Column("device", "Device that the job computed on", "j.device"),
            Column("artifacts", "Files in the job's folder, relative to it, as a JSON list", "j.artifacts"),
            Column("provenance", "Commit, packages, hardware and module digests, as JSON", "j.provenance"),
        ),
        "FROM store.current_jobs AS j LEFT JOIN store.tasks AS t USING (spec_digest)",
    ),
    View(
        "metrics",
        "One row per metric of a job",
        (
            *_CONTEXT,
            Column("metric", "Name of the metric", "m.metric"),
            Column("value", "Measured value, in the metric's own unit; null where it is not a number", "m.value"),
            Column("official", "Computed by the runner for every method; false for a method's own", "m.official"),
            Column("direction", "max where more is better, min where less is; null for a method's own", "t.direction"),
            Column("unit", "Unit for people; null for a method's own metric", "t.unit"),
        ),
        "FROM store.metrics AS m JOIN store.current_jobs AS j USING (id)\n"
        "LEFT JOIN store.task_metrics AS t USING (spec_digest, metric)",
    ),
    View(
        "costs",
        "One row per meter of a job: what it spent",
        (
            *_CONTEXT,
            Column("cost", "Name of the meter, such as steps, teacher_queries, flops or train_seconds", "c.cost"),
            Column("value", "Amount spent, in the unit that the name says", "c.value"),
        ),
        "FROM store.costs AS c JOIN store.current_jobs AS j USING (id)",
    ),
    View(
        "curves",
        "One row per logged value of a job's training",
        (
            *_CONTEXT,
            Column("step", "Optimizer step at which the value was logged", "c.step"),
            Column("metric", "Name of the logged value", "c.metric"),
            Column("value", "Logged value; null where it was not finite", "c.value"),
        ),
        "FROM store.curves AS c JOIN store.current_jobs AS j USING (id)",
    ),
    View(
        "leaderboard",
        "One row per task, metric and method with parameters, over the seeds of its newest version. "
        "Ranks and gap closed compare methods in pairs: kdbench leaderboard computes them from these rows' seeds",
        (
            Column("track", "Family of problems, such as vision", "entry.track"),
            Column("task", "Task as track/name", "entry.task"),
            Column("scale", "Variant of the task by size", "entry.scale"),
            Column("spec_digest", "Digest of the fully resolved task; only equal ones are comparable"),
            Column("metric", "Name of the metric"),
            Column("headline", "Whether it is the task's headline metric", "coalesce(t.headline, false)"),
            Column("official", "Computed by the runner for every method; false for a method's own", "score.official"),
            Column("direction", "max where more is better, min where less is; null for a method's own", "t.direction"),
            Column("unit", "Unit for people; null for a method's own metric", "t.unit"),
            Column("method", "Method as track/slug"),
            Column("label", "Method with the parameters that differ from its defaults", "entry.label"),
            Column("params_digest", "Digest of all parameters, defaults included"),
            Column("n", "Seeds with a finite value", "score.n"),
            Column("n_failed", "Seeds whose job failed; interrupted jobs are not counted", "entry.n_failed"),
            Column("mean", "Mean over seeds", "score.mean"),
            Column("sd", "Sample standard deviation over seeds; null for one seed", "score.sd"),
            Column(
                "low",
                "Lower end of the 95 % Student t interval of the mean over seeds; null for one seed",
                "score.mean - q.t * score.sd / sqrt(score.n)",
            ),
            Column(
                "high",
                "Upper end of the 95 % Student t interval of the mean over seeds; null for one seed",
                "score.mean + q.t * score.sd / sqrt(score.n)",
            ),
            *(Column(name, f"{doc}; mean over seeds", f"cost.{name}") for name, doc in _COST_COLUMNS.items()),
        ),
        _LEADERBOARD_SOURCE,
    ),
    View(
        "tasks",
        "One row per fully resolved task that has outcomes",
        (
            Column("spec_digest", "Digest of the fully resolved task", "t.spec_digest"),
            Column("task", "Task as track/name", "t.spec ->> '$.name'"),
            Column("scale", "Variant of the task by size", "t.spec ->> '$.scale'"),
            Column("family", "Sub-suite of the task within its track", "t.family"),
            Column("headline", "Name of the headline metric", "t.headline"),
            Column("floor", "Slug of the method without distillation: 0 on the gap-closed scale", "t.floor"),
            Column("ceiling", "Slug of the method that is 1 on the gap-closed scale", "t.ceiling"),
            Column("limits", "What the student may spend (unit to amount), as JSON", "t.limits"),
            Column("spec", "Everything that decides the task's results, as JSON", "t.spec"),
        ),
        "FROM store.tasks AS t",
    ),
    View(
        "suites",
        "Which suites hold which jobs; a job may be in several",
        (
            Column("suite", "Name of the suite", "s.suite"),
            Column("id", "Job", "s.id"),
        ),
        "FROM store.suites AS s",
    ),
)

COSTS: tuple[str, ...] = tuple(_COST_COLUMNS)
"""Cost columns of the leaderboard."""

TEST_EXAMPLES = "test_examples"
"""The cost that says over how many test examples the headline metric is averaged."""


def statements() -> Iterator[str]:
    """Everything that makes an empty store, in order."""
    yield "CREATE SCHEMA store"
    for name, columns in TABLES.items():
        body = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        yield f"CREATE TABLE store.{name} ({body})"
    yield _CURRENT_JOBS
    for view in VIEWS:
        yield f"CREATE VIEW main.{view.name} AS {view.query}"
        yield f"COMMENT ON VIEW main.{view.name} IS {_quoted(view.doc)}"
        for column in view.columns:
            yield f'COMMENT ON COLUMN main.{view.name}."{column.name}" IS {_quoted(column.doc)}'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
