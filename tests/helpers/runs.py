"""Runs as event hooks see them, without running anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdbench.job import Job, Run


def make_run(
    results: Path,
    jobs: Sequence[Job],
    *,
    id: str = "20260102T030405-abcdef",
    suites: Mapping[str, Sequence[Job]] | None = None,
    todo: Sequence[Job] | None = None,
    workers: int = 2,
) -> Run:
    """A run of these jobs, by default all of them for one suite ``s``."""
    planned = {"s": jobs} if suites is None else suites
    return Run(
        id=id,
        suites={name: [job.id for job in of] for name, of in planned.items()},
        results=results,
        jobs=list(jobs),
        todo=[job.id for job in (jobs if todo is None else todo)],
        workers=workers,
    )


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return as soon as the condition holds; fails after a deadline that only a broken program misses."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
