"""What people ask of a run from another terminal: to cancel one of its jobs, or itself.

``<results>/runs/<run id>/requests`` grows by a line per request: the id of a job, or ``*`` for the whole run. The
loop looks at its size, so that a look costs one ``stat`` and no request is missed, whatever the clock does.
"""

from __future__ import annotations

import os
from pathlib import Path

from kdbench.store import runs

WHOLE_RUN = "*"


def post(results: Path, run_id: str, job_id: str | None) -> None:
    """Ask a run to cancel one job, or with None itself; it does within a second, while it runs.

    Raises ``ValueError`` where ``job_id`` is not the id of a job, ``FileNotFoundError`` where the folder of the run
    does not exist and ``OSError`` where it cannot be written.
    """
    if job_id is not None and not job_id.isalnum():
        raise ValueError(f"{job_id!r} is not the id of a job")
    # one write in append mode: requests of several terminals do not mix
    handle = os.open(_path(results, run_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{job_id or WHOLE_RUN}\n".encode())
    finally:
        os.close(handle)


class Requests:
    """The requests that a run has not seen yet; one object belongs to one run."""

    def __init__(self, results: Path, run_id: str) -> None:
        self._file = _path(results, run_id)
        self._seen = 0

    def new(self) -> list[str | None]:
        """Ids of the jobs to cancel that were asked for since the last call; None stands for the whole run.

        A job may be named that this run does not have (any more). Raises ``OSError`` where the file is there but
        cannot be read.
        """
        try:
            if os.stat(self._file).st_size <= self._seen:
                return []
        except FileNotFoundError:
            return []
        with self._file.open("rb") as file:
            file.seek(self._seen)
            whole, end, _ = file.read().rpartition(b"\n")
        self._seen += len(whole) + len(end)
        asked = whole.decode("utf-8", "replace").split()
        return [None if line == WHOLE_RUN else line for line in asked]


def _path(results: Path, run_id: str) -> Path:
    return runs.run_folder(results, run_id) / "requests"
