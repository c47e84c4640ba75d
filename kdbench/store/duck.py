"""The DuckDB store: filled from the spool, read by everyone, rebuilt at any time.

One private file, ``<results>/store/kdbench.duckdb``, is written under a file lock and closed after each batch. What
others read is ``<results>/kdbench.duckdb``, a copy that appears by one rename: readers never meet a lock and always
find a whole database. Neither file holds anything that is not in the spool or on the cards of installed methods.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from kdbench.errors import Problem, UsageError
from kdbench.job import utcnow
from kdbench.store import fresh, known, schema, spool

if TYPE_CHECKING:
    import duckdb

    from kdbench.registry import Registry

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


class _Done(NamedTuple):
    """What bringing the store up to date came to."""

    read: int
    """Outcomes that were read."""
    changed: bool
    jobs: int
    """In the store."""
    cards: str
    """State of the cards that it shows."""


def sync(
    results: Path,
    *,
    ids: Sequence[str] | None = None,
    problems: list[Problem] | None = None,
    wait: float = -1,
    registry: Registry | None = None,
) -> int:
    """Ingest outcomes that are new or were replaced, remove those that are gone, publish; returns how many were read.

    ``ids``: look at these jobs alone. ``registry``: whose cards and claims the store shows from now on; default: of
    everything that is installed, where anything changed. Damaged outcomes are added to ``problems``, or logged where
    it is None. A damaged store is moved aside and made anew. Raises ``filelock.Timeout`` and ``OSError``.
    """
    with writing(results, wait):
        return _sync(results, ids, problems, registry)


def _sync(
    results: Path, ids: Sequence[str] | None, problems: list[Problem] | None, registry: Registry | None = None
) -> int:
    path, published, private = writer_path(results), published_path(results), private_folder(results)
    look = fresh.Look.now(results, private) if ids is None else None
    found: list[Problem] = []
    try:
        done = _up_to_date(path, results, ids, found, registry)
    finally:
        if found:
            spool.report(UsageError(found), problems)
    if done.changed or not published.exists() or state_of(published) != state_of(path):
        _publish(path, published)
    if found:
        fresh.forget(private)  # whoever asks next is told, too
    elif look is not None:
        fresh.note(look, private, published, done.cards, done.jobs)
    return done.read


def _up_to_date(
    path: Path, results: Path, ids: Sequence[str] | None, problems: list[Problem], registry: Registry | None
) -> _Done:
    import duckdb

    if path.exists():
        try:
            done = _ingest(path, results, ids, problems, registry)
        except duckdb.Error as error:
            _refuse_healing(error, path)
            _move_aside(path, str(error))
        else:
            if done is not None:
                return done
            _discard(path)
    return _made(path, results, problems, registry)


def _made(path: Path, results: Path, problems: list[Problem] | None, registry: Registry | None = None) -> _Done:
    """Make the store with all outcomes."""
    import duckdb

    from kdbench.store import ingest

    try:
        with duckdb.connect(str(path)) as con:
            ingest.create(con)
        done = _ingest(path, results, None, problems, registry)
    except duckdb.Error as error:
        _discard(path)
        _refuse_healing(error, path)
        raise
    assert done is not None
    return done._replace(changed=True)


def _ingest(
    path: Path,
    results: Path,
    ids: Sequence[str] | None,
    problems: list[Problem] | None,
    registry: Registry | None,
) -> _Done | None:
    """None where the store has another version's form."""
    import duckdb

    from kdbench.store import ingest

    with duckdb.connect(str(path)) as con:
        if ingest.version_of(con) != schema.VERSION:
            return None
        before = ingest.known_stamps(con)
        found = spool.stamps(results, ids)
        looked_at = before if ids is None else set(ids) & before.keys()
        gone = [id for id in looked_at if id not in found]
        new = {id: stamp for id, stamp in found.items() if before.get(id) != spool.stamp_text(stamp)}
        count = ingest.replace_jobs(con, results, new, gone, problems)
        members = ingest.spool_members(results, problems)
        moved = members != ingest.known_members(con)
        if moved:
            ingest.replace_members(con, members)
        changed = bool(count or gone or moved or new.keys() & before.keys())
        cards = known.shown(con)
        shown = _show_cards(con, changed, whole=ids is None, registry=registry, problems=problems)
        if changed or shown != cards:
            con.execute("CHECKPOINT")
        jobs = con.execute("SELECT count(*) FROM store.jobs").fetchone()
    return _Done(count, changed or shown != cards, jobs[0] if jobs else 0, shown)


def _show_cards(
    con: duckdb.DuckDBPyConnection,
    changed: bool,
    *,
    whole: bool,
    registry: Registry | None,
    problems: list[Problem] | None,
) -> str:
    """Bring the tables of cards and claims up to date; returns the state that they show.

    A look at single jobs (not ``whole``), as there are many during a run, leaves that to the next one at all of them.
    """
    before = known.shown(con)
    if not whole:
        if changed and before:
            known.mark(con, "")
        return "" if changed else before
    if registry is None:
        if before and not changed:
            return before
        from kdbench.registry import discover

        registry = discover()
    state = known.state_of(registry)
    if changed or state != before:
        known.fill(con, registry, state, problems)
    return known.shown(con)


def rebuild(results: Path, *, problems: list[Problem] | None = None, registry: Registry | None = None) -> int:
    """Make the store anew from the spool and publish it; returns the number of outcomes that it holds.

    Readers see the old state until the new one is whole.
    """
    with writing(results):
        _discard(writer_path(results))
        return _sync(results, None, problems, registry)


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
    path = published_path(results)
    if not path.exists():
        raise UsageError("has no DuckDB store yet", place=str(results), hint="kdbench rebuild makes it from the spool")
    return _opened(path)


def _opened(path: Path) -> duckdb.DuckDBPyConnection:
    import duckdb

    return duckdb.connect(str(path), read_only=True, config=dict(OPEN))


def query(
    results: Path,
    work: Callable[[duckdb.DuckDBPyConnection], T],
    problems: list[Problem] | None = None,
    *,
    refresh: bool = True,
    registry: Registry | None = None,
) -> T:
    """``work(connection)`` on the state of the spool; see :func:`at`."""

    def on(path: Path) -> T:
        with _opened(path) as con:
            return work(con)

    return at(results, on, problems, refresh=refresh, registry=registry)


def at(
    results: Path,
    work: Callable[[Path], T],
    problems: list[Problem] | None = None,
    *,
    refresh: bool = True,
    registry: Registry | None = None,
) -> T:
    """``work(path)`` on a database that shows the state of the spool; it may be read, and called again after damage.

    The store is brought up to date first, where it is not (:mod:`kdbench.store.fresh`); without ``refresh`` only where
    nothing is published, which is for the end of a run, whose stores have just been. ``registry``: whose cards and
    claims it must show; default: those that it has. Where the results cannot be written (a read-only disk), what is
    published is read, and where nothing is, a temporary store is made. A damaged snapshot is moved aside and made
    anew. Raises ``UsageError`` for a folder without any finished job.
    """
    published = published_path(results)
    if not is_fresh(results, registry):
        require_results(results)
        try:
            if refresh or not published.exists():
                _refresh(results, problems, registry)
        except OSError as error:
            if not published.exists() or _version_at(published) != schema.VERSION:
                return _on_temporary(results, work, problems, registry)
            age = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(published.stat().st_mtime))
            log.warning("%s cannot be written (%s): reading the state of %s", results, error.strerror or error, age)
    try:
        return work(published)
    except Exception as error:
        reason = _damage_behind(error, published)
        if reason is None:
            raise
        _refuse_healing(error, published)
        _move_aside(published, reason)
    rebuild(results, problems=problems, registry=registry)
    return work(published)


def is_fresh(results: Path, registry: Registry | None = None) -> bool:
    """Whether what is published shows the spool as it is, and the cards of ``registry`` where it is given."""
    state = None if registry is None else known.state_of(registry)
    return fresh.is_fresh(results, private_folder(results), published_path(results), state)


def require_results(results: Path) -> None:
    """Raise ``UsageError``, with the command to run, for a folder without any finished job."""
    if not any((folder / spool.OUTCOME).exists() for folder in spool.iter_folders(results)):
        what = "holds no results yet" if results.is_dir() else "does not exist, so there are no results"
        raise UsageError(what, place=str(results), hint="run a suite first: kdbench run quickstart")


def _refresh(results: Path, problems: list[Problem] | None, registry: Registry | None) -> None:
    try:
        sync(results, problems=problems, wait=LOCK_WAIT, registry=registry)
    except Timeout:
        if not published_path(results).exists():
            raise UsageError(
                f"its store is being written for more than {LOCK_WAIT:.0f} s", place=str(results), hint="try again"
            ) from None
        log.warning("%s is being written: reading the last published state", published_path(results))


def _on_temporary(
    results: Path, work: Callable[[Path], T], problems: list[Problem] | None, registry: Registry | None
) -> T:
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        path = Path(folder) / PUBLISHED
        _made(path, results, problems, registry)
        return work(path)


def _version_at(path: Path) -> int | None:
    """Version of the form of a published store; None for what is none."""
    import duckdb

    from kdbench.store import ingest

    try:
        with _opened(path) as con:
            return ingest.version_of(con)
    except duckdb.Error:
        return None


def _damage_behind(error: Exception, path: Path) -> str | None:
    """What is wrong with a published store, where that may be why something failed; None where it is not."""
    import duckdb

    if not isinstance(error, duckdb.Error):
        return None
    if isinstance(error, duckdb.ParserException | duckdb.InterruptException | duckdb.OutOfMemoryException):
        return None
    # unknown names come from a store of another form, which shows without reading all of it, or from the query
    return damage(path, thorough=not isinstance(error, duckdb.ProgrammingError))


def damage(path: Path, *, thorough: bool = True) -> str | None:
    """What is wrong with a published store; None for a whole one. ``thorough``: found by reading all of it."""
    import duckdb

    from kdbench.store import ingest

    try:
        with _opened(path) as con:
            if ingest.version_of(con) != schema.VERSION:
                return "its form is of another version of kdbench"
            for table, columns in schema.TABLES.items() if thorough else ():
                everything = ", ".join(f'max("{column}")' for column in columns)
                con.execute(f"SELECT {everything} FROM store.{table}").fetchall()
    except duckdb.Error as error:
        return str(error)
    return None
