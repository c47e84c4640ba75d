"""The public views of the DuckDB store, and the function of SQL that comes with them.

A view's columns are declared once, with the text that ``COMMENT ON COLUMN`` gets and that documentation prints.
Views over pairs of methods are in :mod:`kdbench.store.pairs`. Nothing here imports DuckDB.
"""

from __future__ import annotations

from kdbench.store.column import Column, View, Views
from kdbench.store.pairs import PAIRWISE

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

COSTS: tuple[str, ...] = tuple(_COST_COLUMNS)
"""Cost columns of the leaderboard."""

_REFUSED = (
    "Why the task's results say nothing about methods, as a JSON list (kdbench leaderboard shows no board then); "
    "null where nothing is against it"
)

# Failed jobs count once per (method with parameters), whatever the metric; interrupted ones did not fail. Every part
# is grouped by the task's name too, so that a query for one task reads nothing else.
_LEADERBOARD_SOURCE = """FROM (
  SELECT track, task, scale, spec_digest, method, params_digest, arg_max(label, finished_at) AS label,
         count(*) FILTER (WHERE status NOT IN ('ok', 'interrupted')) AS n_failed
  FROM store.current_jobs WHERE current GROUP BY ALL
) AS entry
JOIN (
  SELECT j.track, j.task, j.scale, j.spec_digest, j.method, j.params_digest, m.metric,
         bool_and(m.official) AS official, count(*) AS n, avg(m.value) AS mean, stddev_samp(m.value) AS sd
  FROM store.current_jobs AS j JOIN store.metrics AS m USING (id)
  WHERE j.current AND j.status = 'ok' AND isfinite(m.value)
  GROUP BY ALL
) AS score USING (track, task, scale, spec_digest, method, params_digest)
LEFT JOIN store.task_metrics AS t USING (spec_digest, metric)
LEFT JOIN store.refusals AS r USING (spec_digest)
LEFT JOIN (
  SELECT j.track, j.task, j.scale, j.spec_digest, j.method, j.params_digest,
         {costs}
  FROM store.current_jobs AS j JOIN store.costs AS c USING (id)
  WHERE j.current AND j.status = 'ok'
  GROUP BY ALL
) AS cost USING (track, task, scale, spec_digest, method, params_digest)
LEFT JOIN store.student AS q ON q.df = least(score.n - 1, (SELECT max(df) FROM store.student))""".format(
    costs=",\n         ".join(f"avg(c.value) FILTER (WHERE c.cost = '{name}') AS {name}" for name in _COST_COLUMNS)
)

_JOBS = View(
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
        Column(
            "method_digest", "SHA-256 of the method's source file, without its card and docstring", "j.method_digest"
        ),
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
)

_METRICS = View(
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
)

_COSTS = View(
    "costs",
    "One row per meter of a job: what it spent",
    (
        *_CONTEXT,
        Column("cost", "Name of the meter, such as steps, teacher_queries, flops or train_seconds", "c.cost"),
        Column("value", "Amount spent, in the unit that the name says", "c.value"),
    ),
    "FROM store.costs AS c JOIN store.current_jobs AS j USING (id)",
)

_CURVES = View(
    "curves",
    "One row per logged value of a job's training",
    (
        *_CONTEXT,
        Column("step", "Optimizer step at which the value was logged", "c.step"),
        Column("metric", "Name of the logged value", "c.metric"),
        Column("value", "Logged value; null where it was not finite", "c.value"),
    ),
    "FROM store.curves AS c JOIN store.current_jobs AS j USING (id)",
)

_LEADERBOARD = View(
    "leaderboard",
    "One row per task, metric and method with parameters, over the seeds of its newest version. The view pairwise has "
    "the tests of method against method; kdbench leaderboard makes ranks and gap closed of them",
    (
        Column("track", "Family of problems, such as vision", "entry.track"),
        Column("task", "Task as track/name", "entry.task"),
        Column("scale", "Variant of the task by size", "entry.scale"),
        Column("spec_digest", "Digest of the fully resolved task; only equal ones are comparable", "entry.spec_digest"),
        Column("metric", "Name of the metric"),
        Column("headline", "Whether it is the task's headline metric", "coalesce(t.headline, false)"),
        Column("official", "Computed by the runner for every method; false for a method's own", "score.official"),
        Column("direction", "max where more is better, min where less is; null for a method's own", "t.direction"),
        Column("unit", "Unit for people; null for a method's own metric", "t.unit"),
        Column("method", "Method as track/slug", "entry.method"),
        Column("label", "Method with the parameters that differ from its defaults", "entry.label"),
        Column("params_digest", "Digest of all parameters, defaults included", "entry.params_digest"),
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
        Column("refused", _REFUSED, "r.reasons"),
    ),
    _LEADERBOARD_SOURCE,
)

_CLAIMS = View(
    "claims",
    "One row per claim of a paper's card and task: our implementation, at this scale. Of the cards that were installed "
    "when the store was last brought up to date; kdbench claims has the rules of the verdicts",
    (
        Column("method", "Method whose card makes the claim, as track/slug", "c.method"),
        Column("track", "Family of problems, such as vision", "c.track"),
        Column("claim", "Which of the card's claims, from 1", "c.claim"),
        Column("task", "Task as track/name; what the claim names where there is no such task", "c.task"),
        Column("scale", "Variant of the task by size", "c.scale"),
        Column("spec_digest", "Digest of the fully resolved task; empty where there is none", "c.spec_digest"),
        Column("metric", "Name of the metric or meter that the claim is about", "c.metric"),
        Column("kind", "superior, noninferior or ratio: how the subject is claimed to compare", "c.kind"),
        Column("margin", "By how much, in the metric's own unit; a factor where kind is ratio", "c.margin"),
        Column("subject", "Method that is claimed to be good, with the parameters that it names", "c.subject"),
        Column("reference", "Method that it is compared with, or a number", "c.reference"),
        Column("n", "Seeds that both have", "c.n"),
        Column("effect", "Measured difference in favour of the subject, or ratio of means; may be null", "c.effect"),
        Column("low", "Lower end of the effect's 95 % interval; null where there is none", "c.low"),
        Column("high", "Upper end of the effect's 95 % interval; null where there is none", "c.high"),
        Column("verdict", "reproduced, not reproduced or undecided", "c.verdict"),
        Column("note", "Why it is undecided, and what else a reader must know", "c.note"),
        Column("command", "What makes the missing jobs and shows the verdict; may be empty", "c.command"),
    ),
    "FROM store.claims AS c",
)

_METHODS = View(
    "methods",
    "One row per method that is installed or has outcomes. What its card says is null where it is not installed",
    (
        Column("method", "Method as track/slug", "coalesce(c.method, j.method)"),
        Column("track", "Family of problems, such as vision", "split_part(coalesce(c.method, j.method), '/', 1)"),
        Column("slug", "Method without its track", "split_part(coalesce(c.method, j.method), '/', 2)"),
        Column("installed", "Whether its card is known, as of the store's last update", "c.method IS NOT NULL"),
        Column("kind", "paper or baseline", "c.kind"),
        Column("title", "Title of the paper, or name of the baseline", "c.title"),
        Column("year", "Year of the paper; null for a baseline", "c.year"),
        Column("venue", "Where the paper appeared; a baseline's publication", "c.venue"),
        Column("arxiv", "arXiv identifier without version", "c.arxiv"),
        Column("url", "Address of the paper or its code", "c.url"),
        Column("source", "What it was written from: code, paper or abstract; null for a baseline", "c.source"),
        Column("requires", "What it needs of the teacher, as a JSON list", "c.requires"),
        Column("tags", "As a JSON list", "c.tags"),
        Column("jobs", "Finished jobs, of all versions", "coalesce(j.jobs, 0)"),
        Column("jobs_ok", "Of them, those that succeeded", "coalesce(j.jobs_ok, 0)"),
        Column("jobs_failed", "Of them, those that failed; interrupted ones did not", "coalesce(j.jobs_failed, 0)"),
        Column("tasks", "Fully resolved tasks on which it has finished jobs", "coalesce(j.tasks, 0)"),
        Column("first_finished_at", "When its first outcome was written, UTC", "j.first_finished_at"),
        Column("last_finished_at", "When its last outcome was written, UTC", "j.last_finished_at"),
    ),
    """FROM store.cards AS c
FULL JOIN (
  SELECT method, count(*) AS jobs, count(*) FILTER (WHERE status = 'ok') AS jobs_ok,
         count(*) FILTER (WHERE status NOT IN ('ok', 'interrupted')) AS jobs_failed,
         count(DISTINCT spec_digest) AS tasks, min(finished_at) AS first_finished_at,
         max(finished_at) AS last_finished_at
  FROM store.jobs GROUP BY method
) AS j USING (method)""",
)

_TASKS = View(
    "tasks",
    "One row per fully resolved task that has had outcomes",
    (
        Column("spec_digest", "Digest of the fully resolved task", "t.spec_digest"),
        Column("task", "Task as track/name", "t.spec ->> '$.name'"),
        Column("scale", "Variant of the task by size", "t.spec ->> '$.scale'"),
        Column("family", "Sub-suite of the task within its track", "t.family"),
        Column("headline", "Name of the headline metric", "t.headline"),
        Column("floor", "Slug of the method without distillation: 0 on the gap-closed scale", "t.floor"),
        Column("ceiling", "Slug of the method that is 1 on the gap-closed scale", "t.ceiling"),
        Column("limits", "What the student may spend (unit to amount), as JSON", "t.limits"),
        Column("refused", _REFUSED, "r.reasons"),
        Column("spec", "Everything that decides the task's results, as JSON", "t.spec"),
    ),
    "FROM store.tasks AS t LEFT JOIN store.refusals AS r USING (spec_digest)",
)

_SUITES = View(
    "suites",
    "Which suites hold which jobs; a job may be in several, and may not have finished",
    (
        Column("suite", "Name of the suite", "s.suite"),
        Column("id", "Job", "s.id"),
    ),
    "FROM store.suites AS s",
)

VIEWS: Views = (
    *(_JOBS, _METRICS, _COSTS, _CURVES, _LEADERBOARD, PAIRWISE),
    *(_CLAIMS, _METHODS, _TASKS, _SUITES),
)
"""Every public view."""
