"""What ``kdbench gc`` removes: remains of what was interrupted, damaged or long unused. Never an outcome."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.store import duck, packs, reference, runs, spool

RUNS = 20
"""Runs, the latest ones, whose state is kept."""
CHECKPOINTS = 30 * 24 * 3600.0
"""Seconds that the checkpoint of an interrupted job waits for a run that goes on with it."""
HOUR = 3600.0
"""Seconds that a temporary file, a cache entry or a job without outcome is left alone: someone may be at it."""


@dataclass(frozen=True)
class Remains:
    """Something that may go."""

    path: Path
    size: int
    """Bytes."""
    reason: str
    lock: Path | None = None
    """Lock to hold while it is removed."""


def of_results(results: Path, quiet: float = HOUR) -> Iterator[Remains]:
    """Remains in a results folder that nobody has touched for ``quiet`` seconds."""
    for folder in spool.iter_folders(results):
        if not (folder / spool.OUTCOME).exists():
            if _age(folder) >= quiet:
                yield Remains(folder, _size(folder), "interrupted job")
            continue
        yield from _files(folder.glob(f".{spool.OUTCOME}-*"), quiet, "unfinished outcome")
    for folder in sorted((results / spool.RUNNING).glob("[!.]*")):
        lock = folder.with_name(f"{folder.name}.lock")
        if folder.is_dir() and _free(lock, folder):
            if not spool.has_checkpoint(folder):
                yield Remains(folder, _size(folder), "interrupted job", lock)
            elif _age(folder) >= max(quiet, CHECKPOINTS):
                yield Remains(folder, _size(folder), "checkpoint that no run went on from", lock)
    yield from _runs(results, quiet)
    yield from _files(spool.jobs_folder(results).glob(f"{spool.TEMPORARY_PREFIX}*"), quiet, "unfinished outcome")
    for place in (results, duck.private_folder(results), results / "suites", results / "leaderboards"):
        yield from _files(place.glob(f"{duck.PUBLISHED}.damaged-*"), 0, "damaged store")
        yield from _files(place.glob(".*-*"), quiet, "temporary file")


def _runs(results: Path, quiet: float) -> Iterator[Remains]:
    """States of old runs, and locks of runs that were killed."""
    folder = runs.runs_folder(results)
    for old in sorted((path for path in folder.glob("[!.]*") if path.is_dir()), reverse=True)[RUNS:]:
        lock = runs.lock_path(results, old.name)
        if not runs.held(lock) and _age(old) >= quiet:
            yield Remains(old, _size(old), "old run", lock if lock.exists() else None)
    for lock in sorted(folder.glob("[!.]*.lock")):
        if not runs.held(lock) and _age(lock) >= quiet:
            yield Remains(lock, _size(lock), "lock of a run that died", lock)


def of_cache(root: Path, largest: int, quiet: float = HOUR) -> Iterator[Remains]:
    """Remains in the cache: half-made and damaged entries, and of the whole ones those unused for longest; and what
    was unpacked of earlier reference results.

    ``largest``: bytes that the whole entries may take; of what is beyond, the least recently used go first.
    """
    for work in sorted(root.glob("[!.]*/.*-*")):
        if _age(work) >= quiet:
            yield Remains(work, _size(work), "half-made cache entry")
    for results in reference.outdated(root):
        # reading them changes nothing but their mark
        if time.time() - (results / reference.MARK).stat().st_mtime >= quiet:
            yield Remains(results, _size(results), "earlier reference results", reference.lock_of(results))
    whole: list[tuple[float, Remains]] = []
    for folder, entry in packs.entries(root):
        lock = folder.with_suffix(".lock")
        reason = "entry.json cannot be read" if entry is None else packs.problem_of(folder, thorough=False)
        if reason is not None:
            yield Remains(folder, _size(folder), f"damaged cache entry: {reason}", lock)
        else:
            used = (folder / "entry.json").stat().st_mtime
            whole.append((used, Remains(folder, _size(folder), "least recently used cache entry", lock)))
    total = sum(remains.size for _, remains in whole)
    for used, remains in sorted(whole, key=lambda pair: (pair[0], pair[1].path)):
        if total <= largest:
            break
        if time.time() - used >= quiet:
            total -= remains.size
            yield remains


def remove(remains: Remains) -> bool:
    """Remove it; False where someone holds its lock or works in it. Raises ``OSError`` where it cannot be removed."""
    if remains.lock is None:
        _delete(remains.path)
        return True
    try:
        with FileLock(remains.lock, timeout=0):
            # the lock itself, once taken, is held by nobody else
            if remains.path != remains.lock and runs.held(remains.path):
                return False
            _delete(remains.path)
    except Timeout:
        return False
    return True


def _free(lock: Path, folder: Path) -> bool:
    """Whether nobody runs the job: its coordinator holds the lock, and its processes, which may outlive that, the
    folder. The folder is looked at only while no coordinator can start a job in it, which would meet our look."""
    if not lock.exists():
        return True
    try:
        with FileLock(lock, timeout=0):
            return not runs.held(folder)
    except Timeout:
        return False


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # out of sight first: a reader finds all of it or nothing
        hidden = path.with_name(f".{path.name}-removed")
        if not path.name.startswith("."):
            path = path.rename(hidden)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(found: Iterator[Path], quiet: float, reason: str) -> Iterator[Remains]:
    for path in sorted(found):
        if path.is_file() and not path.name.endswith(".lock") and _age(path) >= quiet:
            yield Remains(path, path.stat().st_size, reason)


def _age(path: Path) -> float:
    """Seconds since anything in it changed; 0 for what vanishes meanwhile."""
    newest = _fold(path, lambda file: file.lstat().st_mtime, max)
    return max(0.0, time.time() - newest) if newest else 0.0


def _size(path: Path) -> int:
    return int(_fold(path, lambda file: float(file.lstat().st_size) if not file.is_dir() else 0.0, lambda a, b: a + b))


def _fold(path: Path, of: Callable[[Path], float], join: Callable[[float, float], float]) -> float:
    total = 0.0
    for file in (path, *path.rglob("*")):
        try:
            total = join(total, of(file))
        except FileNotFoundError:
            continue
    return total
