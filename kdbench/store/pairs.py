"""Method against method in SQL: the view ``pairwise``, by the rules of :mod:`kdbench.leaderboard.statistics`.

Paired differences over the seeds that both methods have, Student's t interval and test, Holm's correction within the
comparisons of each method. The spread counts as what one test example can change in the headline metric at least;
where that is unknown, equal differences are taken for certain from three seeds on.
"""

from __future__ import annotations

from kdbench.store.column import Column, View

TEST_EXAMPLES = "test_examples"
"""The cost that says over how many test examples the headline metric is averaged."""

ALPHA, FEWEST_EQUAL, ROUNDING = 0.05, 3, 1e-12
"""As in :mod:`kdbench.leaderboard.statistics`, which takes a third of a second to import."""

STUDENT_P = """CREATE MACRO main.student_p(t, df) AS CASE
  WHEN t IS NULL OR isnan(t) OR df IS NULL OR df < 1 THEN NULL
  WHEN isinf(t) THEN 0.0
  WHEN df % 2 = 1 THEN greatest(0.0, 1 - 2 / pi() * (atan(abs(t) / sqrt(df)) + abs(t) * sqrt(df) / (df + t * t)
    * coalesce(list_sum([exp(2 * lgamma(k + 1) + k * ln(4) - lgamma(2 * k + 2)) * pow(df / (df + t * t), k)
                         for k in range(0, df // 2)]), 0)))
  ELSE greatest(0.0, 1 - abs(t) / sqrt(df + t * t)
    * list_sum([exp(lgamma(2 * k + 1) - 2 * lgamma(k + 1) - k * ln(4)) * pow(df / (df + t * t), k)
                for k in range(0, df // 2)]))
END"""
"""Two-sided p-value of Student's t for whole degrees of freedom, by the finite series of Abramowitz and Stegun (1964),
26.7.3 and 26.7.4: right to 1e-10."""

STUDENT_P_DOC = "Two-sided p-value of t with a whole number of degrees of freedom: student_p(t, df)"

_BOARD = "track, task, scale, spec_digest, metric"
"""What one board is of. Everything is grouped by all of it, so that a query for one task reads nothing else."""
_ENTRY = f"{_BOARD}, method, params_digest"

_FAMILY = f"{_BOARD}, headline, a, params_a, alike"
"""What is corrected together: the comparisons of a method with those that failed somewhere, or nowhere, as it did."""


def _matched(entry: str, side: str) -> str:
    """That an entry of a board is one side of a pair."""
    same = [f"{entry}.{name} = d.{name}" for name in _BOARD.split(", ")]
    return " AND ".join([*same, f"{entry}.method = d.{side}", f"{entry}.params_digest = d.params_{side}"])


PRIVATE = (
    # what counts on a board: one finite value per method with parameters and seed
    """CREATE VIEW store.scores AS
SELECT j.track, j.task, j.scale, j.spec_digest, m.metric, j.method, j.params_digest, j.seed,
       arg_max(m.value, j.finished_at) AS value
FROM store.current_jobs AS j JOIN store.metrics AS m USING (id)
WHERE j.current AND j.status = 'ok' AND isfinite(m.value)
GROUP BY ALL""",
    # methods with parameters on a board
    f"""CREATE VIEW store.entries AS
SELECT {_ENTRY}, label, largest, n = started AS complete
FROM (
  SELECT track, task, scale, spec_digest, method, params_digest, arg_max(label, finished_at) AS label,
         count(*) FILTER (WHERE status != 'interrupted') AS started
  FROM store.current_jobs WHERE current GROUP BY ALL
)
JOIN (SELECT {_ENTRY}, count(*) AS n, max(abs(value)) AS largest FROM store.scores GROUP BY ALL)
USING (track, task, scale, spec_digest, method, params_digest)""",
    # what one test example can change in a headline metric, where that is known
    f"""CREATE VIEW store.resolutions AS
SELECT spec_digest, metric, (upper - lower) / max(examples) AS resolution
FROM store.task_metrics
JOIN (
  SELECT j.spec_digest, j.method, j.params_digest, avg(c.value) AS examples
  FROM store.current_jobs AS j JOIN store.costs AS c USING (id)
  WHERE j.current AND j.status = 'ok' AND c.cost = '{TEST_EXAMPLES}'
  GROUP BY ALL
) USING (spec_digest)
WHERE headline AND lower IS NOT NULL AND upper IS NOT NULL
GROUP BY spec_digest, metric, lower, upper
HAVING max(examples) >= 1""",
    # paired differences of every method with every other one
    f"""CREATE VIEW store.differences AS
SELECT {", ".join(f"a.{name} AS {name}" for name in _BOARD.split(", "))},
       a.method AS a, a.params_digest AS params_a, b.method AS b, b.params_digest AS params_b,
       count(*) AS n, avg(a.value - b.value) AS mean, stddev_samp(a.value - b.value) AS sd
FROM store.scores AS a JOIN store.scores AS b USING ({_BOARD}, seed)
WHERE a.method != b.method OR a.params_digest != b.params_digest
GROUP BY ALL""",
    # their tests: differences and spreads below the rounding of the values themselves are none
    f"""CREATE VIEW store.tests AS
SELECT *, CASE WHEN n >= 2 THEN student_p(t, n - 1) END AS p, a_complete = b_complete AS alike
FROM (
  SELECT *, CASE WHEN spread > rounding THEN abs(apart) * sqrt(n) / spread
                 WHEN apart = 0 THEN 0.0 WHEN n >= {FEWEST_EQUAL} THEN 'inf'::DOUBLE END AS t
  FROM (
    SELECT d.*, coalesce(m.headline, false) AS headline, m.direction, m.unit,
           x.label AS a_label, y.label AS b_label, x.complete AS a_complete, y.complete AS b_complete,
           greatest(d.sd, coalesce(r.resolution, 0)) AS spread, {ROUNDING} * greatest(x.largest, y.largest) AS rounding,
           CASE WHEN abs(d.mean) <= {ROUNDING} * greatest(x.largest, y.largest) THEN 0.0 ELSE d.mean END AS apart
    FROM store.differences AS d
    JOIN store.entries AS x ON {_matched("x", "a")}
    JOIN store.entries AS y ON {_matched("y", "b")}
    LEFT JOIN store.task_metrics AS m ON m.spec_digest = d.spec_digest AND m.metric = d.metric
    LEFT JOIN store.resolutions AS r ON r.spec_digest = d.spec_digest AND r.metric = d.metric
  )
)""",
    # Holm (1979): the k-th smallest of m p-values times m - k + 1, and never less than the one before
    f"""CREATE VIEW store.steps AS
SELECT *, least(1.0, p * (count(p) OVER family - row_number() OVER (family ORDER BY p NULLS LAST, b, params_b) + 1))
  AS stepped
FROM store.tests
WINDOW family AS (PARTITION BY {_FAMILY})""",
    f"""CREATE VIEW store.families AS
SELECT *, CASE WHEN alike AND p IS NOT NULL THEN
  max(stepped) OVER (PARTITION BY {_FAMILY} ORDER BY p NULLS LAST, b, params_b ROWS UNBOUNDED PRECEDING) END AS p_holm
FROM store.steps""",
)
"""Private views that ``pairwise`` is made of, in the order in which they are made."""

PAIRWISE = View(
    "pairwise",
    "One row per board, metric and ordered pair of methods with parameters: the paired test of the one with the other, "
    "over the seeds of their newest versions that both have",
    (
        Column("track", "Family of problems, such as vision", "f.track"),
        Column("task", "Task as track/name", "f.task"),
        Column("scale", "Variant of the task by size", "f.scale"),
        Column("spec_digest", "Digest of the fully resolved task; only equal ones are comparable", "f.spec_digest"),
        Column("metric", "Name of the metric", "f.metric"),
        Column("headline", "Whether it is the task's headline metric", "f.headline"),
        Column("direction", "max where more is better, min where less is; null for a method's own", "f.direction"),
        Column("unit", "Unit for people; null for a method's own metric", "f.unit"),
        Column("method", "Method whose comparisons are one family, as track/slug", "f.a"),
        Column("label", "That method with the parameters that differ from its defaults", "f.a_label"),
        Column("params_digest", "Digest of all its parameters, defaults included", "f.params_a"),
        Column("complete", "Whether each of its jobs gave a value; interrupted jobs are not counted", "f.a_complete"),
        Column("other", "Method that it is compared with, as track/slug", "f.b"),
        Column("other_label", "The other with the parameters that differ from its defaults", "f.b_label"),
        Column("other_params_digest", "Digest of all parameters of the other", "f.params_b"),
        Column("other_complete", "Whether each of the other's jobs gave a value", "f.b_complete"),
        Column("n", "Seeds with a finite value of both", "f.n"),
        Column("difference", "Mean over these seeds of method - other, in the metric's own unit", "f.mean"),
        Column("sd", "Sample standard deviation of the differences; null for one seed", "f.sd"),
        Column(
            "low",
            "Lower end of the 95 % Student t interval of the difference; null for one seed. The spread counts as one "
            "test example at least, where the metric is the headline and that is known",
            "f.mean - q.t * f.spread / sqrt(f.n)",
        ),
        Column("high", "Upper end of that interval", "f.mean + q.t * f.spread / sqrt(f.n)"),
        Column("p", "Two-sided p-value of the paired t test; null where there is no test", "f.p"),
        Column(
            "p_holm",
            "p by Holm's correction within the method's comparisons; null where one of the two has failed jobs and "
            "the other has none: boards put methods with failures behind all others, whatever the tests say",
            "f.p_holm",
        ),
        Column(
            "better",
            "true where the method is significantly better (p_holm below 0.05), false where it is significantly "
            "worse, null where that is open, where the metric has no direction, and where the task refuses a board",
            f"CASE WHEN f.p_holm < {ALPHA} AND f.apart != 0 AND f.direction IS NOT NULL AND r.reasons IS NULL "
            "THEN (f.apart > 0) = (f.direction = 'max') END",
        ),
    ),
    "FROM store.families AS f\nLEFT JOIN store.refusals AS r USING (spec_digest)\n"
    "LEFT JOIN store.student AS q ON q.df = least(f.n - 1, (SELECT max(df) FROM store.student))",
)
