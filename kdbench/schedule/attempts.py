"""Folders in which work runs, and how they become jobs of the spool.

``<results>/running/<id>`` is the folder of a job that runs and ``<results>/running/<id>.lock`` says that it does: the
lock is held by the coordinator, so that two runs never do the same job, and is free again when the coordinator dies.
A finished job moves to ``<results>/jobs/<id>`` in one rename; where an earlier outcome is replaced, its
``outcome.json`` is replaced last. An attempt that is interrupted leaves its checkpoint, from which the next one goes
on, and nothing where it has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import UsageError
from kdbench.job import Outcome
from kdbench.store import runs, spool

RUNNING = "running"


def running_folder(results: Path) -> Path:
    """Where the folders of the jobs are that run."""
    return results / RUNNING


def require_writable(results: Path) -> None:
    """Make the folders of the spool. Raises ``UsageError`` where that, or writing a file there, does not work."""
    try:
        for folder in (spool.jobs_folder(results), running_folder(results)):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".probe"  # of one name, so that a run that was killed here leaves nothing for ever
            try:
                probe.write_bytes(b"kdbench")  # a full disk takes an empty file
            finally:
                probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"results cannot be written: {reason}", place=str(results), hint="choose with --results"
        ) from error


class Claim:
    """The right to run one job, until it is released."""

    def __init__(self, results: Path, id: str, lock: FileLock) -> None:
        self.results = results
        self.id = id
        self.folder = running_folder(results) / id
        self._lock = lock

    def clear(self) -> Path:
        """The job's folder, empty but for a checkpoint: what else an attempt that was killed left there is removed."""
        self.folder.mkdir(exist_ok=True)
        spool.empty(self.folder, keep=(spool.CHECKPOINT,))
        return self.folder

    def start_anew(self) -> None:
        """Remove the checkpoint, so that the next attempt does not go on from it."""
        shutil.rmtree(self.folder / spool.CHECKPOINT, ignore_errors=True)

    def publish(self) -> Path:
        """Move the folder, whose ``outcome.json`` is written, into the spool; returns where it is now.

        The move itself reaches the disk within seconds, or with :func:`settle`: a power cut before that undoes it,
        and the job runs again. The checkpoint of an interrupted job stays where it is, any other one is removed.
        """
        target = spool.job_folder(self.results, self.id)
        if spool.has_checkpoint(self.folder):
            if self._is_interrupted():
                target.mkdir(exist_ok=True)
                self._replace(target)
                return target
            self.start_anew()
        try:
            os.rename(self.folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._replace(target)
            self.folder.rmdir()
        return target

    def _is_interrupted(self) -> bool:
        outcome = outcome_in(self.folder)
        return outcome is not None and outcome.status == "interrupted"

    def _replace(self, target: Path) -> None:
        """Exchange the content of a finished job, the outcome last: until then the earlier one holds."""
        new = {entry.name for entry in self.folder.iterdir()} - {spool.CHECKPOINT}
        for entry in target.iterdir():
            if entry.name != spool.OUTCOME and (entry.name not in new or entry.is_dir()):
                spool.remove(entry)
        for name in sorted(new - {spool.OUTCOME}):
            os.replace(self.folder / name, target / name)
        # by way of jobs/: the time of that folder changes in one step with the outcome, so that stores see the news
        passage = target.with_name(f"{spool.TEMPORARY_PREFIX}{self.id}")
        os.replace(self.folder / spool.OUTCOME, passage)
        os.replace(passage, target / spool.OUTCOME)
        spool.sync_folder(target)

    def release(self) -> None:
        """Remove what is left in the folder and let others have the job; may be called again.

        A checkpoint stays, with the log, unless the job has a result meanwhile.
        """
        if not self._lock.is_locked:
            return
        if spool.has_checkpoint(self.folder) and not self._has_result():
            spool.empty(self.folder, keep=(spool.CHECKPOINT, spool.LOG))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        # removed while it is held: whoever waits for it finds a file without a name and opens it anew
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _has_result(self) -> bool:
        """Whether the job has an outcome other than that it was interrupted."""
        outcome = outcome_in(spool.job_folder(self.results, self.id))
        return outcome is not None and outcome.status != "interrupted"


def claim(results: Path, id: str) -> Claim | None:
    """The right to run a job, or None where another run has it or a process of a run that died is still at it."""
    lock = FileLock(running_folder(results) / f"{id}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    if runs.held(running_folder(results) / id):  # see occupying
        lock.release()
        return None
    return Claim(results, id, lock)


@contextmanager
def occupying(folder: Path) -> Iterator[None]:
    """Says that this process, and those that it forks, work in a job's folder: no run gets the job until they are gone.

    The coordinator's lock goes with the coordinator, but its jobs may outlive it for a moment. Raises
    ``BlockingIOError`` where another process works there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep(results: Path, anew: Container[str] = ()) -> int:
    """Remove what runs that were killed left behind; returns how many attempts. Others' running jobs are left alone.

    Checkpoints stay for the next attempt, but for those of the jobs in ``anew``.
    """
    removed = 0
    for path in sorted(running_folder(results).iterdir()):
        id = path.name.removesuffix(".lock")
        if id.startswith(".") or not path.exists():
            continue
        mine = claim(results, id)
        if mine is not None:
            existed = mine.folder.exists()
            if id in anew:
                mine.start_anew()
            mine.release()
            removed += existed and not mine.folder.exists()
    return removed


def settle(results: Path) -> None:
    """Put the names of all finished jobs on the disk."""
    spool.sync_folder(spool.jobs_folder(results))


def stamp(results: Path, id: str) -> spool.Stamp | None:
    """What tells whether a job's outcome was replaced; None where it has none."""
    return spool.stamps(results, [id]).get(id)


def outcome_in(folder: Path) -> Outcome | None:
    """The outcome that a job wrote before its process ended; None where there is no whole one."""
    try:
        return spool.read_outcome(folder)
    except UsageError:
        return None
