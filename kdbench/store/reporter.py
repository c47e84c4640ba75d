"""The process that feeds MLflow: ``python -m kdbench.store.reporter RESULTS``, with the server in its environment.

It follows the spool until its standard input ends, sends what is left, and ends. A server that cannot be reached
costs one line in ``mlflow.log``; what was missed is sent by the next reporter, because the cursor knows it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import select
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdbench.errors import UsageError
from kdbench.job import Outcome
from kdbench.store import duck, spool
from kdbench.store.cursor import Cursor, Sent, content_digest
from kdbench.store.membership import public

log = logging.getLogger("kdbench.mlflow")

URI_VARIABLE = "KDBENCH_TRACKING_URI"
"""Tracking URI; not an argument, because it may hold a password and arguments are for everyone to see."""
POLL = 1.0
"""Seconds between looks at the spool."""
PER_CALL = 1000
"""Metrics in one ``log_batch``: MLflow's limit."""
PARAMS_PER_CALL = 100
LONGEST = 5000
"""Characters of a parameter or a tag."""
LARGEST_LOG = 10 << 20
"""Bytes of a log that is sent as an artifact."""
UNREACHABLE = 3
"""Exit code where the server could not be used."""

_NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")


class Reporter:
    """Sends outcomes to one MLflow server."""

    def __init__(self, results: Path, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.results = results
        self.uri = uri
        self.cursor = Cursor.of(results, uri)
        self.client = MlflowClient(tracking_uri=uri)
        self.experiments: dict[str, str] = {}
        self.damaged: set[str] = set()
        self.count = 0

    def send_pending(self) -> int:
        """Send every outcome that the server lacks; returns how many. Raises what MLflow raises."""
        before = self.count
        for id in self.cursor.pending(self.results, self.uri):
            self._send(id)
        return self.count - before

    def _send(self, id: str) -> None:
        folder = spool.job_folder(self.results, id)
        content = content_digest(folder)
        stamp = spool.stamps(self.results, [id]).get(id)
        try:
            outcome = spool.read_outcome(folder)
            curve = spool.read_curve(folder)
        except UsageError as error:
            if id not in self.damaged:
                self.damaged.add(id)
                log.warning("left out: %s", error)
            return
        if outcome is None or stamp is None:
            return
        if id in self.cursor.dangling:
            self._remove_half_made(outcome, self.cursor.dangling[id])
        token = uuid.uuid4().hex
        self.cursor.begin(id, token)
        run = self._log(outcome, curve, folder, token)
        older = self.cursor.sent.get(id)
        self.cursor.done(id, Sent(content, spool.stamp_text(stamp), run))
        self.count += 1
        if older is not None:
            self._delete(older.run)  # this outcome replaced it, as a repeated job replaces a failed one

    def _remove_half_made(self, outcome: Outcome, token: str) -> None:
        experiment = self._experiment(outcome.job.suite)
        for run in self.client.search_runs([experiment], f"tags.`kdbench.token` = '{token}'"):
            self._delete(run.info.run_id)

    def _delete(self, run: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_run(run)
        except MlflowException as error:
            log.warning("an older run %s could not be deleted: %s", run, _first_line(error))

    def _experiment(self, suite: str) -> str:
        from mlflow.exceptions import MlflowException

        name = suite or "kdbench"
        if name not in self.experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                try:
                    self.experiments[name] = self.client.create_experiment(name, artifact_location=self._artifacts())
                except MlflowException:  # another reporter was faster
                    found = self.client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                self.experiments[name] = found.experiment_id
        return self.experiments[name]

    def _artifacts(self) -> str | None:
        """Where artifacts go: beside a database that is in the results folder, or wherever the server says."""
        inside = self.uri.startswith(f"sqlite:///{self.results.absolute()}/")
        return (self.results.absolute() / "mlartifacts").as_uri() if inside else None

    def _log(self, outcome: Outcome, curve: list[dict[str, float | None]], folder: Path, token: str) -> str:
        from mlflow.entities import Metric, Param

        job = outcome.job
        tags = {
            "method": job.method,
            "task": job.task,
            "scale": job.scale,
            "seed": job.seed,
            "status": outcome.status,
            "suite": job.suite,
            "spec_digest": job.spec_digest,
            "kdbench.job": outcome.id,
            "kdbench.token": token,
            "mlflow.source.name": "kdbench",
            "mlflow.source.git.commit": (outcome.provenance.get("git") or {}).get("commit"),
            "error": f"{outcome.error.type}: {outcome.error.message}" if outcome.error else None,
        }
        run = self.client.create_run(
            self._experiment(job.suite),
            start_time=_milliseconds(outcome.started_at),
            run_name=f"{job.label or job.method} seed {job.seed}"[:LONGEST],
            tags={name: str(value)[:LONGEST] for name, value in tags.items() if value is not None},
        )
        id: str = run.info.run_id
        end = _milliseconds(outcome.finished_at)
        params = [Param(_name(name), _text(value)) for name, value in _unique(job.params).items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(id, params=params[start : start + PARAMS_PER_CALL])
        last = int(outcome.cost.get("steps", 0))
        values = {**outcome.metrics, **outcome.extra, **{f"cost/{name}": x for name, x in outcome.cost.items()}}
        metrics = [Metric(name, x, end, last) for name, x in _unique(values).items() if math.isfinite(x)]
        for point in curve:
            step = int(point["step"] or 0)
            metrics += [
                Metric(_name(f"curve/{name}"), x, end, step)
                for name, x in point.items()
                if name != "step" and x is not None
            ]
        for start in range(0, len(metrics), PER_CALL):
            self.client.log_batch(id, metrics=metrics[start : start + PER_CALL])
        for path in (folder / spool.OUTCOME, folder / spool.LOG):
            if path.exists() and path.stat().st_size <= LARGEST_LOG:
                self.client.log_artifact(id, str(path))
        state = {"ok": "FINISHED", "interrupted": "KILLED"}.get(outcome.status, "FAILED")
        self.client.set_terminated(id, status=state, end_time=end)
        return id


def _name(name: str) -> str:
    """A name that MLflow accepts."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def _unique(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_name(name): value for name, value in values.items()}


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True))[:LONGEST]


def _milliseconds(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp() * 1000)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:500] if text else ''}"


def follow(results: Path, uri: str, wait_for_end: bool = True) -> int:
    """Send until standard input ends, then the rest; returns an exit code."""
    with FileLock(duck.private_folder(results) / "mlflow.lock"):
        reporter: Reporter | None = None
        ended = not wait_for_end
        while True:
            if reporter is not None or Cursor.of(results, uri).pending(results, uri):
                try:
                    reporter = reporter or Reporter(results, uri)
                    reporter.send_pending()
                except Exception as error:  # noqa: BLE001  whatever a server or a client library does
                    log.warning(
                        "cannot log to %s: %s; what is missing is sent later", public(uri), public(_first_line(error))
                    )
                    return UNREACHABLE
            if ended:
                break
            ended = _input_ended(POLL)
        if reporter is not None and reporter.count:
            log.info("logged %d runs to %s", reporter.count, public(uri))
    return 0


def _input_ended(seconds: float) -> bool:
    """Whether the coordinator closed our standard input (or died) within some seconds."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            return True
    return False


def main() -> int:
    """Entry point of the process."""
    results, uri = Path(sys.argv[1]), os.environ[URI_VARIABLE]
    path = results / "mlflow.log"
    logging.basicConfig(
        filename=path, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, force=True
    )
    logging.getLogger("kdbench").setLevel(logging.INFO)
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return follow(results, uri)


if __name__ == "__main__":
    sys.exit(main())
