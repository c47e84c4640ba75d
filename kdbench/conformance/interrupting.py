"""Jobs that are interrupted as by SIGKILL, in this process, at a chosen checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kdbench.job import Job, Outcome
from kdbench.registry import Registry
from kdbench.store import spool
from kdbench.training.checkpoint import Checkpoints
from kdbench.worker import run_job


class Interrupted(KeyboardInterrupt):
    """Stands for the end of a process: nothing of the job is written any more."""


@contextmanager
def interrupting(after: int | None = None) -> Iterator[list[int]]:
    """Counts the checkpoints that are written, one item each; the one that comes after ``after`` ends the job."""
    written: list[int] = []
    real = Checkpoints._write

    def write(self: Checkpoints, fit: Any, record: Any) -> None:
        if after is not None and len(written) >= after:
            raise Interrupted
        real(self, fit, record)
        written.append(len(written))

    with patch.object(Checkpoints, "_write", write):
        yield written


def run_interrupted(job: Job, folder: Path, after: int, **options: Any) -> int | None:
    """Run the job, with a checkpoint at every step, until it is interrupted; what the next attempt finds is left.

    Returns None for that, and the number of checkpoints where the job ended before.
    """
    job = job.model_copy(update={"checkpoint_every": 0.0})
    with interrupting(after) as written:
        try:
            run_job(job, folder, **options)
        except Interrupted:
            spool.empty(folder, keep=(spool.CHECKPOINT,))
            return None
    return len(written)


def run_in_two(job: Job, folder: Path, after: int, *, registry: Registry | None = None) -> tuple[Outcome, int]:
    """The outcome of a job that was interrupted and went on, and after how many checkpoints it was interrupted.

    Where it writes no more than ``after`` of them, it is interrupted halfway; 0 says that there is no checkpoint
    after which it could be.
    """
    total = run_interrupted(job, folder, after, registry=registry)
    if total is not None:
        after = total // 2
        spool.empty(folder)
        if after:
            assert run_interrupted(job, folder, after, registry=registry) is None
    return run_job(job, folder, registry=registry), after


def curve(folder: Path) -> str:
    """The curve as it is written."""
    path = folder / spool.CURVE
    return path.read_text() if path.exists() else ""
