"""Toy jobs that are given to an executor one by one, without a loop."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.job import Job, Outcome
from kdbench.schedule.executor import Context, Ended, Event, Executor, Started, Work
from kdbench.schedule.packing import Slot
from kdbench.schedule.session import plan_run
from kdbench.store import spool
from tests.toytrack import EXTENSION, write_method

PATIENCE = 120.0
"""Seconds that anything may take on a busy machine."""


@dataclass
class Result:
    """What a job came to."""

    ended: Ended
    events: list[Event]
    """Everything that was told of it."""
    folder: Path
    outcome: Outcome | None

    @property
    def pid(self) -> int:
        return next(event.pid for event in self.events if isinstance(event, Started))

    @property
    def log(self) -> str:
        return (self.folder / spool.LOG).read_text()

    def fact(self, name: str = "fact") -> str:
        """An artifact that the method wrote."""
        return (self.folder / "artifacts" / name).read_text()


class Jobs:
    """Jobs of a suite of toy methods (slug to body), and the folders in which they run."""

    def __init__(self, folder: Path, methods: dict[str, str], *, seeds: int = 3) -> None:
        self.folder = folder
        files = [write_method(folder / "methods", slug, body) for slug, body in methods.items()]
        self.plugins = [EXTENSION, *files]
        suite = {"name": "s", "scale": "smoke", "tasks": ["toy/bare"], "methods": list(methods), "seeds": seeds}
        planned = plan_run(suite, results=folder / "results", plugins=self.plugins, tracking=False, require_ready=False)
        self._left: dict[str, list[Job]] = {}
        for job in planned.run.jobs:
            self._left.setdefault(job.method.partition("/")[2], []).append(job)
        self._last: dict[str, Job] = {}
        self._given: dict[str, Path] = {}
        self._events: dict[str, list[Event]] = {}

    def context(self, **more: Any) -> Context:
        return Context(tracks=["toy"], plugins=self.plugins, **more)

    def submit(self, executor: Executor, slug: str, *, again: bool = False, **more: Any) -> str:
        """Start the method's next job, or its last one ``again``; returns its id. ``more`` are fields of ``Work``."""
        if not again:
            self._last[slug] = self._left[slug].pop(0)
        job = self._last[slug]
        folder = Path(tempfile.mkdtemp(prefix=job.id, dir=self.folder))
        self._given[job.id], self._events[job.id] = folder, []
        fields: dict[str, Any] = {"kind": "job", "folder": folder, "slot": Slot(1.0), "timeout": PATIENCE, **more}
        executor.submit(Work(id=job.id, job=job, **fields))
        return job.id

    def until(self, executor: Executor, id: str, kind: type[Event]) -> Event:
        """Wait for an event of a job. Fails where it does not come."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = [event for event in self._events[id] if isinstance(event, kind)]
            if found:
                return found[0]
            for event in executor.poll(0.1):
                self._events.setdefault(getattr(event, "id", ""), []).append(event)
        raise AssertionError(f"no {kind.__name__} of {id}, but {self._events[id]}")

    def wait(self, executor: Executor, id: str) -> Result:
        """Wait until a job's process is gone, and look at what it left."""
        ended = self.until(executor, id, Ended)
        assert isinstance(ended, Ended)
        folder = self._given[id]
        return Result(ended, self._events[id], folder, spool.read_outcome(folder))

    def run(self, executor: Executor, slug: str, **more: Any) -> Result:
        """Start the method's next job and wait for its end."""
        return self.wait(executor, self.submit(executor, slug, **more))
