"""MLflow, fed beside a run: hook implementations that start :mod:`kdbench.store.reporter` and wait for it briefly.

Nothing of MLflow is imported here, and nothing that a server does can fail or slow a job.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.hookspecs import hookimpl
from kdbench.job import Outcome, Run
from kdbench.store import duck, membership
from kdbench.store.cursor import Cursor
from kdbench.store.reporter import URI_VARIABLE

PATIENCE = 20.0
"""Seconds that the end of a run waits for its reporter."""
HURRY = 1.0
"""The same, of the end of a run that was interrupted."""
LOG = "mlflow.log"
"""In the results folder: what the reporter has to say."""

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "OMP_NUM_THREADS": "1",
}
"""Of the reporter, where the user has not set them."""


@dataclass
class _Reporting:
    process: subprocess.Popen[bytes]
    before: int
    """Outcomes that the server had when the run began."""


class MlflowReporter:
    """Starts the reporter when there is something to send, and says at the end how far it is."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
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
            if not Cursor.of(run.results, run.tracking).pending(run.results, run.tracking):
                return
            reporting = self._start(run.results, run.tracking)
        assert reporting.process.stdin is not None
        reporting.process.stdin.close()
        print(self._conclude(run, reporting), file=sys.stderr)

    def _start(self, results: Path, uri: str) -> _Reporting:
        duck.private_folder(results).mkdir(parents=True, exist_ok=True)
        before = len(Cursor.of(results, uri).sent)
        with (results / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kdbench.store.reporter", str(results.absolute())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**_ENVIRONMENT, **os.environ, URI_VARIABLE: uri},
                start_new_session=True,  # Ctrl-C ends the run, not what is being sent
            )
        return _Reporting(process, before)

    def _conclude(self, run: Run, reporting: _Reporting) -> str:
        assert run.tracking is not None
        try:
            # after Ctrl-C nobody wants to wait: the reporter goes on by itself
            code: int | None = reporting.process.wait(self.patience if run.signal is None else HURRY)
        except subprocess.TimeoutExpired:
            code = None
        cursor = Cursor.of(run.results, run.tracking)
        logged = max(0, len(cursor.sent) - reporting.before)
        noun = "run" if logged == 1 else "runs"
        if code is None:
            return f"MLflow: {logged} {noun} logged so far; the rest follows in the background ({run.results / LOG})"
        if code != 0:
            left = len(cursor.pending(run.results, run.tracking))
            why = f"({run.results / LOG} says why)"
            return f"MLflow: {logged} {noun} logged, {left} will be sent with the next run {why}"
        return f"MLflow: {logged} {noun} logged"
