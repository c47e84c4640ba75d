"""One job of a vision method on a smoke task, in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from kdbench.job import Job, Outcome
from kdbench.registry import Registry, discover
from kdbench.worker import run_job


@cache
def registry() -> Registry:
    return discover()


@pytest.fixture
def smoke(tmp_path: Path) -> Callable[..., Outcome]:
    """``smoke(slug, task, params, overrides)`` runs one job; its folder is ``tmp_path / slug``."""

    def run(slug: str, task: str, params: dict | None = None, overrides: dict | None = None, **more) -> Outcome:
        method = registry().method(slug, "vision")
        spec = registry().task(f"vision/{task}", "smoke", overrides)
        job = Job(
            method=method.key,
            method_digest=method.digest,
            params=method.canonical(params or {}),
            task=spec.name,
            spec=spec.identity(),
            seed=0,
            track_version=1,
            method_file=method.path,
            module=method.module,
        )
        folder = tmp_path / slug
        folder.mkdir()
        return run_job(job, folder, **more)

    return run
