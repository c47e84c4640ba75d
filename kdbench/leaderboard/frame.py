"""Results as a data frame: one row per job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import UsageError
from kdbench.leaderboard import reading
from kdbench.leaderboard.selection import Selection, suite_name
from kdbench.store import duck

if TYPE_CHECKING:
    import duckdb
    import pandas as pd


def results(
    results: str | Path = "results",
    *,
    reference: bool = False,
    suite: str | Path | None = None,
    track: str | None = None,
    task: str | None = None,
    method: str | None = None,
    metric: str | None = None,
) -> pd.DataFrame:
    """Finished jobs of a results folder, failed ones included, ordered by task, label and seed.

    The columns are those of the view ``jobs``, then ``params.NAME``, ``metrics.NAME`` and ``costs.NAME`` for every
    parameter, metric and meter that occurs (NaN or None where a job has none); ``current`` is False for jobs of a
    method's earlier versions. What leaderboards can be asked for is asked for in the same words: ``suite`` is a name
    or a YAML file; ``task`` is ``track/name`` or ``name``, with ``@scale`` for one variant; ``method`` is
    ``track/slug`` or ``slug``; ``metric`` leaves its own column alone of those of the metrics, and the tasks on which
    some job has it, failed jobs included. ``reference`` reads the results that come with kdbench, in place of a
    folder; what they were made with say ``git_commit``, ``method_digest`` and ``spec_digest``. Raises ``UsageError``
    where nothing fits, with what is close.
    """
    folder = Path(results)
    if reference:
        from kdbench.store import reference as shipped

        if folder != Path("results"):
            raise UsageError("reference=True names no folder, but results does", hint="leave one of them out")
        folder = shipped.found().unpack()
    selection = Selection(suite_name(None if suite is None else str(suite)), track, task, method)
    return duck.query(folder, lambda con: _frame(con, selection, metric))


def _frame(con: duckdb.DuckDBPyConnection, selection: Selection, metric: str | None) -> pd.DataFrame:
    import pandas as pd

    selection.check(con)
    where, values = selection.where()
    if metric is not None:
        tasks = f"SELECT spec_digest FROM jobs JOIN store.metrics USING (id) WHERE {where} AND metric = ?"
        where, values = f"{where} AND spec_digest IN ({tasks})", [*values, *values, metric]
    jobs = con.execute(f"SELECT * FROM jobs WHERE {where} ORDER BY task, scale, label, seed, id", values).df()
    if jobs.empty and metric is not None:
        reading.check_metric(con, selection, metric, ())
    params = pd.json_normalize([_params(text) for text in jobs["params"]], max_level=0)
    parts = [jobs, params.add_prefix("params.")]
    for view, name in (("metrics", "metric"), ("costs", "cost")):
        long = con.execute(
            f"SELECT id, {name}, value FROM {view} WHERE id IN (SELECT id FROM jobs WHERE {where})", values
        ).df()
        if view == "metrics" and metric is not None:
            long = long[long["metric"] == metric]
        wide = long.pivot(index="id", columns=name, values="value").reindex(jobs["id"]).add_prefix(f"{view}.")
        parts.append(wide.reset_index(drop=True))
    return pd.concat(parts, axis=1)


def _params(text: str) -> dict[str, Any]:
    params = json.loads(text)
    return params if isinstance(params, dict) else {}
