"""Results as a data frame: one row per job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.boards import Selection
from kdbench.store import duck

if TYPE_CHECKING:
    import duckdb
    import pandas as pd


def results(
    results: str | Path = "results",
    *,
    suite: str | None = None,
    track: str | None = None,
    task: str | None = None,
    method: str | None = None,
) -> pd.DataFrame:
    """Finished jobs of a results folder, failed ones included, ordered by task, label and seed.

    The columns are those of the view ``jobs``, then ``params.NAME``, ``metrics.NAME`` and ``costs.NAME`` for every
    parameter, metric and meter that occurs (NaN or None where a job has none); ``current`` is False for jobs of a
    method's earlier versions. ``task`` is ``track/name`` or ``name``, with ``@scale`` for one variant; ``method``
    is ``track/slug`` or ``slug``. Raises ``UsageError`` where nothing fits, with what is close.
    """
    selection = Selection(suite, track, task, method)
    return duck.query(Path(results), lambda con: _frame(con, selection))


def _frame(con: duckdb.DuckDBPyConnection, selection: Selection) -> pd.DataFrame:
    import pandas as pd

    selection.check(con)
    where, values = selection.where()
    jobs = con.execute(f"SELECT * FROM jobs WHERE {where} ORDER BY task, scale, label, seed, id", values).df()
    params = pd.json_normalize([_params(text) for text in jobs["params"]], max_level=0)
    parts = [jobs, params.add_prefix("params.")]
    for view, name in (("metrics", "metric"), ("costs", "cost")):
        long = con.execute(
            f"SELECT id, {name}, value FROM {view} WHERE id IN (SELECT id FROM jobs WHERE {where})", values
        ).df()
        wide = long.pivot(index="id", columns=name, values="value").reindex(jobs["id"]).add_prefix(f"{view}.")
        parts.append(wide.reset_index(drop=True))
    return pd.concat(parts, axis=1)


def _params(text: str) -> dict[str, Any]:
    params = json.loads(text)
    return params if isinstance(params, dict) else {}
