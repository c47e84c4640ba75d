"""Follows the log of a job from the outside: until it starts, while it runs, through retries, to its end."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kdbench.quantities import show_bytes, show_duration
from kdbench.schedule.logs import HEAD
from kdbench.store import runs, spool

PAUSE = 0.3
"""Seconds between two looks at a log."""
WAITING = 1.0
"""Seconds between two looks at a job that has not started."""


@dataclass(frozen=True)
class Said:
    """A line."""

    text: str
    note: bool = False
    """Whether it is about the job, and not of its log."""


class _Open:
    """A log that is read while others write it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.partial = ""

        state = os.fstat(file.fileno())
        self.identity = state.st_dev, state.st_ino

    def lines(self) -> Iterator[str]:
        """The lines that are whole by now."""
        if os.fstat(self.file.fileno()).st_size < self.file.tell():  # it is written anew
            self.file.seek(0)
            self.partial = ""
        *whole, self.partial = (self.partial + self.decoder.decode(self.file.read())).split("\n")
        yield from whole

    def rest(self) -> Iterator[str]:
        """All that is left; then the file is closed."""
        yield from self.lines()
        if self.partial:
            yield self.partial
        self.file.close()


def follow(
    results: Path, id: str, *, tail: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Said]:
    """The log of a job, line by line as it grows, and notes on what becomes of the job; ends when the job has ended.

    ``tail``: how many of the lines to give that are there already; None gives all. A job that no run has (any more)
    is given as it is. Raises ``UsageError`` for a damaged outcome and ``OSError`` for a log that cannot be read.
    """
    before = _stamp(results, id)
    log: _Open | None = None
    told = ""
    try:
        while True:
            running = runs.is_running(results, id)  # first: what is written before it ends is read below
            path = runs.work_folder(results, id) / spool.LOG
            if log is not None:
                yield from map(Said, log.lines())
            found = _other(path, log)
            if found is not None:
                if log is not None:
                    yield from map(Said, log.rest())
                    yield Said("the job starts once more", note=True)
                lines = list(found.lines())
                if tail is not None and log is None:
                    lines = lines[max(0, len(lines) + bool(found.partial) - tail) :]
                yield from map(Said, lines)
                log = found
            if running:
                if told != "long" and log is not None and log.file.tell() == HEAD:
                    told = "long"
                    yield Said(f"it has printed over {show_bytes(HEAD)}: what follows appears at its end", note=True)
                sleep(PAUSE)
                continue
            end = _end_of(results, id, before)
            if end is not None:
                # what it wrote between the look at its log and its end
                for part in (log, _other(runs.work_folder(results, id) / spool.LOG, log)):
                    yield from map(Said, part.rest() if part is not None else ())
                yield Said(end, note=True)
                return
            if told != "waits":
                told = "waits"
                yield Said("it waits for a slot, or for its teacher", note=True)
            sleep(WAITING)
    finally:
        if log is not None:
            log.file.close()


def _other(path: Path, log: _Open | None) -> _Open | None:
    """The file at ``path``, opened, where it is another one than that which is read."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = _Open(file)
    if log is not None and found.identity == log.identity:
        file.close()
        return None
    return found


def _stamp(results: Path, id: str) -> spool.Stamp | None:
    return spool.stamps(results, [id]).get(id)


def _end_of(results: Path, id: str, before: spool.Stamp | None) -> str | None:
    """What became of a job that does not run; None where a run still has it to do."""
    now = _stamp(results, id)
    if (now is None or now == before) and id in runs.waiting(results):
        return None
    outcome = spool.read_outcome(spool.job_folder(results, id))
    if outcome is None:
        if id.startswith(runs.TEACHER):
            return "this teacher is not being made any more"
        return "it was interrupted: the same run command does it again"
    attempt = f", attempt {outcome.attempts}" if outcome.attempts > 1 else ""
    reason = f": {outcome.error.message}" if outcome.error else ""
    return f"ended as {outcome.status} after {show_duration(outcome.seconds)}{attempt}{reason}"
