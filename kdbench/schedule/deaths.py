"""Outcomes of jobs that could not write their own: those that were killed, and those whose teacher does not exist."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from kdbench.job import Failure, Job, Outcome, Status
from kdbench.schedule.executor import Ended
from kdbench.schedule.logs import last_lines
from kdbench.store import spool

_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "can't allocate memory")
"""What a program prints that ends because an allocation failed."""
_OUT_OF_GPU_MEMORY = ("OutOfMemoryError", "CUDA out of memory")
"""As above, of a device's memory."""


def reason_of(ended: Ended, folder: Path) -> tuple[Status, Failure]:
    """Why a process ended without an outcome."""
    log = folder / spool.LOG
    tail = last_lines(log)
    if ended.reason == "timeout":
        return "timeout", Failure(type="timeout", message=ended.message, traceback=tail)
    if ended.reason == "hung":
        return "timeout", Failure(type="hung", message=ended.message, traceback=tail)
    if ended.reason == "oom":
        return "oom", Failure(type="oom", message=ended.message, traceback=tail)
    if ended.reason == "cancelled":
        return "interrupted", Failure(type="cancelled", message="it was cancelled", traceback=tail)
    if ended.reason == "lost":
        return "crashed", Failure(type="lost", message=ended.message, traceback=tail)
    how = ended.signal or f"exit code {ended.code}"
    if any(words in tail for words in _OUT_OF_GPU_MEMORY):
        message = f"the memory of the GPU ran out and the process ended ({how})"
        return "oom", Failure(type="OutOfMemoryError", message=message, traceback=tail)
    if any(words in tail for words in _OUT_OF_MEMORY):
        return "oom", Failure(type="oom", message=f"an allocation failed and the process ended ({how})", traceback=tail)
    if ended.signal is not None:
        return "crashed", Failure(type=ended.signal, message=f"the process was ended by {ended.signal}", traceback=tail)
    message = f"the process ended with exit code {ended.code} before the job was done"
    said = tail.splitlines()[-1:]
    return "crashed", Failure(type="exit", message=": ".join([message, *said]), traceback=tail)


def outcome_of(
    job: Job, ended: Ended, folder: Path, *, started_at: datetime, attempt: int, provenance: dict[str, object]
) -> Outcome:
    """The outcome of a job whose process is gone."""
    status, error = reason_of(ended, folder)
    return Outcome(
        id=job.id,
        job=job,
        status=status,
        cost={"peak_rss_bytes": float(ended.peak_rss)} if ended.peak_rss else {},
        error=error,
        artifacts=spool.artifacts(folder),
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=ended.seconds),
        attempts=attempt,
        provenance=provenance,
    )


def without_teacher(
    job: Job, ended: Ended, folder: Path, *, started_at: datetime, attempt: int, provenance: dict[str, object]
) -> Outcome:
    """The outcome of a job whose teacher could not be made; ``folder`` is where that was tried."""
    status, error = reason_of(ended, folder)
    message = error.message
    if error.type == "exit":  # it raised: the exception is the last line that it printed
        status = "failed"
        message = (error.traceback.splitlines() or [message])[-1]
    return Outcome(
        id=job.id,
        job=job,
        status=status,
        error=Failure(
            type="teacher", message=f"the teacher could not be prepared: {message}", traceback=error.traceback
        ),
        started_at=started_at,
        finished_at=started_at,
        attempts=attempt,
        provenance=provenance,
    )
