"""Whether the published store shows the spool as it is, found out without looking at any outcome.

Whatever happens in the spool changes the time of a folder: a job appears in ``jobs/`` by a rename, leaves it by another
one, and is replaced by a rename out of ``jobs/`` itself; the lists of suites are replaced within ``suites/``. So
``<results>/store/seen.json`` holds the times of these folders as they were before the last whole look at them, and what
was published after it; while all of that is the same, nothing is new. An ``outcome.json`` that is edited in place
changes no folder: ``kdbench rebuild`` looks at everything.

A folder that changed just before the look may change again within one tick of the file system's clock, with the same
time. Such a look is not believed, as git does not believe an index that is as old as a file in it: the next command
looks again. What the time is says the file system that gives the times, by a file that is touched.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.store import membership, schema, spool

log = logging.getLogger(__name__)

SEEN = "seen.json"
CLOCK = ".clock"
RACY = 2 * 10**9
"""Nanoseconds: the coarsest clock of a file system that is in use has ticks of two seconds (FAT)."""


def _stamp(path: Path) -> list[int] | None:
    """What changes whenever a folder's entries, or a file that is replaced, do; None where there is none."""
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino, state.st_dev]


def _folders(results: Path) -> list[list[int] | None]:
    return [_stamp(spool.jobs_folder(results)), _stamp(membership.folder_of(results))]


@dataclass(frozen=True)
class Look:
    """The folders of the spool at one moment."""

    folders: list[list[int] | None]
    settled: bool
    """Whether whatever changes in them from now on changes their times."""

    @classmethod
    def now(cls, results: Path, private: Path) -> Look:
        """Taken before the folders are read; ``private``: folder of the store. Raises ``OSError``."""
        clock = private / CLOCK
        clock.touch()
        tick = clock.stat().st_mtime_ns
        folders = _folders(results)
        newest = max((max(stamp[:2]) for stamp in folders if stamp is not None), default=0)
        return cls(folders, tick - newest > RACY)


def note(look: Look, private: Path, published: Path, state: str, jobs: int) -> None:
    """Write down what was published after a whole look; ``state``: of the cards that it shows. Raises ``OSError``."""
    if not look.settled:
        forget(private)
        return
    content = _content(look.folders, published, state, jobs)
    path = private / SEEN
    if _read(path) != content:
        spool.write_whole(path, json.dumps(content) + "\n")


def forget(private: Path) -> None:
    """Make the next command look at everything."""
    (private / SEEN).unlink(missing_ok=True)


def is_fresh(results: Path, private: Path, published: Path, state: str | None = None) -> bool:
    """Whether what is published shows the spool as it is, and holds a job at least.

    ``state``: that it must show the cards of this state, too. Nothing is written.
    """
    seen = _read(private / SEEN)
    jobs = seen.get("jobs")
    if not isinstance(jobs, int) or jobs < 1 or seen.get("published") is None:
        return False
    return seen == _content(_folders(results), published, str(seen.get("cards")) if state is None else state, jobs)


def _content(folders: list[list[int] | None], published: Path, state: str, jobs: int) -> dict[str, Any]:
    stamp = _stamp(published)
    return {"version": schema.VERSION, "folders": folders, "published": stamp, "cards": state, "jobs": jobs}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.debug("%s cannot be used: %s", path, error)
        return {}
    return content if isinstance(content, dict) else {}
