"""The DuckDB store: filled from the spool, read by everyone, rebuilt at any time.

One private file, ``<results>/store/kdbench.duckdb``, is written under a file lock and closed after each batch. What
others read is ``<results>/kdbench.duckdb``, a copy that appears by one rename: readers never meet a lock and always
find a whole database. Neither file holds anything that is not in the spool.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from kdbench.errors import Problem, UsageError
from kdbench.hookspecs import hookimpl
from kdbench.job import Job, Outcome, Run, utcnow
from kdbench.store import membership, schema, spool

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

T = TypeVar("T")

PUBLISHED = "kdbench.duckdb"
"""In the results folder: what others read."""
LOCK_WAIT = 20.0
"""Seconds that a reading command waits for a batch that is being written; then it reads the last published state."""


def published_path(results: Path) -> Path:
    """The database that others read."""
    return results / PUBLISHED


def private_folder(results: Path) -> Path:
    """Where the stores keep what nobody else should open."""
    return results / "store"


def writer_path(results: Path) -> Path:
    """The database that is written; opened only under :func:`writing`."""
    return private_folder(results) / PUBLISHED


def state_of(path: Path) -> int:
    """Modification time of a database, in nanoseconds; what is made of it gets the same.

    So that whether something is of this state needs no clock, which may have been set meanwhile.
    """
    return path.stat().st_mtime_ns


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(results: Path, wait: float = -1) -> Iterator[None]:
    """Hold the store's lock. Raises ``filelock.Timeout`` after ``wait`` seconds (negative: never)."""
    private_folder(results).mkdir(parents=True, exist_ok=True)
    with FileLock(private_folder(results) / ".lock", timeout=wait):
        yield


def sync(
    results: Path, *, ids: Sequence[str] | None = None, problems: list[Problem] | None = None, wait: float = -1
) -> int:
    """Ingest outcomes that are new or were replaced, remove those that are gone, publish; returns how many were read.

    ``ids``: look at these jobs alone. Damaged outcomes are added to ``problems``, or logged where it is None. A
    damaged store is moved aside and made anew. Raises ``filelock.Timeout`` and ``OSError``.
    """
    with writing(results, wait):
        return _sync(results, ids, problems)


def _sync(results: Path, ids: Sequence[str] | None, problems: list[Problem] | None) -> int:
    import duckdb

    path = writer_path(results)
    done = None
    if path.exists():
        try:
            done = _ingest(path, results, ids, problems)
        except duckdb.Error as error:
            _refuse_healing(error, path)
            _move_aside(path, str(error))
        else:
            if done is None:
                _discard(path)
    count, changed = done or _made(path, results, problems)
    published = published_path(results)
    if changed or not published.exists() or state_of(published) != state_of(path):
        _publish(path, published)
    return count


def _made(path: Path, results: Path, problems: list[Problem] | None) -> tuple[int, bool]:
    """Make the store with all outcomes; returns as :func:`_ingest`."""
    import duckdb

    from kdbench.store import ingest

    try:
        with duckdb.connect(str(path)) as con:
            ingest.create(con)
        done = _ingest(path, results, None, problems)
    except duckdb.Error as error:
        _discard(path)
        _refuse_healing(error, path)
        raise
    assert done is not None
    return done[0], True


def _ingest(
    path: Path, results: Path, ids: Sequence[str] | None, problems: list[Problem] | None
) -> tuple[int, bool] | None:
    """Number of outcomes read, and whether anything changed; None where the store has another version's form."""
    import duckdb

    from kdbench.store import ingest

    with duckdb.connect(str(path)) as con:
        if ingest.version_of(con) != schema.VERSION:
            return None
        known = ingest.known_stamps(con)
        found = spool.stamps(results, ids)
        looked_at = known if ids is None else set(ids) & known.keys()
        gone = [id for id in looked_at if id not in found]
        fresh = {id: stamp for id, stamp in found.items() if known.get(id) != spool.stamp_text(stamp)}
        count = ingest.replace_jobs(con, results, fresh, gone, problems)
        members = ingest.spool_members(results, problems)
        moved = members != ingest.known_members(con)
        if moved:
            ingest.replace_members(con, members)
        changed = bool(count or gone or moved or fresh.keys() & known.keys())
        if changed:
            con.execute("CHECKPOINT")
    return count, changed


def rebuild(results: Path, *, problems: list[Problem] | None = None) -> int:
    """Make the store anew from the spool and publish it; returns the number of outcomes that it holds.

    Readers see the old state until the new one is whole.
    """
    with writing(results):
        _discard(writer_path(results))
        return _sync(results, None, problems)


def _discard(path: Path) -> None:
    _wal(path).unlink(missing_ok=True)  # first: it must never meet another database
    path.unlink(missing_ok=True)


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _publish(source: Path, target: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(source, name)
        os.chmod(name, 0o644)
        os.utime(name, ns=(state_of(source), state_of(source)))
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _move_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.damaged-{utcnow():%Y%m%dT%H%M%S%f}")
    _wal(path).unlink(missing_ok=True)
    path.rename(aside)
    first = reason.strip().splitlines()[0] if reason.strip() else "unknown damage"
    log.warning("%s is damaged (%s): moved to %s and made anew from the spool", path, first, aside.name)


def _refuse_healing(error: Exception, path: Path) -> None:
    """Only damage is healed: a database that another program holds, or that may not be read, is a matter for people.

    So is a full disk, for which this raises the ``OSError`` that Python's own files do.
    """
    text = str(error)
    if os.strerror(errno.ENOSPC) in text:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    if "Could not set lock" in text or "Conflicting lock" in text:
        raise UsageError(
            "is open in another program", place=str(path), hint=f"close it there; {PUBLISHED} of the results is to read"
        ) from error
    if "Permission denied" in text:
        raise UsageError(text.splitlines()[0], place=str(path)) from error


# --- reading ----------------------------------------------------------------------------------------------------------

OPEN: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "max_temp_directory_size": "0KB",
    "memory_limit": "2GB",
    "lock_configuration": True,
}
"""Of every connection that reads: no files, no extensions, no objects of the calling program, and no way back."""


def connect(results: Path) -> duckdb.DuckDBPyConnection:
    """A read-only connection to the published snapshot as it is. Raises ``UsageError`` where there is none."""
    import duckdb

    path = published_path(results)
    if not path.exists():
        raise UsageError("has no DuckDB store yet", place=str(results), hint="kdbench rebuild makes it from the spool")
    return duckdb.connect(str(path), read_only=True, config=dict(OPEN))


def query(
    results: Path,
    work: Callable[[duckdb.DuckDBPyConnection], T],
    problems: list[Problem] | None = None,
    *,
    refresh: bool = True,
) -> T:
    """``work(connection)`` on the state of the spool.

    The store is brought up to date first; without ``refresh`` only where nothing is published, which is for the end
    of a run, whose stores have just been. Where the results cannot be written (a read-only disk), what is published
    is read, and where nothing is, a temporary store is made. A damaged snapshot is moved aside and made anew.
    Raises ``UsageError`` for a folder without any finished job.
    """
    import duckdb

    require_results(results)
    try:
        if refresh or not published_path(results).exists():
            _refresh(results, problems)
    except OSError as error:
        if not published_path(results).exists():
            return _on_temporary(results, work, problems)
        age = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(published_path(results).stat().st_mtime))
        log.warning("%s cannot be written (%s): reading the state of %s", results, error.strerror or error, age)
    try:
        with connect(results) as con:
            return work(con)
    except duckdb.Error as error:
        innocent = isinstance(error, duckdb.ParserException | duckdb.InterruptException | duckdb.OutOfMemoryException)
        reason = None if innocent else damage(published_path(results))
        if reason is None:
            raise
        _refuse_healing(error, published_path(results))
        _move_aside(published_path(results), reason)
    rebuild(results, problems=problems)
    with connect(results) as con:
        return work(con)


def require_results(results: Path) -> None:
    """Raise ``UsageError``, with the command to run, for a folder without any finished job."""
    if not any((folder / spool.OUTCOME).exists() for folder in spool.iter_folders(results)):
        what = "holds no results yet" if results.is_dir() else "does not exist, so there are no results"
        raise UsageError(what, place=str(results), hint="run a suite first: kdbench run quickstart")


def _refresh(results: Path, problems: list[Problem] | None) -> None:
    try:
        sync(results, problems=problems, wait=LOCK_WAIT)
    except Timeout:
        if not published_path(results).exists():
            raise UsageError(
                f"its store is being written for more than {LOCK_WAIT:.0f} s", place=str(results), hint="try again"
            ) from None
        log.warning("%s is being written: reading the last published state", published_path(results))


def _on_temporary(results: Path, work: Callable[[duckdb.DuckDBPyConnection], T], problems: list[Problem] | None) -> T:
    import duckdb

    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        path = Path(folder) / PUBLISHED
        _made(path, results, problems)
        with duckdb.connect(str(path), read_only=True, config=dict(OPEN)) as con:
            return work(con)


def damage(path: Path) -> str | None:
    """What is wrong with a published store, found by reading all of it; None for a whole one."""
    import duckdb

    from kdbench.store import ingest

    try:
        with duckdb.connect(str(path), read_only=True, config=dict(OPEN)) as con:
            if ingest.version_of(con) != schema.VERSION:
                return "its form is of another version of kdbench"
            for table, columns in schema.TABLES.items():
                everything = ", ".join(f'max("{column}")' for column in columns)
                con.execute(f"SELECT {everything} FROM store.{table}").fetchall()
    except duckdb.Error as error:
        return str(error)
    return None


# --- during a run -----------------------------------------------------------------------------------------------------


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
        """Ingest what is left. Raises what went wrong in the thread."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        sync(self.results)

    def _follow(self) -> None:
        pause = self.PAUSE
        while not self._stop.wait(pause):
            with self._guard:
                batch, self._pending = self._pending, []
            if not batch:
                continue
            started = time.monotonic()
            try:
                sync(self.results, ids=batch)
            except Exception as error:  # noqa: BLE001  raised again by finish, in the thread of the hooks
                self.failure = error
                return
            pause = max(self.PAUSE, (time.monotonic() - started) / self.SHARE)


class DuckStore:
    """Fills the store while a run goes on: hook implementations like any extension's."""

    def __init__(self) -> None:
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
        else:
            sync(run.results)
