"""What a leaderboard takes of large stores, beside MLflow's ``search_runs`` with pandas on the same results.

A store of 10,000 jobs is made as all are, from a spool; larger ones hold it several times under other tasks, in both
databases. No time is printed unless both give the same answer. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from compare import Check, Json, Rounds, Spread, Surroundings, finish
from leaderboard import Shape, fill, outcomes
from measure import Failed
from rich.table import Table

from kdbench.job import Outcome
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.selection import Selection
from kdbench.store import duck, fresh

if TYPE_CHECKING:
    import duckdb
    import pandas

    Frame = pandas.DataFrame

BASE = Shape(tasks=10, methods=200, metrics=10)
"""Of the results that are repeated: 10,000 jobs."""
TASK = "vision/task007"
EXPERIMENT = "1"
FASTER = 20.0
"""How much faster the boards have to be than MLflow's answers, in processor time, at 10,000 jobs."""
BEST = 10
COLUMNS = ("task", "method", "seed")
"""Of an outcome that MLflow has as parameters."""

OPEN, COMMAND, TRACKER = "kdbench", "kdbench, opened for it", "MLflow"
"""Ways to ask: both with their database open, and what a command of kdbench does after its imports."""

Answer = dict[Any, float]


@dataclass(frozen=True)
class Query:
    """A question that both stores are asked."""

    name: str
    kdbench: Callable[[duckdb.DuckDBPyConnection], Answer]
    mlflow: Callable[[], Answer]
    board: bool
    """Whether it is what a leaderboard is made of."""
    more: str = ""
    """What kdbench's answer holds beyond MLflow's."""


@dataclass(frozen=True)
class Row:
    """One question to a store of one size."""

    jobs: int
    query: str
    board: bool
    cpu: dict[str, Spread]
    """Processor seconds of all threads, by way; MLflow is left out where it was not asked."""
    wall: dict[str, Spread]

    @property
    def ratio(self) -> float | None:
        """What MLflow takes over what kdbench takes, both with their database open."""
        return self.cpu[TRACKER].median / self.cpu[OPEN].median if TRACKER in self.cpu else None


# --- kdbench ----------------------------------------------------------------------------------------------------------


def board(con: duckdb.DuckDBPyConnection) -> Answer:
    """Mean score of every method on one task, from the board that people see."""
    (found,) = load_boards(con, Selection(task=TASK))
    return {row.method: row.score.mean for row in found.rows if row.score is not None}


def task_means(con: duckdb.DuckDBPyConnection) -> Answer:
    """Mean score of every method on one task, in SQL."""
    rows = con.execute(
        "SELECT method, avg(score) FROM jobs WHERE status = 'ok' AND current AND task = ? GROUP BY ALL", [TASK]
    ).fetchall()
    return dict(rows)


def means(con: duckdb.DuckDBPyConnection) -> Answer:
    """Mean score of every method on every task, in SQL."""
    rows = con.execute(
        "SELECT task, method, avg(score) FROM jobs WHERE status = 'ok' AND current GROUP BY ALL"
    ).fetchall()
    return {(task, method): mean for task, method, mean in rows}


def best(con: duckdb.DuckDBPyConnection) -> Answer:
    """The best jobs of one task, in SQL."""
    rows = con.execute(
        "SELECT method, seed, score FROM jobs WHERE status = 'ok' AND current AND task = ? ORDER BY score DESC LIMIT ?",
        [TASK, BEST],
    ).fetchall()
    return {(method, str(seed)): score for method, seed, score in rows}


def command(results: Path, work: Callable[[duckdb.DuckDBPyConnection], Answer]) -> Answer:
    """What a command does after its imports: look whether anything is new, open the published store, read."""
    duck.is_fresh(results)
    with duck.connect(results) as con:
        return work(con)


def repeat_store(results: Path, times: int) -> None:
    """Let the published store hold all results ``times`` times, each under tasks of its own."""
    import duckdb

    repeated = {
        "jobs": "id || '-' || k AS id, task || '-' || k AS task, spec_digest || '-' || k AS spec_digest",
        "metrics": "id || '-' || k AS id",
        "costs": "id || '-' || k AS id",
        "tasks": "spec_digest || '-' || k AS spec_digest, "
        "json_merge_patch(spec, json_object('name', spec->>'name' || '-' || k)) AS spec",
        "task_metrics": "spec_digest || '-' || k AS spec_digest",
    }
    path = duck.published_path(results)
    with duckdb.connect(str(path)) as con:
        for name, changes in repeated.items():
            con.execute(
                f"INSERT INTO store.{name} SELECT known.* REPLACE ({changes}) FROM store.{name} AS known, "
                f"range(1, {times}) AS copies(k)"
            )
        con.execute("CHECKPOINT")


# --- MLflow -----------------------------------------------------------------------------------------------------------


def runs(**options: Any) -> Frame:
    """``mlflow.search_runs`` of the runs that finished."""
    import mlflow

    wanted = " and ".join(["attributes.status = 'FINISHED'", *options.pop("filters", [])])
    found: Frame = mlflow.search_runs(experiment_ids=[EXPERIMENT], filter_string=wanted, **options)
    return found


def mlflow_board() -> Answer:
    """Mean score of every method on one task: the finished runs of the task, averaged by pandas."""
    frame = runs(filters=[f"params.task = '{TASK}'"])
    return dict(frame.groupby("params.method")["metrics.top1"].mean())


def mlflow_means() -> Answer:
    """Mean score of every method on every task: all finished runs, averaged by pandas."""
    return dict(runs().groupby(["params.task", "params.method"])["metrics.top1"].mean())


def mlflow_best() -> Answer:
    """The best runs of one task, sorted by MLflow itself."""
    frame = runs(filters=[f"params.task = '{TASK}'"], order_by=["metrics.top1 DESC"], max_results=BEST)
    rows = zip(frame["params.method"], frame["params.seed"], frame["metrics.top1"], strict=True)
    return {(method, seed): score for method, seed, score in rows}


QUERIES = (
    Query("means of one task", task_means, mlflow_board, True),
    Query("board of one task", board, mlflow_board, True, "intervals, ranks by tests of all pairs, gap closed, costs"),
    Query("means of all tasks", means, mlflow_means, True),
    Query(f"best {BEST} jobs of a task", best, mlflow_best, False),
)


def track(database: Path, found: Iterator[Outcome]) -> None:
    """Put outcomes into MLflow's database as ``log_batch`` leaves them: it would take half an hour for 10,000.

    Raises ``Failed`` where a run that MLflow itself logged has other rows than those that are written here.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    if client.create_experiment("boards") != EXPERIMENT:
        raise Failed(f"{database} numbers its experiments in another way")
    first = next(found)
    logged = _log(client, first)
    with closing(sqlite3.connect(database)) as con, con:
        run = con.execute("SELECT * FROM runs").fetchone()
        names = [column[1] for column in con.execute("PRAGMA table_info(runs)")]
        template = dict(zip(names, run, strict=True))
        before = _counts(con)
        for number, outcome in enumerate(found, start=1):
            _write(con, template, f"{number:032x}", outcome)
            if number == 1 and (after := _counts(con)) != {name: 2 * count for name, count in before.items()}:
                raise Failed(f"MLflow logs a run as {before}; these are two: {after}")
    assert client.get_run(logged).data.metrics["top1"] == first.metrics["top1"]


def _values(outcome: Outcome) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics and parameters of a run."""
    job = outcome.job
    given = {name: str(getattr(job, name)) for name in COLUMNS} | {
        name: str(value) for name, value in job.params.items()
    }
    return {**outcome.metrics, **outcome.extra, **outcome.cost}, given


def _log(client: Any, outcome: Outcome) -> str:
    from mlflow.entities import Metric, Param

    metrics, params = _values(outcome)
    run = client.create_run(EXPERIMENT, run_name=outcome.job.label)
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, 0, 0) for name, value in metrics.items()],
        params=[Param(name, value) for name, value in params.items()],
    )
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


TABLES = ("runs", "metrics", "latest_metrics", "params", "tags")


def _counts(con: sqlite3.Connection) -> dict[str, int]:
    return {name: con.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}


def _write(con: sqlite3.Connection, template: Mapping[str, Any], run: str, outcome: Outcome) -> None:
    """The rows of one run, the first run of the table being the model."""
    metrics, params = _values(outcome)
    status = "FINISHED" if outcome.status == "ok" else "FAILED"
    row = {**template, "run_uuid": run, "name": outcome.job.label, "status": status}
    con.execute(f"INSERT INTO runs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
    con.execute("INSERT INTO tags (key, value, run_uuid) VALUES ('mlflow.runName', ?, ?)", [outcome.job.label, run])
    for table in ("metrics", "latest_metrics"):
        con.executemany(
            f"INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, 0, ?, 0, 0)",
            [(name, value, run) for name, value in metrics.items()],
        )
    con.executemany(
        "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
        [(name, value, run) for name, value in params.items()],
    )


def repeat_tracked(database: Path, times: int) -> None:
    """Let MLflow's database hold all runs ``times`` times, each under tasks of its own."""
    with closing(sqlite3.connect(database)) as con, con:
        for name in TABLES:
            columns = [column[1] for column in con.execute(f"PRAGMA table_info({name})")]
            taken = ["printf('%04x', k) || substr(run_uuid, 5)" if c == "run_uuid" else c for c in columns]
            if name == "params":
                taken[columns.index("value")] = "CASE key WHEN 'task' THEN value || '-' || k ELSE value END"
            con.execute(
                f"WITH RECURSIVE copies(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM copies WHERE k < {times - 1}) "
                f"INSERT INTO {name} ({', '.join(columns)}) SELECT {', '.join(taken)} FROM {name}, copies"
            )
        con.execute("ANALYZE")


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], Answer]) -> tuple[Answer, float, float]:
    """The answer, processor seconds and seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    answer = work()
    return answer, time.process_time() - cpu, time.perf_counter() - wall


def same(query: str, ours: Answer, theirs: Answer) -> None:
    """Raise ``Failed`` unless both answers are equal, values up to rounding."""
    if ours.keys() != theirs.keys() or any(abs(ours[key] - theirs[key]) > 1e-12 for key in ours):
        apart = {key: (ours.get(key), theirs.get(key)) for key in [*ours, *theirs] if ours.get(key) != theirs.get(key)}
        raise Failed(f"{query}: the answers differ: {dict(list(apart.items())[:3])}")


def opened(results: Path, work: Callable[[duckdb.DuckDBPyConnection], Answer]) -> tuple[Answer, float, float]:
    """:func:`timed` on a store that is open and was asked before, as MLflow's is."""
    with duck.connect(results) as con:  # not for longer: who opens a store that is open in this process gets the same
        work(con)
        return timed(lambda: work(con))


def measured(results: Path, jobs: int, rounds: int, *, tracked: bool) -> Iterator[Row]:
    """Every question in turn to both, after one that is not counted."""
    for query in QUERIES:
        ways: dict[str, Callable[[], tuple[Answer, float, float]]] = {
            OPEN: lambda query=query: opened(results, query.kdbench),
            COMMAND: lambda query=query: timed(lambda: command(results, query.kdbench)),
            **({TRACKER: lambda query=query: timed(query.mlflow)} if tracked else {}),
        }
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            answers = {}
            for name, way in ways.items():
                answers[name], cpu, wall = way()
                if number:
                    spent[name].append((cpu, wall))
            if not answers[OPEN]:
                raise Failed(f"{query.name}: there is no answer")
            for answer in answers.values():
                same(query.name, answers[OPEN], answer)
        clocks = [{name: Spread.of([one[i] for one in taken]) for name, taken in spent.items()} for i in (0, 1)]
        yield Row(jobs, query.name, query.board, *clocks)
        print(f"{jobs:,} jobs, {query.name}: measured", file=sys.stderr)


def missed(rows: list[Row]) -> list[str]:
    """Which goals kdbench misses, one sentence each."""
    return [
        f"{row.query}, {row.jobs:,} jobs: {row.ratio:.3g} times as fast as MLflow, less than {FASTER:g}"
        for row in rows
        if row.board and row.jobs == BASE.jobs and row.ratio is not None and row.ratio < FASTER
    ]


def table(rows: list[Row]) -> Table:
    """The rows for people. A ratio above 1 means that MLflow takes longer."""
    shown = Table(box=None, pad_edge=False)
    for name in ("jobs", "query", *(f"{way}: CPU ms" for way in (OPEN, COMMAND, TRACKER)), "ratio", "wall ms"):
        shown.add_column(name, justify="left" if name == "query" else "right")
    for row in rows:
        cells = [row.cpu[way].show(1000) if way in row.cpu else "" for way in (OPEN, COMMAND, TRACKER)]
        walls = " | ".join(f"{1000 * row.wall[way].median:.3g}" for way in (OPEN, COMMAND, TRACKER) if way in row.wall)
        shown.add_row(f"{row.jobs:,}", row.query, *cells, "" if row.ratio is None else f"{row.ratio:.3g}", walls)
    return shown


def main(
    times: Annotated[
        list[int] | None, typer.Option(min=1, help="Sizes of the stores, in 10,000 jobs.  [default: 1 10 100]")
    ] = None,
    tracked: Annotated[int, typer.Option(min=0, help="Largest store that MLflow is asked about, too.")] = 10,
    rounds: Rounds = 5,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure questions to the results of many jobs, beside MLflow."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    around, rows = Surroundings(), []
    sizes = sorted(set(times or (1, 10, 100)))
    with tempfile.TemporaryDirectory(prefix="kdbench-queries-") as folder:
        try:
            for size in sizes:
                home = Path(folder) / str(size)
                results, database = Path(folder) / "results", Path(folder) / "mlflow.db"
                if not results.exists():
                    fill(results, BASE)
                    time.sleep(fresh.RACY / 1e9 + 0.1)  # a look at a folder that has just changed is not believed
                    duck.sync(results)
                    if not duck.is_fresh(results):
                        raise Failed("the store is not fresh after it was brought up to date")
                    track(database, outcomes(BASE))
                home.mkdir()
                shutil.copytree(results / "store", home / "store")
                shutil.copyfile(duck.published_path(results), duck.published_path(home))
                ours, theirs = (results, database) if size == 1 else (home, home / "mlflow.db")
                if size > 1:
                    repeat_store(home, size)
                if size > 1 and size <= tracked:
                    import mlflow

                    shutil.copyfile(database, theirs)
                    repeat_tracked(theirs, size)
                    mlflow.set_tracking_uri(f"sqlite:///{theirs}")
                rows += measured(ours, size * BASE.jobs, rounds, tracked=size <= tracked)
                shutil.rmtree(home)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
    where = around.end()
    what = {"machine": where, "rounds": rounds, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
    more = [f"{query.name}: kdbench's answer also has {query.more}" for query in QUERIES if query.more]
    lines = [where, f"{rounds} rounds; median (least-most); ratio of MLflow to kdbench with its store open", *more]
    finish(table(rows), what, missed(rows), lines=lines, path=json_file, check=check)


if __name__ == "__main__":
    typer.run(main)
