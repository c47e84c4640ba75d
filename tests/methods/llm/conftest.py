"""One job of a method on a smoke task, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdbench.conformance.interrupting import curve, run_in_two
from kdbench.job import Job, Outcome
from kdbench.registry import Registry, discover
from kdbench.schedule.verify import meters
from kdbench.worker import run_job


@dataclass
class Result:
    outcome: Outcome
    curve: list[dict[str, float]]

    def column(self, name: str) -> list[float]:
        """Values of one name of the curve, in order."""
        return [row[name] for row in self.curve if name in row]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return discover()


def job_of(registry: Registry, slug: str, task: str, seed: int, overrides: Any, params: Mapping[str, Any]) -> Job:
    """A job of a method of the track (or of another one: ``decoding/kd_fkl``) on a smoke task."""
    track, slug = slug.split("/") if "/" in slug else ("llm", slug)
    method, spec = registry.method(f"{track}/{slug}"), registry.task(f"{track}/{task}", "smoke", overrides)
    return Job(
        method=method.key,
        method_digest=method.digest,
        params=method.canonical(params),
        task=spec.name,
        spec=spec.identity(),
        seed=seed,
        track_version=registry.tracks[track].version,
        method_file=method.path,
        module=method.module,
    )


@pytest.fixture
def interrupted(registry: Registry, tmp_path: Path) -> Callable[..., tuple[Outcome, Outcome]]:
    """``interrupted(slug, task, after, overrides={}, **params)`` runs a job twice, once with a stop at step ``after``.

    Fails unless both end alike. Their folders are ``whole`` and ``again`` of ``tmp_path``.
    """

    def job(slug: str, task: str, after: int, overrides: Any = None, **params: Any) -> tuple[Outcome, Outcome]:
        made = job_of(registry, slug, task, 0, overrides, params).model_copy(update={"checkpoint_every": None})
        whole = run_job(made, tmp_path / "whole")
        assert whole.status == "ok", whole.error
        again, stopped = run_in_two(made.model_copy(update={"checkpoint_every": 600}), tmp_path / "again", after)
        assert stopped == after
        for outcome in (again, whole):
            outcome.metrics.pop("speedup", None)  # of a clock
        assert (again.metrics, again.extra, meters(again)) == (whole.metrics, whole.extra, meters(whole))
        assert curve(tmp_path / "again") == curve(tmp_path / "whole")
        return whole, again

    return job


@pytest.fixture
def run(registry: Registry, tmp_path: Path) -> Callable[..., Result]:
    """``run(slug, task, seed=0, overrides={}, **params)``; fails unless the job succeeds."""
    count = iter(range(100))

    def job(slug: str, task: str, seed: int = 0, overrides: Mapping[str, Any] | None = None, **params: Any) -> Result:
        folder = tmp_path / f"job{next(count)}"
        folder.mkdir()
        outcome = run_job(job_of(registry, slug, task, seed, overrides, params), folder)
        assert outcome.status == "ok", outcome.error
        file = folder / "curve.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return Result(outcome, rows)

    return job
