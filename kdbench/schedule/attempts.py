"""Folders in which work runs, and how they become jobs of the spool.

``<results>/running/<id>`` is the folder of a job that runs and ``<results>/running/<id>.lock`` says that it does: the
lock is held by the coordinator, so that two runs never do the same job, and is free again when the coordinator dies.
A finished job moves to ``<results>/jobs/<id>`` in one rename; where an earlier outcome is replaced, its
``outcome.json`` is replaced last. An attempt that is interrupted leaves nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import UsageError
from kdbench.job import Outcome
from kdbench.store import spool

RUNNING = "running"


def running_folder(results: Path) -> Path:
    """Where the folders of the jobs are that run."""
    return results / RUNNING


def require_writable(results: Path) -> None:
    """Make the folders of the spool. Raises ``UsageError`` where that, or writing a file there, does not work."""
    try:
        for folder in (spool.jobs_folder(results), running_folder(results)):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.write_bytes(b"kdbench")  # a full disk takes an empty file
            probe.unlink()
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
        """The job's folder, empty: what an attempt that was killed left there is removed."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        return self.folder

    def publish(self) -> Path:
        """Move the folder, whose ``outcome.json`` is written, into the spool; returns where it is now.

        The move itself reaches the disk within seconds, or with :func:`settle`: a power cut before that undoes it,
        and the job runs again.
        """
        target = spool.job_folder(self.results, self.id)
        try:
            os.rename(self.folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._replace(target)
        return target

    def _replace(self, target: Path) -> None:
        """Exchange the content of a finished job, the outcome last: until then the earlier one holds."""
        new = {entry.name for entry in self.folder.iterdir()}
        for entry in target.iterdir():
            if entry.name != spool.OUTCOME and (entry.name not in new or entry.is_dir()):
                _remove(entry)
        for name in sorted(new - {spool.OUTCOME}):
            os.replace(self.folder / name, target / name)
        os.replace(self.folder / spool.OUTCOME, target / spool.OUTCOME)
        spool.sync_folder(target)
        self.folder.rmdir()

    def release(self) -> None:
        """Remove what is left in the folder and let others have the job; may be called again."""
        if not self._lock.is_locked:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        # removed while it is held: whoever waits for it finds a file without a name and opens it anew
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def claim(results: Path, id: str) -> Claim | None:
    """The right to run a job, or None where another run has it."""
    lock = FileLock(running_folder(results) / f"{id}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return Claim(results, id, lock)


def sweep(results: Path) -> int:
    """Remove what runs that were killed left behind; returns how many attempts. Others' running jobs are left alone."""
    removed = 0
    for path in sorted(running_folder(results).iterdir()):
        id = path.name.removesuffix(".lock")
        if id.startswith(".") or not path.exists():
            continue
        mine = claim(results, id)
        if mine is not None:
            removed += mine.folder.exists()
            mine.release()
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
