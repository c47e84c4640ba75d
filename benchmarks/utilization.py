"""How much of the workers' time goes into ``train`` and ``evaluate`` while a suite runs.

The real command runs a part of a suite; what its outcomes and its coordinator note says where the time went. See
``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import measure
import typer
from compare import Check, Continue, Json, Rounds, Spread, Surroundings, earlier, finish
from measure import HERE, Failed, script
from rich.table import Table

LEAST = 0.95
"""Share of the workers' time that ``train`` and ``evaluate`` should have."""


@dataclass(frozen=True)
class Round:
    """One run of the suite; seconds of workers, of which there are ``workers`` for every second of the run."""

    jobs: int
    workers: int
    run: float
    """Seconds from the start of the first job to the end of the last."""
    train: float
    evaluate: float
    inside: float
    """In jobs, beyond both: making the task, checking the model, writing scores and the outcome."""
    tail: float
    """Without a job at the end, when fewer jobs were left than workers."""
    busy: float = 0.0
    """Cores that other programs kept busy meanwhile."""

    @property
    def capacity(self) -> float:
        return self.run * self.workers

    @property
    def share(self) -> float:
        """Of ``train`` and ``evaluate``."""
        return (self.train + self.evaluate) / self.capacity

    @property
    def between(self) -> float:
        """Between jobs: starting and ending their processes, and waiting for the coordinator."""
        return self.capacity - self.train - self.evaluate - self.inside - self.tail


def measured(folder: Path, suite: str, filters: Sequence[str], seeds: int, workers: int) -> Round:
    """Run the jobs. Raises ``Failed`` where one fails."""
    around, meter, results = Surroundings(), folder / "meter.json", folder / "results"
    command = [script("kdbench"), "run", suite, "--results", str(results), "--workers", str(workers)]
    command += ["--seeds", str(seeds), "--no-tracking", "--plugin", str(HERE / "meter.py")]
    command += [word for text in filters for word in ("--filter", text)]
    measure.on_terminal(command, {"KDBENCH_METER": str(meter), "OMP_NUM_THREADS": "1"})
    marks = json.loads(meter.read_text())["marks"]
    raw = [json.loads(file.read_text()) for file in (results / "jobs").glob("*/outcome.json")]
    bad = [one for one in raw if one["status"] != "ok"]
    if bad:
        raise Failed(f"{bad[0]['job']['label']} on {bad[0]['job']['task']}: {bad[0]['error']}")
    found = of(raw, marks["last"]["seconds"] - marks["first"]["seconds"], workers)
    return replace(found, busy=around.busy())


def of(raw: Sequence[dict[str, Any]], run: float, workers: int) -> Round:
    """Where the time of a run went, from its outcomes."""
    cost = [one["cost"] for one in raw]
    train, evaluate = (sum(one[name] for one in cost) for name in ("train_seconds", "eval_seconds"))
    spans = [[datetime.fromisoformat(one[name]) for name in ("started_at", "finished_at")] for one in raw]
    inside = sum((end - start).total_seconds() for start, end in spans) - train - evaluate
    ends = sorted(end for _, end in spans)[-workers:]
    tail = sum((ends[-1] - end).total_seconds() for end in ends) + run * (workers - len(ends))
    return Round(len(raw), workers, run, train, evaluate, inside, tail)


def table(rounds: Sequence[Round]) -> Table:
    """The parts for people."""
    shown = Table(box=None, pad_edge=False)
    for name in ("", "worker seconds", "% of the workers' time"):
        shown.add_column(name, justify="left" if not name else "right")
    for name, part in (
        ("train", "train"),
        ("evaluate", "evaluate"),
        ("in jobs beyond both", "inside"),
        ("between jobs", "between"),
        ("without a job at the end", "tail"),
    ):
        values = [getattr(one, part) for one in rounds]
        shares = [value / one.capacity for value, one in zip(values, rounds, strict=True)]
        shown.add_row(name, Spread.of(values).show(), Spread.of(shares).show(100))
    shown.add_row("train and evaluate", "", Spread.of([one.share for one in rounds]).show(100))
    return shown


def missed(rounds: Sequence[Round]) -> list[str]:
    """Which goals kdbench misses, one sentence each."""
    share = Spread.of([one.share for one in rounds]).median
    return [] if share >= LEAST else [f"train and evaluate have {share:.3f} of the workers' time, less than {LEAST:g}"]


def main(
    suite: Annotated[str, typer.Option(help="Whose jobs are run.")] = "vision",
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="As of kdbench run.  [default: vision/shapetex]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Jobs at once.")] = os.cpu_count() or 1,
    rounds: Rounds = 1,
    more: Continue = False,
    check: Check = False,
    json_file: Json = None,
) -> None:
    """Measure which share of the workers' time goes into training and evaluation."""
    around = Surroundings()
    chosen = filters or ["vision/shapetex"]
    settings = {"suite": suite, "filters": chosen, "seeds": seeds, "workers": workers}
    try:
        found = [Round(**one) for one in earlier(json_file, settings, more)]
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="kdbench-utilization-") as folder:
                found.append(measured(Path(folder), suite, chosen, seeds, workers))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    what = {"machine": around.end(), "settings": settings, "rounds": [asdict(one) for one in found]}
    busy = Spread.of([one.busy for one in found]).show()
    lines = [
        around.machine,
        f"other programs kept {busy} of {os.cpu_count()} cores busy meanwhile",
        f"{found[0].jobs} jobs of the suite {suite}, {workers} at once; {len(found)} rounds: median (least-most)",
    ]
    finish(table(found), what, missed(found), lines=lines, path=json_file, check=check)


if __name__ == "__main__":
    typer.run(main)
