"""MLflow, fed beside a run: hook implementations that start :mod:`kdbench.store.reporter` and wait for it briefly.

Nothing of MLflow is imported here, and nothing that a server does can fail or slow a job.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.hookspecs import hookimpl
from kdbench.job import Outcome, Run
from kdbench.store import duck, membership
from kdbench.store.cursor import Cursor
from kdbench.store.reporter import LOG, URI_VARIABLE
from kdbench.store.sender import ENVIRONMENT

PATIENCE = 20.0
"""Seconds that the end of a run waits for its reporter, at most."""
STALL = 3.0
"""The same, while a server is sent nothing; a database is made in that time, so it gets all of PATIENCE."""
HURRY = 1.0
"""The same, of the end of a run that was interrupted."""
LOOK = 0.1
"""Seconds between two looks at the reporter."""


@dataclass
class _Reporting:
    process: subprocess.Popen[bytes]
    before: int
    """Outcomes that had been sent when the run began."""


class MlflowReporter:
    """Starts the reporter when there is something to send, and says at the end how far it is."""

    def __init__(self, patience: float = PATIENCE, stall: float = STALL) -> None:
        self.patience = patience
        self.stall = stall
        self._running: dict[str, _Reporting] = {}

    @hookimpl
    def kdbench_run_started(self, run: Run) -> None:
        """Start the reporter if jobs will run: MLflow is imported while they do."""
        if run.tracking is not None and run.todo:
            for suite, ids in run.suites.items():
                membership.add(run.results, suite, ids, run.tracking)
            self._running[run.id] = self._start(run.results, run.tracking)

    @hookimpl
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        """Let the reporter send the rest, wait a little, and say what is logged."""
        if run.tracking is None:
            return
        reporting = self._running.pop(run.id, None)
        if reporting is None:
            for suite, ids in run.suites.items():
                membership.add(run.results, suite, ids, run.tracking)
            cursor = Cursor(run.results, membership.public(run.tracking))
            look = cursor.look()
            if cursor.is_settled(look):
                return
            cursor.refresh()
            left = len(cursor.pending())
            if not left:
                cursor.note_settled(look)
                return
            if trouble := cursor.trouble():
                # nothing ran that could have taken the time: who wants to try again says so
                print(_unsent(run, 0, left, trouble), file=sys.stderr)
                return
            reporting = self._start(run.results, run.tracking)
        assert reporting.process.stdin is not None
        reporting.process.stdin.close()
        print(self._conclude(run, reporting), file=sys.stderr)

    def _start(self, results: Path, uri: str) -> _Reporting:
        duck.private_folder(results).mkdir(parents=True, exist_ok=True)
        cursor = Cursor.of(results, uri)
        cursor.note_trouble("")
        with (results / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kdbench.store.reporter", str(results.absolute())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**ENVIRONMENT, **os.environ, URI_VARIABLE: uri},
                start_new_session=True,  # Ctrl-C ends the run, not what is being sent
            )
        return _Reporting(process, cursor.count)

    def _conclude(self, run: Run, reporting: _Reporting) -> str:
        assert run.tracking is not None
        cursor = Cursor.of(run.results, run.tracking)
        code = self._wait(run, reporting.process, cursor)
        cursor.refresh()
        logged, left = cursor.count - reporting.before, len(cursor.pending())
        if code == 0:
            what = f", {left} cannot be ({run.results / LOG} says why)" if left else ""
            return f"MLflow: {_runs(logged)} logged{what}"
        trouble = cursor.trouble()
        if code is None and not trouble:
            return (
                f"MLflow: {_runs(logged)} logged so far, {left} more in the background ({run.results / LOG} says how "
                f"far); {_command(run)} sends what stays behind"
            )
        return _unsent(run, logged, left, trouble or f"it ended with code {code}, see {run.results / LOG}")

    def _wait(self, run: Run, process: subprocess.Popen[bytes], cursor: Cursor) -> int | None:
        """Exit code of the reporter; None where it would take too long, or is in trouble."""
        assert run.tracking is not None
        local = run.tracking.startswith("sqlite:")
        # after Ctrl-C nobody wants to wait: the reporter goes on by itself
        patience = self.patience if run.signal is None else HURRY
        stall = patience if local else min(patience, self.stall)
        started = moved = time.monotonic()
        count = cursor.count
        while True:
            try:
                return process.wait(LOOK)
            except subprocess.TimeoutExpired:
                cursor.refresh()
            now = time.monotonic()
            if cursor.count != count:
                count, moved = cursor.count, now
            if cursor.trouble() or now - started > patience or now - moved > stall:
                return None


def _unsent(run: Run, logged: int, left: int, trouble: str) -> str:
    assert run.tracking is not None
    return (
        f"MLflow: {_runs(logged)} logged, {left} not yet: {membership.public(run.tracking)}: {trouble}; "
        f"{_command(run)} sends what is missing"
    )


def _command(run: Run) -> str:
    """What to type to send the rest; a password is never repeated."""
    assert run.tracking is not None
    words = ["kdbench", "sync", "mlflow", "--results", shlex.quote(str(run.results))]
    if membership.public(run.tracking) != run.tracking:
        words.append("--uri URI")
    return " ".join(words)


def _runs(number: int) -> str:
    return f"{number} run" + "s" * (number != 1)
