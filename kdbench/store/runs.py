"""The state of runs, as other processes see it: ``<results>/runs/<run id>/``.

While a run goes on, its coordinator replaces ``state.json`` about once a second and holds the lock
``<results>/runs/<run id>.lock``, which the system frees when the coordinator dies, however it dies. ``jobs.txt``
(written once) names the jobs of the run, ``ended.txt`` grows by a line per job that has ended. All of this is for
watching; nothing that counts is read from here.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kdbench.errors import UsageError, did_you_mean
from kdbench.store import spool

RUNS = "runs"
STATE = "state.json"
JOBS = "jobs.txt"
ENDED = "ended.txt"

TEACHER = "teacher-"
"""How the names of the work begin that makes a teacher."""

SCHEMA = 1
"""Version of :class:`RunState` as written."""

Phase = Literal["running", "finished", "interrupted", "failed", "died"]
"""``failed``: the run itself ended with an error; ``died``: its coordinator is gone without having said why."""


class Worker(BaseModel):
    """One job that runs."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    job: str
    """Id."""
    title: str
    """Task, method and seed in a few words."""
    suites: list[str]
    task: str
    """``track/name``."""
    scale: str
    method: str
    """``track/slug``."""
    label: str
    seed: int
    attempt: int
    step: int = 0
    """Optimizer steps so far; 0 before the first report."""
    total: int | None = None
    """Optimizer steps in all, where known."""
    rate: float | None = None
    """Steps per second over the last seconds."""
    metrics: dict[str, float] = {}
    """Latest logged values."""
    host: str
    pid: int
    devices: list[str] = []
    """GPUs, as ``CUDA_VISIBLE_DEVICES`` calls them; empty on a CPU."""
    rss_bytes: float | None = None
    """Main memory in use, that of child processes included."""
    gpu_bytes: float | None = None
    since: datetime
    """Start of the attempt, naive UTC."""
    seconds: float
    """Since then, by a clock that nobody sets."""


class SuiteState(BaseModel):
    """How far one suite of a run is; suites may share jobs."""

    name: str
    jobs: int
    """Planned in all."""
    before: int
    """Of them, those that were done before this run and are not done again."""
    done: int
    """Ended in this run, failed ones included, cancelled ones not."""
    failed: int
    """Ended in this run with a failure."""
    cancelled: int = 0
    """Ended on request: the next run does them again."""
    running: int
    left: int
    """Not ended yet, running ones included."""
    eta_seconds: float | None = None
    """Until the last one ends; None while nothing is known about how long such jobs take."""


class RunState(BaseModel):
    """What a run says of itself."""

    schema_version: int = SCHEMA
    id: str
    host: str
    pid: int
    """Of the coordinator."""
    command: list[str]
    slots: int
    """Jobs at the same time, at most."""
    started: datetime
    """Naive UTC, as all times here."""
    updated: datetime
    seconds: float
    """Since the start, by a clock that nobody sets."""
    finished: datetime | None = None
    exit_code: int | None = None
    """Of ``kdbench run``, where it has ended by itself."""
    error: str = ""
    """Why it ended, where it ended with an error."""
    total: SuiteState
    """All jobs of the run, each counted once."""
    suites: list[SuiteState]
    workers: list[Worker] = []


@dataclass(frozen=True)
class Seen:
    """A run as it is now."""

    state: RunState
    phase: Phase

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def live(self) -> bool:
        return self.phase == "running"


def runs_folder(results: Path) -> Path:
    """Where the folders of the runs are."""
    return results / RUNS


def run_folder(results: Path, id: str) -> Path:
    """Folder of a run, which need not exist. Raises ``ValueError`` for an id that is not one plain name."""
    if not id or id.startswith(".") or os.sep in id or "/" in id or "\0" in id:
        raise ValueError(f"{id!r} is not the id of a run")
    return runs_folder(results) / id


def lock_path(results: Path, id: str) -> Path:
    """The lock that the coordinator of a run holds."""
    return run_folder(results, id).with_name(f"{id}.lock")


def held(lock: Path) -> bool:
    """Whether a process holds this lock.

    Others may look at the same time; who wants to take it has to wait for the moment that a look lasts.
    """
    try:
        handle = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def read_state(results: Path, id: str) -> RunState | None:
    """What a run last wrote; None where it wrote nothing. Raises ``UsageError`` for a damaged file or a newer form."""
    path = run_folder(results, id) / STATE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", place=str(path)) from error
    try:
        return RunState.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(
            "is not the state of a run that this kdbench can read", place=str(path), hint="delete the folder"
        ) from error


def seen(results: Path, id: str) -> Seen | None:
    """A run as it is now; None where there is none of this id. Raises ``UsageError`` for a damaged state."""
    live = held(lock_path(results, id))  # looked at first: who then finds no end finds one that is gone
    state = read_state(results, id)
    if state is None:
        return None
    if state.finished is None:
        return Seen(state, "running" if live else "died")
    if state.exit_code is None:
        return Seen(state, "failed")
    return Seen(state, "interrupted" if state.exit_code >= 128 else "finished")


def ids(results: Path) -> list[str]:
    """Ids of the runs of a folder, the latest first; those that have not written a state are left out."""
    return sorted((path.parent.name for path in runs_folder(results).glob(f"[!.]*/{STATE}")), reverse=True)


def live(results: Path) -> list[Seen]:
    """The runs that go on now, the latest first."""
    running = (id for id in ids(results) if held(lock_path(results, id)))
    return [run for run in (seen(results, id) for id in running) if run is not None and run.live]


def matching(ids: Iterable[str], prefix: str) -> list[str]:
    """The ids that start with ``prefix``, or whose last part does: ``3fa2`` for ``20260102T030405-3fa2c1``.

    One that is the whole of an id stands for that alone.
    """
    found = [id for id in ids if id.startswith(prefix) or id.rpartition("-")[2].startswith(prefix)]
    return [prefix] if prefix in found else found


def find(results: Path, prefix: str) -> str:
    """Id of the only run that :func:`matching` finds. Raises ``UsageError`` for none or several."""
    known = ids(results)
    if not known:
        raise no_runs(results)
    found = matching(known, prefix)
    if len(found) > 1:
        raise UsageError(f"{len(found)} runs have an id like {prefix!r}: {in_short(found)}", hint="give more of it")
    if not found:
        raise UsageError(f"no run has the id {prefix!r}", place=str(results), hint=did_you_mean(prefix, known))
    return found[0]


def no_runs(results: Path) -> UsageError:
    """The error where nothing has run yet."""
    return UsageError("holds no runs yet", place=str(results), hint="run a suite first: kdbench run SUITE")


def in_short(ids: Sequence[str]) -> str:
    """Ids for a message: the first ones."""
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def jobs(results: Path, id: str) -> dict[str, str]:
    """Titles of the jobs that a run does, by their ids in the order of its plans; empty where it left none."""
    return _table(run_folder(results, id) / JOBS)


def ended(results: Path, id: str) -> dict[str, str]:
    """Statuses of the jobs that have ended in a run, by their ids; up to a second behind while it goes on."""
    return _table(run_folder(results, id) / ENDED)


def waiting(results: Path) -> dict[str, list[str]]:
    """Jobs that runs have now and that have not ended, running ones included: ids of the runs by id of the job."""
    found: dict[str, list[str]] = {}
    for run in live(results):
        for id in jobs(results, run.id).keys() - ended(results, run.id).keys():
            found.setdefault(id, []).append(run.id)
    return found


# --- jobs that run ----------------------------------------------------------------------------------------------------


def is_running(results: Path, id: str) -> bool:
    """Whether a run works on this job (or on making this teacher) now."""
    return held(results / spool.RUNNING / f"{id}.lock")


def work_folder(results: Path, id: str) -> Path:
    """Where a job writes while it runs, and where it is afterwards; need not exist."""
    folder, done = results / spool.RUNNING / id, spool.job_folder(results, id)
    return folder if is_running(results, id) or not done.exists() else done


def teachers(results: Path) -> list[str]:
    """Names of the teachers that are being made now; their logs are found by these."""
    names = sorted(path.stem for path in (results / spool.RUNNING).glob(f"{TEACHER}*.lock"))
    return [name for name in names if is_running(results, name)]


def _table(path: Path) -> dict[str, str]:
    """Lines of two words, the second of which may have spaces; a last line that is not whole is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", place=str(path)) from error
    lines = text[: text.rfind("\n") + 1].splitlines()
    return {first: second for first, _, second in (line.partition(" ") for line in lines)}
