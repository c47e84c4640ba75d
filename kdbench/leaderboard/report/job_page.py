"""What the page of a failed job shows: its error, and the end of its log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from kdbench.errors import UsageError
from kdbench.store import spool

if TYPE_CHECKING:
    from kdbench.leaderboard.report.data import FailedJob

LOG_BYTES = 32_768
"""From the end of a log that a page shows; escapes may make them six times as many."""
LOG_LINES = 200


def job_context(results: Path, job: FailedJob) -> dict[str, Any]:
    """What there is to show of a job. What its folder no longer holds is left out."""
    folder = spool.job_folder(results, job.id)
    log, cut = log_end(folder / spool.LOG)
    return {
        "job": job,
        "traceback": _traceback(folder),
        "log": log,
        "log_cut": cut,
        "params": json.dumps(json.loads(job.params), indent=1, ensure_ascii=False),
    }


def log_end(path: Path, size: int = LOG_BYTES, lines: int = LOG_LINES) -> tuple[str, bool]:
    """The last lines of a log and whether there were more; empty where there is none. Links are not followed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "", False
    if not S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return "", False
    with os.fdopen(handle, "rb") as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(max(whole - size, 0))
        found = file.read(size).decode("utf-8", "replace").rstrip("\n").split("\n")
    cut = whole > size
    if cut and len(found) > 1:
        del found[0]  # the rest of a line
    return "\n".join(found[-lines:]), cut or len(found) > lines


def _traceback(folder: Path) -> str:
    try:
        raw = spool.read_raw(folder)
    except UsageError:
        return ""
    error = (raw or {}).get("error") or {}
    return str(error.get("traceback", ""))[-LOG_BYTES:]
