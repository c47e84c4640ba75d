"""What the scheduler costs: per job, per plan, per resumed suite, in memory and in processor time.

Jobs that do nothing are run through the real commands; benchopt (a solver that does nothing) and Ray (tasks that
return at once) are measured in the same run, and the ratios are printed. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import measure
import typer
from measure import Failed, workload
from rich.console import Console
from rich.table import Table

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One measured quantity."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    """What it should stay below."""
    benchopt: float | None = None
    """The same of benchopt, in the same unit, where it has it."""
    ray: float | None = None
    """The same of Ray."""
    detail: str = ""

    @property
    def met(self) -> bool:
        return self.limit is None or self.value < self.limit


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    jobs: int
    large: int
    """Jobs of the suite that is planned and resumed."""
    seconds: float
    """Time of a job while the coordinator's share is measured."""
    isolated: int
    """Ray tasks in processes of their own: each takes seconds."""


def kdbench_rows(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """What kdbench costs, the quick measurements first."""
    for name, reuse, limit in (("a process of its own", False, 60.0), ("a persistent worker", True, 15.0)):
        load = workload(folder / name, sizes.jobs, executor={"name": "local", "reuse": True} if reuse else "local")
        done = measure.run_suite(load, folder / name / "results")
        detail = f"{done.jobs} jobs, one at a time; the first starts after {done.first.seconds:.1f} s"
        yield Row(f"overhead of a job in {name}", 1000 * done.per_job, "ms", limit, detail=detail)
        if not reuse:
            busy = f"no-op jobs, {1 / done.per_job:.0f} a second"
            yield Row("coordinator, jobs without content", 100 * done.share, "% of a core", detail=busy)
    yield _share(folder / "share", sizes)
    yield from _large(folder / "large", sizes)


def _share(folder: Path, sizes: Sizes) -> Row:
    workers = os.cpu_count() or 1
    load = workload(folder, 10 * max(2, 2 * workers), executor="local", seconds=sizes.seconds)
    done = measure.run_suite(load, folder / "results", workers=workers)
    detail = f"{done.jobs} jobs of {sizes.seconds:g} s, {workers} at a time"
    return Row("coordinator while jobs run", 100 * done.share, "% of a core", 5.0, detail=detail)


def _large(folder: Path, sizes: Sizes) -> Iterator[Row]:
    small = workload(folder, max(1, sizes.large // 10), executor="instant")
    large = workload(folder, sizes.large, executor="instant")
    planned = measure.quietly(measure.kdbench("plan", str(large.path), folder / "nothing"))
    detail = f"kdbench plan, {large.jobs} jobs, no results yet"
    yield Row("planning", planned, "s", 2.0, detail=detail)
    before = measure.run_suite(small, folder / "small-results")
    after = measure.run_suite(large, folder / "results")
    peaks = [run.finished.peak_rss for run in (before, after)]
    grown = (peaks[1] - peaks[0]) / (after.jobs - before.jobs)
    detail = f"peak of {peaks[0] / MIB:.0f} MiB with {before.jobs} jobs, {peaks[1] / MIB:.0f} MiB with {after.jobs}"
    yield Row("memory of the coordinator per job", grown / 1000, "kB", 10.0, detail=detail)
    resumed = measure.on_terminal(measure.kdbench("run", str(large.path), folder / "results"))
    detail = f"kdbench run, {large.jobs} jobs that are done, boards included"
    yield Row("resuming a finished suite", resumed, "s", 3.0, detail=detail)


def compared(rows: list[Row], folder: Path, sizes: Sizes) -> tuple[list[Row], dict[str, Any]]:
    """The rows with what benchopt and Ray take for the nearest thing that they have."""
    benchopt = measure.benchopt(folder, sizes.jobs)
    ray = measure.ray(sizes.jobs, sizes.isolated)
    others = {
        "overhead of a job in a process of its own": {"ray": 1000 * ray["isolated_seconds"]},
        "overhead of a job in a persistent worker": {
            "benchopt": 1000 * benchopt["run_seconds"],
            "ray": 1000 * ray["shared_seconds"],
        },
        "resuming a finished suite": {"benchopt": benchopt["again_seconds"] * sizes.large},
    }
    return [replace(row, **others.get(row.name, {})) for row in rows], {"benchopt": benchopt, "ray": ray}


def table(rows: list[Row]) -> Table:
    """The rows for people. A ratio above 1 means that the other takes longer."""
    shown = Table(box=None, pad_edge=False)
    for name in ("", "kdbench", "limit", "benchopt", "ratio", "Ray", "ratio", "measured on"):
        shown.add_column(name, justify="left" if name in ("", "measured on") else "right")
    for row in rows:
        cells = [row.name, f"{row.value:.3g} {row.unit}", "" if row.limit is None else f"{row.limit:g}"]
        for other in (row.benchopt, row.ray):
            cells += ["", ""] if other is None else [f"{other:.3g}", f"{other / row.value:.2g}"]
        style = None if row.met else "red"
        shown.add_row(*cells, row.detail, style=style)
    return shown


def machine() -> str:
    """What this was measured on, and what else ran there."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, load before: {load}"


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs whose overhead is measured.")] = 1000,
    large: Annotated[int, typer.Option(min=10, help="Jobs of the suite that is planned and resumed.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of a job while the coordinator is watched.")] = 1.0,
    isolated: Annotated[int, typer.Option(min=1, help="Ray tasks in processes of their own.")] = 10,
    peers: Annotated[bool, typer.Option(help="Also measure benchopt and Ray.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a limit is not met.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what the scheduler costs, beside benchopt and Ray."""
    sizes, where = Sizes(jobs, large, seconds, isolated), machine()
    rows: list[Row] = []
    others: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kdbench-scheduler-") as folder:
        try:
            for row in kdbench_rows(Path(folder), sizes):
                rows.append(row)
                print(f"{row.name}: {row.value:.3g} {row.unit}", file=sys.stderr)
            if peers:
                rows, others = compared(rows, Path(folder), sizes)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
    if as_json:
        shown = [{**asdict(row), "met": row.met} for row in rows]
        print(json.dumps({"machine": where, "rows": shown, **others}, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(where, highlight=False)
        console.print(table(rows), highlight=False)
    if check and not all(row.met for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
