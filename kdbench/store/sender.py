"""Sends outcomes to one MLflow server, each once, through whatever kills the sender in the middle.

Rules about what people delete there: a run that was deleted stays deleted until its outcome is replaced; an experiment
that was deleted is restored, with all its runs, when there is something new to send to it; one that is gone for good
(as after ``mlflow gc``, or with another database behind the same address) is filled anew.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import UsageError
from kdbench.store import spool
from kdbench.store.cursor import Cursor, Key, Sent, content_digest
from kdbench.store.membership import public
from kdbench.store.mlflowrun import CONTENT, JOB, TOKEN, RunData, describe

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

log = logging.getLogger("kdbench.mlflow")

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # who sends tries again later by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address may hold a password
    "GIT_PYTHON_REFRESH": "quiet",
    "OMP_NUM_THREADS": "1",
}
"""Of a process that sends, where the user has not set them."""
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: MLflow shows its runs as those of training models, not as conversations."""
PER_CALL = 1000
"""Metrics in one request: MLflow's limit."""
PARAMS_PER_CALL = 100
PAGE = 1000
"""Runs in one answer."""
LARGEST_LOG = 10 << 20
"""Bytes of a log that is sent as an artifact."""
SLOW = 1.0
"""Seconds after which a request may have been repeated by the client."""

_OF_THIS_RUN = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""Answers that are about one run: the others can be sent."""
_WHO_ARE_YOU = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}


@dataclass
class Checked:
    """What a server has of a suite."""

    there: int = 0
    """Outcomes that it has as they are here."""
    deleted: list[Key] = field(default_factory=list)
    """Outcomes whose runs were deleted there."""
    hidden: bool = False
    """The whole experiment was deleted."""


class Sender:
    """Sends outcomes to one server; the cursor's lock is held by who calls."""

    def __init__(self, cursor: Cursor, uri: str) -> None:
        """``uri`` is the address of the cursor's server, perhaps with a password. Raises what MLflow raises."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self.results = cursor.results
        self.uri = uri
        self.cursor = cursor
        self.client = MlflowClient(tracking_uri=uri)
        self.left_out: dict[Key, str] = {}
        """What cannot be sent whatever the server's state, with the reason."""
        self.count = 0
        self._experiments: dict[str, str] = {}
        self._failed: set[Key] = set()
        self._refused: dict[Key, str] = {}
        """What was left out, by the digest of its content: another one is tried."""

    # --- sending ---

    def send(self, keys: Iterable[Key], each: Callable[[], None] = lambda: None) -> int:
        """Send outcomes, and call ``each`` after every one; returns how many. Raises what MLflow raises."""
        before = self.count
        for run in sorted(self.cursor.leftover):
            self._discard(run)
        # what made the server fail comes last: it may be the reason
        for key in sorted(keys, key=self._failed.__contains__):
            self._failed.add(key)
            self._send(key)
            self._failed.discard(key)
            each()
        return self.count - before

    def _send(self, key: Key) -> None:
        suite, id = key
        folder = spool.job_folder(self.results, id)
        content = content_digest(folder)
        if self._refused.get(key) == content:
            return
        stamp = spool.stamps(self.results, [id]).get(id)
        try:
            outcome = spool.read_outcome(folder)
            curve = spool.read_curve(folder)
        except UsageError as error:
            self._leave_out(key, content, str(error))
            return
        if outcome is None or stamp is None:
            return
        if self._known_there(key, content, stamp):
            return
        for attempt in (1, 2):
            experiment = self._experiment(suite)
            for half in self._half_made(key, experiment):
                self._discard(half)
            token = uuid.uuid4().hex
            self.cursor.begin(key, token)
            data = describe(outcome, curve, suite=suite, content=content, token=token)
            try:
                run = self._make(experiment, data, folder)
                break
            except Exception as error:
                if getattr(error, "error_code", None) not in _OF_THIS_RUN:
                    raise
                self._experiments.pop(suite, None)  # somebody may have deleted it just now
                if attempt == 2:
                    for half in self._half_made(key, experiment):
                        self._discard(half)
                    self._leave_out(key, content, f"{id} ({suite}) was refused: {reason(error)}")
                    return
        self.cursor.done(key, Sent(content, spool.stamp_text(stamp), run))
        self.left_out.pop(key, None)
        self.count += 1
        for old in sorted(self.cursor.leftover):
            self._discard(old)  # this outcome replaced it, as a repeated job replaces a failed one

    def _leave_out(self, key: Key, content: str, why: str) -> None:
        self._refused[key] = content
        self.left_out[key] = why
        log.warning("left out: %s", why)

    def _make(self, experiment: str, data: RunData, folder: Path) -> str:
        from mlflow.entities import Metric, Param

        started = time.monotonic()
        made = self.client.create_run(experiment, start_time=data.started, run_name=data.name, tags=data.tags)
        id: str = made.info.run_id
        if time.monotonic() - started > SLOW:
            for twin in self._with_token(experiment, data.tags[TOKEN]):
                if twin != id:
                    self._discard(twin)
        params = [Param(name, value) for name, value in data.params.items()]
        metrics = [Metric(name, value, data.ended, step) for name, value, step in data.metrics]
        for start in range(0, max(len(params), 1), PARAMS_PER_CALL):
            first = metrics[: PER_CALL - PARAMS_PER_CALL] if start == 0 else []
            self.client.log_batch(id, params=params[start : start + PARAMS_PER_CALL], metrics=first)
        for start in range(PER_CALL - PARAMS_PER_CALL, len(metrics), PER_CALL):
            self.client.log_batch(id, metrics=metrics[start : start + PER_CALL])
        for path in (folder / spool.OUTCOME, folder / spool.LOG):
            if path.exists() and path.stat().st_size <= LARGEST_LOG:
                self.client.log_artifact(id, str(path))
        self.client.set_terminated(id, status=data.state, end_time=data.ended)
        return id

    def _half_made(self, key: Key, experiment: str) -> list[str]:
        token = self.cursor.dangling.get(key)
        return [] if token is None else self._with_token(experiment, token)

    def _with_token(self, experiment: str, token: str) -> list[str]:
        found = self.client.search_runs([experiment], f"tags.`{TOKEN}` = '{token}'")
        return [run.info.run_id for run in found]

    def _known_there(self, key: Key, content: str, stamp: spool.Stamp) -> bool:
        """Whether the server turned out to have the outcome when its experiment was looked at."""
        self._experiment(key[0])
        sent = self.cursor.sent.get(key)
        if sent is None or sent.content != content:
            return False
        self.cursor.known(key, Sent(content, spool.stamp_text(stamp), sent.run))
        return True

    def _discard(self, run: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_run(run)
        except MlflowException as error:
            if error.error_code not in _OF_THIS_RUN:
                raise
            log.info("an older run %s is gone already: %s", run, reason(error))
        self.cursor.deleted(run)

    # --- experiments ---

    def _experiment(self, suite: str) -> str:
        """Id of the experiment of a suite, made, restored or filled anew where that has to be."""
        if suite not in self._experiments:
            found = self._found(suite) or self._created(suite)
            if found.lifecycle_stage == "deleted":
                log.info("the experiment %r was deleted: restored, because there is something new to log", suite)
                self.client.restore_experiment(found.experiment_id)
                self.check(suite)
            elif self.cursor.experiments.get(suite) != _identity(found):
                self.check(suite)
            self._experiments[suite] = found.experiment_id
        return self._experiments[suite]

    def _found(self, suite: str) -> Experiment | None:
        return self.client.get_experiment_by_name(_title(suite))

    def _created(self, suite: str) -> Experiment:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_experiment(_title(suite), artifact_location=self._artifacts(), tags=TRAINING)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
        found = self._found(suite)
        if found is None:
            raise RuntimeError(f"the server does not have the experiment {_title(suite)!r} that it has just made")
        return found

    def _artifacts(self) -> str | None:
        """Where artifacts go: beside a database that is in the results folder, or wherever the server says."""
        inside = self.uri.startswith(f"sqlite:///{self.results.absolute()}/")
        return (self.results.absolute() / "mlartifacts").as_uri() if inside else None

    # --- looking at what is there ---

    def check(self, suite: str, *, restore: bool = False) -> Checked:
        """Compare the cursor with the server: what it has of a suite, whoever sent it, counts as sent.

        Runs of ours that were replaced, or that a cut sending left, are deleted. ``restore``: take back what people
        deleted, so that the next :meth:`send` makes the runs anew that cannot be restored.
        """
        checked = Checked()
        found = self._found(suite)
        if found is None:
            if suite in self.cursor.experiments:
                self.cursor.belongs(suite, "")
            return checked
        self.cursor.belongs(suite, _identity(found))
        if found.lifecycle_stage == "deleted":
            checked.hidden = not restore
            if not restore:
                return checked
            self.client.restore_experiment(found.experiment_id)
        active = {run.info.run_id: run for run in self._runs(found.experiment_id)}
        self._adopt(suite, active.values())
        current = {sent.run for sent in self.cursor.sent.values()}
        for id, run in active.items():
            if id not in current and run.data.tags.get(TOKEN) in self.cursor.tokens:
                self._discard(id)
        for key, sent in list(self.cursor.sent.items()):
            if key[0] != suite:
                continue
            if sent.run in active:
                checked.there += 1
            elif restore:
                checked.there += self._restore(key, sent)
            else:
                checked.deleted.append(key)
        return checked

    def _adopt(self, suite: str, runs: Iterable[Run]) -> None:
        """Take whole runs of the same outcomes as sent, as after the cursor was lost or on another machine."""
        for run in runs:
            key, content = (suite, run.data.tags[JOB]), run.data.tags.get(CONTENT)
            if key in self.cursor.sent or content is None or run.info.status == "RUNNING":
                continue
            try:
                here = content_digest(spool.job_folder(self.results, key[1]))
            except ValueError:
                continue  # not the id of a job: somebody else's tag
            if here == content:
                self.cursor.known(key, Sent(content, "", run.info.run_id))

    def _restore(self, key: Key, sent: Sent) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.restore_run(sent.run)
        except MlflowException as error:
            if error.error_code not in _OF_THIS_RUN:
                raise
            self.cursor.forget(key)
            return False
        return True

    def _runs(self, experiment: str) -> Iterator[Run]:
        """Every run of kdbench's in an experiment that is not deleted."""
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment], f"tags.`{JOB}` LIKE '%'", max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _title(suite: str) -> str:
    return suite or "kdbench"


def _identity(experiment: Experiment) -> str:
    return f"{experiment.experiment_id}@{experiment.creation_time}"


def reason(error: BaseException) -> str:
    """Why a server could not be used, in a few words and without a password."""
    if getattr(error, "error_code", None) in _WHO_ARE_YOU:
        return (
            "access refused (MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN)"
        )
    cause: BaseException | None = error
    while cause is not None:
        last, cause = cause, cause.__cause__ or cause.__context__
    if isinstance(last, TimeoutError):
        return f"no answer within {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    if isinstance(last, OSError) and last.strerror:
        return last.strerror
    if answered := re.search(r"too many (\d+) error responses", str(last)):
        return f"it answers with an error {answered[1]}"
    lines = str(last).strip().splitlines()
    return public(f"{type(last).__name__}: {lines[0][:300]}" if lines else type(last).__name__)
