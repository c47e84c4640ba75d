"""What it takes to keep an outcome: kdbench's spool and DuckDB, and one call of MLflow's ``log_batch``.

The same outcomes with the same curves go both ways, in turn; no time is printed unless what is read back is equal.
See ``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from compare import Check, Json, Rounds, Spread, Surroundings, finish
from leaderboard import Shape, outcomes
from measure import Failed
from rich.table import Table

from kdbench.job import Outcome
from kdbench.store import duck, spool

POINTS, NAMES = 50, ("loss", "ce", "kd")
"""Points of a curve, and what each has."""
LIMIT = 1.0
"""Of what kdbench takes, as a part of ``log_batch`` alone: processor time, and seconds."""
SPOOL, INGEST, BATCH, REST = "spool", "DuckDB", "MLflow log_batch", "MLflow create and end the run"

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Row:
    """What one part of keeping an outcome takes."""

    name: str
    cpu: Spread
    """Processor seconds of an outcome."""
    wall: Spread


def curve_of(outcome: Outcome) -> Curve:
    """A curve as ``task.fit`` logs it."""
    base = outcome.headline or 1.0
    return [{"step": step, **dict.fromkeys(NAMES, base / step)} for step in range(1, POINTS + 1)]


def values_of(outcome: Outcome) -> dict[str, float]:
    """What is measured once of a job."""
    return {**outcome.metrics, **outcome.extra, **{f"cost/{name}": value for name, value in outcome.cost.items()}}


class Clock:
    """Processor seconds and seconds of parts, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, list[tuple[float, float]]] = {}

    def time(self, name: str, work: Callable[[], Any], count: int) -> Any:
        """Do the work, and note what each of ``count`` outcomes took of it."""
        cpu, wall = time.process_time(), time.perf_counter()
        found = work()
        took = time.process_time() - cpu, time.perf_counter() - wall
        self.spent.setdefault(name, []).append((took[0] / count, took[1] / count))
        return found

    def rows(self) -> list[Row]:
        """The parts, what was measured first left out."""
        return [
            Row(name, Spread.of([cpu for cpu, _ in taken[1:]]), Spread.of([wall for _, wall in taken[1:]]))
            for name, taken in self.spent.items()
        ]


def keep(results: Path, some: list[Outcome], clock: Clock) -> None:
    """As a job and a run do it: curve and outcome into the spool, on the disk before they count; rows into DuckDB."""

    def write() -> None:
        for outcome in some:
            folder = spool.job_folder(results, outcome.id)
            folder.mkdir(parents=True)
            (folder / spool.CURVE).write_text("".join(json.dumps(point) + "\n" for point in curve_of(outcome)))
            spool.write_outcome(folder, outcome)

    clock.time(SPOOL, write, len(some))
    clock.time(INGEST, lambda: duck.sync(results, ids=[outcome.id for outcome in some]), len(some))


def track(client: Any, experiment: str, some: list[Outcome], clock: Clock) -> list[str]:
    """A run for each outcome, and all that it has in one call; ids of the runs."""
    from mlflow.entities import Metric, Param, RunTag

    batches = []
    for outcome in some:
        job = outcome.job
        metrics = [Metric(name, value, 0, 0) for name, value in values_of(outcome).items()]
        for point in curve_of(outcome):
            metrics += [Metric(f"curve/{name}", point[name], 0, int(point["step"])) for name in NAMES]
        params = [
            Param(name, str(value)) for name, value in {"method": job.method, "seed": job.seed, **job.params}.items()
        ]
        batches.append((metrics, params, [RunTag("kdbench.job", outcome.id), RunTag("kdbench.task", job.task)]))
    made: list[str] = []

    def write() -> None:
        for run, (metrics, params, tags) in zip(made, batches, strict=True):
            client.log_batch(run, metrics, params, tags)

    def create() -> None:
        made.extend(client.create_run(experiment).info.run_id for _ in some)

    def end() -> None:
        for run in made:
            client.set_terminated(run)

    cpu, wall = time.process_time(), time.perf_counter()
    create()
    before = time.process_time() - cpu, time.perf_counter() - wall
    clock.time(BATCH, write, len(some))
    clock.time(REST, end, len(some))
    ended = clock.spent[REST].pop()
    clock.spent[REST].append((ended[0] + before[0] / len(some), ended[1] + before[1] / len(some)))
    return made


def compare(results: Path, client: Any, outcome: Outcome, run: str) -> None:
    """Raise ``Failed`` unless both stores give back what the outcome has."""
    with duck.connect(results) as con:
        found = con.execute("SELECT metric, value FROM metrics WHERE id = ?", [outcome.id]).fetchall()
        costs = con.execute("SELECT cost, value FROM costs WHERE id = ?", [outcome.id]).fetchall()
        points = con.execute("SELECT metric, value FROM curves WHERE id = ? ORDER BY step", [outcome.id]).fetchall()
    ours = dict(found) | {f"cost/{name}": value for name, value in costs}
    ours_curve = {name: [value for metric, value in points if metric == name] for name in NAMES}
    theirs = {name: value for name, value in client.get_run(run).data.metrics.items() if not name.startswith("curve/")}
    history = {name: sorted(client.get_metric_history(run, f"curve/{name}"), key=lambda m: m.step) for name in NAMES}
    theirs_curve = {name: [metric.value for metric in values] for name, values in history.items()}
    wanted = {name: [point[name] for point in curve_of(outcome)] for name in NAMES}
    if not ours == theirs == values_of(outcome) or not ours_curve == theirs_curve == wanted:
        raise Failed(f"the stores do not give back what was written: {ours}, {theirs}")


def measured(folder: Path, count: int, rounds: int) -> list[Row]:
    """``count`` outcomes each way, round after round, the first of which is not counted."""
    from mlflow.tracking import MlflowClient

    results, clock = folder / "results", Clock()
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("writes")
    source: Iterator[Outcome] = (one for one in outcomes(Shape(10, 200, 10)) if one.status == "ok")
    for _ in range(rounds + 1):
        some = list(islice(source, count))
        if len(some) < count:
            raise Failed("there are not enough outcomes: take fewer rounds or a smaller --count")
        keep(results, some, clock)
        made = track(client, experiment, some, clock)
        compare(results, client, some[-1], made[-1])
    return clock.rows()


def total(rows: list[Row], clock: str) -> tuple[float, float]:
    """Median seconds of an outcome in kdbench, and of ``log_batch``."""
    by = {row.name: getattr(row, clock).median for row in rows}
    return by[SPOOL] + by[INGEST], by[BATCH]


def missed(rows: list[Row]) -> list[str]:
    """Which goals kdbench misses, one sentence each."""
    reasons = []
    for clock, words in (("cpu", "processor time"), ("wall", "time")):
        mine, theirs = total(rows, clock)
        if mine > LIMIT * theirs:
            reasons.append(f"an outcome takes {mine / theirs:.2f} of the {words} of log_batch, more than {LIMIT:g}")
    return reasons


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    shown = Table(box=None, pad_edge=False)
    for name in ("of an outcome", "CPU ms", "wall ms"):
        shown.add_column(name, justify="left" if name == "of an outcome" else "right")
    for row in rows:
        shown.add_row(row.name, row.cpu.show(1000), row.wall.show(1000))
    cpu, wall = total(rows, "cpu"), total(rows, "wall")
    shown.add_row("log_batch over kdbench's two", f"{cpu[1] / cpu[0]:.3g}", f"{wall[1] / wall[0]:.3g}")
    return shown


def main(
    count: Annotated[int, typer.Option(min=1, help="Outcomes of a round.")] = 100,
    rounds: Rounds = 5,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure what it takes to keep an outcome, beside MLflow."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    around = Surroundings()
    with tempfile.TemporaryDirectory(prefix="kdbench-writes-") as folder:
        try:
            rows = measured(Path(folder), count, rounds)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
    where = around.end()
    what = {"machine": where, "count": count, "rounds": rounds, "rows": [asdict(row) for row in rows]}
    lines = [where, f"{rounds} rounds of {count} outcomes; median (least-most)"]
    finish(table(rows), what, missed(rows), lines=lines, path=json_file, check=check)


if __name__ == "__main__":
    typer.run(main)
