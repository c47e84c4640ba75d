"""The DuckDB store during a run: hook implementations like any extension's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.hookspecs import hookimpl
from kdbench.job import Job, Outcome, Run
from kdbench.store import duck, membership

if TYPE_CHECKING:
    from kdbench.registry import Registry


class _Follower:
    """A thread that ingests finished jobs in batches, away from the scheduler's loop."""

    PAUSE = 60.0
    """Seconds between batches at least, since the first one imports a second's worth of libraries. Whoever asks
    kdbench for results brings the store up to date first anyway."""
    SHARE = 0.02
    """Of the time that goes into batches at most: a batch copies the whole store, which grows with the run."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.failure: Exception | None = None
        self._pending: list[str] = []
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="kdbench-duckdb", daemon=True)
        self._thread.start()

    def add(self, id: str) -> None:
        with self._guard:
            self._pending.append(id)

    def finish(self) -> None:
        """Stop. Raises what went wrong in the thread."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _follow(self) -> None:
        pause = self.PAUSE
        while not self._stop.wait(pause):
            with self._guard:
                batch, self._pending = self._pending, []
            if not batch:
                continue
            started = time.monotonic()
            try:
                duck.sync(self.results, ids=batch)
            except Exception as error:  # noqa: BLE001  raised again by finish, in the thread of the hooks
                self.failure = error
                return
            pause = max(self.PAUSE, (time.monotonic() - started) / self.SHARE)


class DuckStore:
    """Fills the store while a run goes on."""

    def __init__(self, registry: Registry | None = None) -> None:
        """``registry``: whose cards and claims the store shows; default: of everything that is installed."""
        self.registry = registry
        self._followers: dict[str, _Follower] = {}

    @hookimpl
    def kdbench_run_started(self, run: Run) -> None:
        """Note which jobs the suite has, and follow the run if there is something to do."""
        for suite, ids in run.suites.items():
            membership.add(run.results, suite, ids, run.tracking)
        if run.todo:
            self._followers[run.id] = _Follower(run.results)

    @hookimpl
    def kdbench_job_finished(self, run: Run, job: Job, outcome: Outcome) -> None:
        """Put the job into the next batch."""
        if run.id in self._followers:
            self._followers[run.id].add(outcome.id)

    @hookimpl
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        """Ingest the rest, so that what is printed next is complete; of a run that was killed here, too."""
        follower = self._followers.pop(run.id, None)
        if follower is not None:
            follower.finish()
        if not duck.is_fresh(run.results, self.registry):
            duck.sync(run.results, registry=self.registry)
