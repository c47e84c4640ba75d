"""Jobs and outcomes in numbers, without training anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.job import Failure, Job, Outcome, Status
from kdbench.spec import Metric, TaskSpec
from kdbench.store import spool

START = datetime(2026, 1, 2, 3, 4, 5)


def make_spec(
    task: str = "vision/toy",
    *,
    scale: str = "cpu",
    headline: str = "top1",
    direction: str = "max",
    metrics: Sequence[str] = ("nll",),
    **changes: Any,
) -> dict[str, Any]:
    """A resolved task specification, as jobs carry it."""
    spec = TaskSpec(
        name=task,
        title="Toy",
        family="classify",
        scale=scale,
        headline=Metric(name=headline, direction=direction, bounds=(0, 1)),
        metrics=tuple(Metric(name=name, direction="min") for name in metrics),
        limits=changes.pop("limits", {"steps": 100}),
        **changes,
    )
    return spec.identity()


def make_job(
    method: str = "kd",
    seed: int = 0,
    *,
    task: str = "vision/toy",
    params: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    suite: str = "toy",
    label: str = "",
    digest: str = "d",
    **changes: Any,
) -> Job:
    """A job of the method with this slug; equal arguments give equal ids."""
    track = task.split("/", 1)[0]
    return Job(
        method=method if "/" in method else f"{track}/{method}",
        method_digest=digest,
        params=dict(params or {}),
        task=task,
        spec=dict(spec) if spec is not None else make_spec(task),
        seed=seed,
        track_version=1,
        method_file=Path(f"{method}.py"),
        suite=suite,
        label=label or method,
        **changes,
    )


def make_outcome(
    job: Job,
    score: float | None = 0.5,
    *,
    status: Status = "ok",
    metrics: Mapping[str, float] | None = None,
    extra: Mapping[str, float] | None = None,
    cost: Mapping[str, float] | None = None,
    modules: str = "m0",
    minutes: float = 1.0,
    gate: Sequence[str] = (),
) -> Outcome:
    """What the job left: ``score`` on its headline metric, or a failure of ``status``.

    ``gate``: why the task refuses a board.
    """
    ok = status == "ok"
    headline = job.spec["headline"]["name"]
    values = {headline: float(score), "nll": 1.0 - float(score)} if ok and score is not None else {}
    return Outcome(
        id=job.id,
        job=job,
        status=status,
        headline=values.get(headline),
        metrics={**values, **(metrics or {})} if ok else {},
        extra=dict(extra or {}),
        cost={"steps": 100.0, "train_seconds": 2.5, "teacher_queries": 6400.0, "flops": 1e9, "parameters": 1e5}
        | dict(cost or {}),
        error=None if ok else Failure(type="RuntimeError", message="planted", traceback="File x, line 1"),
        started_at=START + timedelta(minutes=job.seed),
        finished_at=START + timedelta(minutes=job.seed + minutes),
        provenance={
            "git": {"commit": "abc123", "dirty": False},
            "modules": {"kdbench.task": modules},
            "packages": {"torch": "2.0"},
            **({"gate": list(gate)} if gate else {}),
        },
    )


def put(
    results: Path,
    outcomes: Outcome | Iterable[Outcome],
    *,
    curve: Sequence[Mapping[str, float]] = (),
    examples: Mapping[str, np.ndarray] | None = None,
    log: str = "",
) -> list[Outcome]:
    """Write outcomes into the spool, each with the same curve, examples and log."""
    written = [outcomes] if isinstance(outcomes, Outcome) else list(outcomes)
    for outcome in written:
        folder = spool.job_folder(results, outcome.id)
        folder.mkdir(parents=True, exist_ok=True)
        if curve:
            (folder / spool.CURVE).write_text("".join(json.dumps(dict(row)) + "\n" for row in curve))
        if examples:
            np.savez(folder / spool.EXAMPLES, **examples)
        if log:
            (folder / spool.LOG).write_text(log)
        spool.write_outcome(folder, outcome)
    return written


def grid(
    scores: Mapping[str, Sequence[float | None]],
    *,
    task: str = "vision/toy",
    spec: Mapping[str, Any] | None = None,
    suite: str = "toy",
    **changes: Any,
) -> list[Outcome]:
    """Outcomes of methods over seeds 0, 1, ...; None is a failed job."""
    spec = spec if spec is not None else make_spec(task)
    return [
        make_outcome(
            make_job(method, seed, task=task, spec=spec, suite=suite),
            score,
            status="ok" if score is not None else "failed",
            **changes,
        )
        for method, row in scores.items()
        for seed, score in enumerate(row)
    ]
