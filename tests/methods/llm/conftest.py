"""One job of a method on a smoke task, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdbench.job import Job, Outcome
from kdbench.registry import Registry, discover
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


@pytest.fixture
def run(registry: Registry, tmp_path: Path) -> Callable[..., Result]:
    """``run(slug, task, seed=0, overrides={}, **params)``; fails unless the job succeeds."""
    count = iter(range(100))

    def job(slug: str, task: str, seed: int = 0, overrides: Mapping[str, Any] | None = None, **params: Any) -> Result:
        method, spec = registry.method(f"llm/{slug}"), registry.task(f"llm/{task}", "smoke", overrides)
        folder = tmp_path / f"job{next(count)}"
        folder.mkdir()
        outcome = run_job(
            Job(
                method=method.key,
                method_digest=method.digest,
                params=method.canonical(params),
                task=spec.name,
                spec=spec.identity(),
                seed=seed,
                track_version=registry.tracks["llm"].version,
                method_file=method.path,
                module=method.module,
            ),
            folder,
        )
        assert outcome.status == "ok", outcome.error
        curve = folder / "curve.jsonl"
        rows = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
        return Result(outcome, rows)

    return job
