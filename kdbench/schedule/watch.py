"""Writes the state of a run where other processes can see it (``kdbench.store.runs`` says where and reads it)."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from kdbench.errors import KdbenchError, plain
from kdbench.hookspecs import hookimpl
from kdbench.job import Job, Outcome, Place, Run, utcnow
from kdbench.schedule.tally import Running, RunTally, Tally, Workers, title
from kdbench.store import runs

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two states."""
LOCK_WAIT = 10.0
"""Seconds that the lock of a new run may take: those who look at it hold it for a moment."""


class Watch:
    """Event hooks that note what happens, and a thread that writes it down; one object serves one run.

    Used as a context manager around the run: however the block ends, the last state says so and the lock is free.
    A disk that is full leaves an old state and a warning; the run goes on.

        with Watch(run) as watch:
            manager.register(watch)
            ...
            watch.exit_code = result.exit_code
    """

    def __init__(
        self,
        run: Run,
        expected: Mapping[str, float | None] | None = None,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``expected``: seconds that jobs take by id, as past outcomes tell."""
        self.run = run
        self.folder = runs.run_folder(run.results, run.id)
        self.exit_code: int | None = None
        """Of the run; set before the block ends."""
        self._host = socket.gethostname()
        self._interval = interval
        self._clock = clock
        self._tally = RunTally(run, expected)
        self._workers = Workers(clock)
        self._began = clock()
        self._ended: list[str] = []
        self._guard = threading.Lock()
        """Of all that the hooks change and the thread reads."""
        self._stop = threading.Event()
        self._held = ExitStack()
        self._thread: threading.Thread | None = None
        self._warned = False

    # --- what happens -------------------------------------------------------------------------------------------------

    @hookimpl(tryfirst=True)
    def kdbench_run_started(self, run: Run) -> None:
        if not run.todo:
            return  # there is nothing to watch, and the last run that did something stays the last one
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(runs.lock_path(run.results, run.id), timeout=LOCK_WAIT, thread_local=False)
        self._held.enter_context(lock)
        # removed while it is held, so that locks of runs that have ended do not pile up
        self._held.callback(Path(lock.lock_file).unlink, missing_ok=True)
        todo = set(run.todo)
        lines = [f"{job.id} {plain(title(job))}\n" for job in run.jobs if job.id in todo]
        (self.folder / runs.JOBS).write_text("".join(lines), encoding="utf-8")
        self._write()
        self._thread = threading.Thread(target=self._write_on, name="kdbench-watch", daemon=True)
        self._thread.start()

    @hookimpl
    def kdbench_job_started(self, run: Run, job: Job, place: Place) -> None:
        with self._guard:
            self._workers.started(job, place)

    @hookimpl
    def kdbench_job_progress(
        self, run: Run, job: Job, step: int, total: int | None, metrics: Mapping[str, float]
    ) -> None:
        with self._guard:
            self._workers.progress(job, step, total, metrics)

    @hookimpl
    def kdbench_job_usage(self, run: Run, job: Job, usage: Mapping[str, float]) -> None:
        with self._guard:
            self._workers.usage(job, usage)

    @hookimpl
    def kdbench_job_stopped(self, run: Run, job: Job) -> None:
        with self._guard:
            self._workers.ended(job)

    @hookimpl
    def kdbench_job_finished(self, run: Run, job: Job, outcome: Outcome) -> None:
        with self._guard:
            self._workers.ended(job)
            self._tally.add(job, outcome)
            self._ended.append(f"{job.id} {outcome.status}\n")

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last state and let go of the lock."""
        with self._held:
            if self._thread is None:
                return  # the run never began
            self._stop.set()
            self._thread.join()
            self._workers.running.clear()
            self._write(finished=utcnow(), error=_reason(error))

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write_on(self) -> None:
        """The thread: a state at every interval, also when nothing happens, so that a run that hangs is seen."""
        while not self._stop.wait(self._interval):
            self._write()

    def _write(self, finished: datetime | None = None, error: str = "") -> None:
        with self._guard:
            state = self._state(finished, error)
            ended, self._ended = self._ended, []
        try:
            if ended:
                with (self.folder / runs.ENDED).open("a", encoding="utf-8") as file:
                    file.write("".join(ended))
                ended = []
            # not forced onto the disk: after a power cut nobody needs it
            temporary = self.folder / f".{runs.STATE}"
            temporary.write_text(state.model_dump_json(), encoding="utf-8")
            os.replace(temporary, self.folder / runs.STATE)
        except OSError as problem:
            if not self._warned:
                log.warning("kdbench status cannot be told about this run: %s", problem)
            self._warned = True
            with self._guard:
                self._ended[:0] = ended

    def _state(self, finished: datetime | None, error: str) -> runs.RunState:
        now, updated, run, tally = self._clock(), utcnow(), self.run, self._tally
        running = list(self._workers.running.values())
        etas = tally.etas(running, now)
        return runs.RunState(
            id=run.id,
            host=self._host,
            pid=os.getpid(),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            slots=run.workers,
            started=run.started_at,
            updated=updated,
            seconds=now - self._began,
            finished=finished,
            exit_code=self.exit_code,
            error=error,
            total=_suite_state("", len(run.jobs), tally.total, len(running), tally.eta(running, now)),
            suites=[
                _suite_state(
                    name, len(run.suites[name]), own, sum(name in tally.suites_of(r.job) for r in running), etas[name]
                )
                for name, own in tally.suites.items()
            ],
            workers=[self._worker(one, now, updated) for one in running],
        )

    def _worker(self, running: Running, now: float, updated: datetime) -> runs.Worker:
        job, place, seconds = running.job, running.place, now - running.since
        return runs.Worker(
            job=job.id,
            title=title(job),
            suites=list(self._tally.suites_of(job)),
            task=job.task,
            scale=job.scale,
            method=job.method,
            label=job.label,
            seed=job.seed,
            attempt=place.attempt if place else 1,
            step=running.step,
            total=running.total,
            rate=running.rate,
            metrics=dict(running.metrics),
            host=place.host if place and place.host else self._host,
            pid=place.pid if place else 0,
            devices=list(place.devices) if place else [],
            rss_bytes=running.usage.get("rss_bytes"),
            gpu_bytes=running.usage.get("gpu_bytes"),
            since=updated - timedelta(seconds=seconds),
            seconds=seconds,
        )


def _suite_state(name: str, jobs: int, tally: Tally, running: int, eta: float | None) -> runs.SuiteState:
    return runs.SuiteState(
        name=name,
        jobs=jobs,
        before=jobs - tally.n_left - tally.n_done - tally.n_cancelled,
        done=tally.n_done,
        failed=tally.n_failed,
        cancelled=tally.n_cancelled,
        running=running,
        left=tally.n_left,
        eta_seconds=eta,
    )


def _reason(error: BaseException | None) -> str:
    if error is None or isinstance(error, KdbenchError):
        return str(error or "")
    return f"{type(error).__name__}: {error}"
