"""How much more a GPU does where several small training jobs share it.

The same suite is run with 1, 2, 4 and 8 jobs at once on one device, through kdbench's own scheduler: ``resources``
asks for a whole GPU, a half, a quarter, an eighth. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import measure
import typer
import yaml
from measure import Failed, Workload
from rich.console import Console
from rich.table import Table

from kdbench.schedule import gpus
from kdbench.store import spool

AT_ONCE = (1, 2, 4, 8)


@dataclass(frozen=True)
class Packed:
    """What came of one number of jobs at once."""

    at_once: int
    jobs: int
    seconds: float
    """From the start of the first job to the end of the last."""
    jobs_per_minute: float
    steps_per_second: float
    """Of all jobs together."""
    job_seconds: float
    """Of ``train``, mean."""
    gpu_bytes: float
    """Peak of one job on the device, mean; without what CUDA itself takes per process."""


def packed(folder: Path, at_once: int, *, task: str, method: str, steps: int, jobs: int) -> Packed:
    """Run ``jobs`` seeds of a method, ``at_once`` of them on the first GPU. Raises ``Failed`` where one fails."""
    suite = {
        "name": f"packed-{at_once}",
        "tasks": [task],
        "methods": [method],
        "seeds": jobs,
        "budget": {"steps": steps},
        "resources": {"gpus": 1 / at_once},
        "tracking": False,
    }
    folder.mkdir()
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    results = folder / "results"
    done = measure.run_suite(Workload(path, jobs), results, workers=at_once)
    seconds = done.last.seconds - done.first.seconds
    costs = [outcome.cost for outcome in spool.iter_outcomes(results)]
    return Packed(
        at_once,
        jobs,
        seconds,
        60 * jobs / seconds,
        jobs * steps / seconds,
        fmean(cost["train_seconds"] for cost in costs),
        fmean(cost["peak_gpu_bytes"] for cost in costs),
    )


def table(rows: list[Packed]) -> Table:
    """The rows for people; the throughput is relative to the first of them, the memory is the GPU's."""
    shown = Table(box=None, pad_edge=False)
    for name in ("at once", "gpus", "jobs", "time", "jobs/min", "steps/s", "throughput", "a job", "memory of a job"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            str(row.at_once),
            f"{1 / row.at_once:g}",
            str(row.jobs),
            f"{row.seconds:.1f} s",
            f"{row.jobs_per_minute:.1f}",
            f"{row.steps_per_second:.0f}",
            f"{row.jobs_per_minute / rows[0].jobs_per_minute:.2f} x",
            f"{row.job_seconds:.1f} s",
            f"{row.gpu_bytes / 2**20:.0f} MiB",
        )
    return shown


def main(
    task: Annotated[str, typer.Option(help="Task to train on.")] = "vision/digits-fewlabel@cpu",
    method: Annotated[str, typer.Option(help="Method to train with.")] = "kd",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a job.")] = 2000,
    jobs: Annotated[int, typer.Option(min=8, help="Jobs per row: as many seeds.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the throughput of 1, 2, 4 and 8 small training jobs at once on one GPU."""
    found = gpus.gpus() if gpus.gpu_count() else ()
    if not found:
        print("error: there is no GPU here, so there is nothing to measure", file=sys.stderr)
        raise typer.Exit(2)
    rows = []
    with tempfile.TemporaryDirectory(prefix="kdbench-packing-") as folder:
        try:
            for at_once in AT_ONCE:
                place = Path(folder) / str(at_once)
                rows.append(packed(place, at_once, task=task, method=method, steps=steps, jobs=jobs))
                print(f"{at_once} at once: {rows[-1].jobs_per_minute:.1f} jobs a minute", file=sys.stderr)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
    device = f"{found[0].name}, {found[0].memory / 2**30:.0f} GiB"
    if as_json:
        print(json.dumps({"device": device, "task": task, "method": method, "rows": [asdict(row) for row in rows]}))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"{device}; {method} on {task}, {steps} steps", highlight=False)
    console.print(table(rows), highlight=False)


if __name__ == "__main__":
    typer.run(main)
