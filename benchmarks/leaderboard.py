"""What a leaderboard takes of a large store: CPU of ``load_boards`` for one task, the check for news included.

    python benchmarks/leaderboard.py            # two shapes of a million metric rows, a few minutes; --json, --check

Both stores are made the way all are, from a spool of outcomes on the disk, in a temporary folder. Nothing is trained:
the scores are random numbers. What is measured is what a command does after its imports: see whether anything is new,
open the published database and make the boards of a task, with ranks and gap closed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.job import Job, Outcome
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.selection import Selection
from kdbench.spec import Metric, TaskSpec
from kdbench.store import duck, fresh, spool

LIMIT = 150.0
"""Milliseconds of CPU for a leaderboard."""
SEEDS = 5
START = datetime(2026, 1, 1)


@dataclass(frozen=True)
class Shape:
    """How a million metric rows come about."""

    tasks: int
    methods: int
    metrics: int

    @property
    def jobs(self) -> int:
        return self.tasks * self.methods * SEEDS

    @property
    def rows(self) -> int:
        return self.jobs * self.metrics


SHAPES = (Shape(tasks=40, methods=50, metrics=100), Shape(tasks=100, methods=200, metrics=10))


def outcomes(shape: Shape) -> Iterator[Outcome]:
    """Random outcomes of every method on every task; one job in fifty failed."""
    rng = np.random.default_rng(0)
    names = [f"metric{number:02d}" for number in range(shape.metrics - 1)]
    modules = {f"kdbench.module{number}": f"{number:016x}" for number in range(60)}
    packages = {f"package{number}": "1.2.3" for number in range(12)}
    provenance = {"git": {"commit": "0" * 40, "dirty": False}, "packages": packages, "modules": modules}
    for task in range(shape.tasks):
        spec = TaskSpec(
            name=f"vision/task{task:03d}",
            title="Task",
            family="classify",
            scale="cpu",
            headline=Metric(name="top1", direction="max", bounds=(0, 1)),
            metrics=tuple(Metric(name=name, direction="min") for name in names[:5]),
            limits={"steps": 100},
            floor="method000",
            ceiling="method001",
        ).identity()
        for method in range(shape.methods):
            skill = rng.uniform(0.3, 0.9)
            for seed in range(SEEDS):
                job = Job(
                    method=f"vision/method{method:03d}",
                    method_digest="d",
                    params={"weight": 0.5, "temperature": 4.0},
                    task=f"vision/task{task:03d}",
                    spec=spec,
                    seed=seed,
                    track_version=1,
                    method_file=Path("method.py"),
                    suite="large",
                    label=f"method{method:03d}",
                )
                ok = bool(rng.random() > 0.02)
                score = float(np.clip(skill + rng.normal(0, 0.02), 0, 1))
                values = dict(zip(names, rng.random(len(names)).tolist(), strict=True))
                started = START + timedelta(seconds=int(rng.integers(10**6)))
                yield Outcome(
                    id=job.id,
                    job=job,
                    status="ok" if ok else "failed",
                    headline=score if ok else None,
                    metrics={"top1": score, **{name: values[name] for name in names[:5]}} if ok else {},
                    extra={name: values[name] for name in names[5:]} if ok else {},
                    cost={
                        "steps": 100.0,
                        "train_seconds": 2.5,
                        "flops": 1e9,
                        "parameters": 1e5,
                        "test_examples": 500.0,
                    },
                    started_at=started,
                    finished_at=started + timedelta(seconds=60),
                    provenance=provenance,
                )


def fill(results: Path, shape: Shape) -> None:
    """Write the outcomes; without waiting for the disk after each, as nothing of them is to be kept."""
    for outcome in outcomes(shape):
        folder = spool.job_folder(results, outcome.id)
        folder.mkdir(parents=True)
        (folder / spool.OUTCOME).write_text(outcome.model_dump_json(indent=1) + "\n")


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median milliseconds of CPU (of all threads) and of wall-clock time; the first call is not counted."""
    work()
    cpu, wall = [], []
    for _ in range(repeats):
        started = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    return {"cpu_ms": 1000 * statistics.median(cpu), "wall_ms": 1000 * statistics.median(wall)}


def measure(shape: Shape, folder: Path, repeats: int) -> dict[str, Any]:
    """Numbers of one shape."""
    results = folder / f"{shape.jobs}"
    started = time.perf_counter()
    fill(results, shape)
    written = time.perf_counter() - started
    started = time.perf_counter()
    duck.sync(results)
    synced = time.perf_counter() - started
    time.sleep(fresh.RACY / 1e9 + 0.1)  # a look at a folder that has just changed is not believed
    duck.sync(results)
    if not duck.is_fresh(results):
        raise SystemExit("the store is not fresh after it was brought up to date")
    selection = Selection(task="vision/task007")
    (board,) = duck.query(results, lambda con: load_boards(con, selection))
    assert len(board.rows) == shape.methods
    metric = "metric03"
    (rows,) = duck.query(results, lambda con: con.execute("SELECT count(*) FROM metrics").fetchall())
    found: dict[str, Any] = {
        "jobs": shape.jobs,
        "metric_rows": rows[0],
        "store_mib": duck.published_path(results).stat().st_size / 2**20,
        "write_seconds": written,
        "sync_seconds": synced,
        "is_fresh": timed(lambda: duck.is_fresh(results), repeats),
        "sync_without_news": timed(lambda: duck.sync(results), 3),
        "leaderboard": timed(lambda: duck.query(results, lambda con: load_boards(con, selection)), repeats),
        "leaderboard_metric": timed(
            lambda: duck.query(results, lambda con: load_boards(con, selection, metric)), repeats
        ),
    }
    for view in ("leaderboard", "pairwise"):
        query = f"SELECT * FROM {view} WHERE task = 'vision/task007' AND headline"
        found[f"view_{view}"] = timed(
            lambda query=query: duck.query(results, lambda con: con.execute(query).fetchall()), 3
        )
    shutil.rmtree(results)
    return found


def show(found: dict[str, Any]) -> None:
    """One shape for people."""
    print(f"{found['jobs']:,} jobs, {found['metric_rows']:,} metric rows, store of {found['store_mib']:.0f} MiB")
    print(f"  outcomes written in {found['write_seconds']:.0f} s, ingested in {found['sync_seconds']:.0f} s")
    for name, value in found.items():
        if isinstance(value, dict):
            limit = f"  (limit {LIMIT:.0f})" if name.startswith("leaderboard") else ""
            print(f"  {name:22} {value['cpu_ms']:8.1f} ms CPU {value['wall_ms']:8.1f} ms{limit}")


def main() -> None:
    """Measure both shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--shape", type=int, choices=range(len(SHAPES)), help="this one only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a leaderboard is over its limit")
    options = parser.parse_args()
    shapes = SHAPES if options.shape is None else (SHAPES[options.shape],)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="kdbench-benchmark-") as folder:
        found = [measure(shape, Path(folder), options.repeats) for shape in shapes]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for item in found:
            show(item)
    slow = [item[name]["cpu_ms"] for item in found for name in ("leaderboard", "leaderboard_metric")]
    if options.check and max(slow) > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
