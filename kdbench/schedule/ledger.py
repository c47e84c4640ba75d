"""The side of a run that faces the spool: which work it has the right to do, and how its ends get there."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.errors import UsageError
from kdbench.job import Job, Outcome, Status, utcnow
from kdbench.schedule import attempts, deaths
from kdbench.schedule.attempts import Claim
from kdbench.schedule.executor import Ended
from kdbench.schedule.retries import Try
from kdbench.store import spool

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE)
"""Errors of the disk that results are on, rather than of the machine that jobs run on."""


@dataclass
class Held:
    """Work that this run alone has the right to do: it runs, or waits to be tried once more."""

    claim: Claim
    first: int = 1
    """Number of its first try in this run; attempts are counted over all runs."""
    tries: list[Try] = field(default_factory=list)
    """Those of this run that ended without a result and were not the last."""
    started_at: datetime = field(default_factory=utcnow)
    """Of the present try."""

    @property
    def id(self) -> str:
        return self.claim.id

    @property
    def folder(self) -> Path:
        return self.claim.folder

    @property
    def attempt(self) -> int:
        return self.first + len(self.tries)


@dataclass
class Ending:
    """How a try ended, before anybody decided what becomes of it."""

    outcome: Outcome
    written: bool
    """Whether the job itself wrote the outcome."""
    left_behind: int = 0
    """Processes that the job left and that were killed."""


class Ledger:
    """Claims and outcomes of a run's jobs."""

    def __init__(
        self, results: Path, done: Mapping[str, Status], todo: Iterable[str], provenance: Mapping[str, Any]
    ) -> None:
        """``done`` are the jobs that have an outcome, ``todo`` the ids that the run is to do, made again included."""
        self.results = results
        self.done = dict(done)
        self.provenance = dict(provenance)
        self._baseline = spool.stamps(results, [id for id in todo if id in self.done])

    def hold(self, id: str) -> Held | None:
        """The right to do some work, or None where another run has it."""
        claim = attempts.claim(self.results, id)
        if claim is None:
            return None
        try:
            return Held(claim, self._first_attempt(id))
        except BaseException:
            claim.release()
            raise

    def _first_attempt(self, id: str) -> int:
        """Number of the attempt that follows the job's earlier outcome."""
        before = attempts.outcome_in(spool.job_folder(self.results, id)) if id in self.done else None
        return 1 if before is None else before.attempts + 1

    def is_free(self, id: str) -> bool:
        """Whether no other run has the work now."""
        claim = attempts.claim(self.results, id)
        if claim is not None:
            claim.release()
        return claim is not None

    def by_others(self, id: str) -> Outcome | None:
        """The outcome that another run has left of a job since the plan was made."""
        now = attempts.stamp(self.results, id)
        if now is None or now == self._baseline.get(id):
            return None
        return attempts.outcome_in(spool.job_folder(self.results, id))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def ending(self, job: Job, held: Held, ended: Ended) -> Ending:
        """How a try ended: what the job wrote, or else what its process tells.

        What a job writes while it is being ended is no result, since a signal may have cut its training short,
        unless it had just finished.
        """
        outcome = attempts.outcome_in(held.folder) if ended.reason in (None, "cancelled", "lost") else None
        if outcome is not None and (ended.reason is None or outcome.status == "ok"):
            return Ending(outcome, True, ended.left_behind)
        killed = deaths.outcome_of(
            job,
            ended,
            held.folder,
            started_at=held.started_at,
            attempt=held.attempt,
            provenance=dict(self.provenance),
        )
        return Ending(killed, False, ended.left_behind)

    def publish(self, held: Held, ending: Ending) -> Outcome:
        """Put an outcome into the spool, with all that the scheduler knows; returns what is there then.

        A job that somebody cancelled keeps an outcome that it had before.
        """
        outcome = ending.outcome
        if outcome.status == "interrupted":
            before = attempts.outcome_in(spool.job_folder(self.results, held.id))
            if before is not None:
                return before
        notes = []
        if not ending.written:
            notes.append(f"{outcome.status}: {outcome.error.message if outcome.error else ''}")
        if held.tries:
            outcome.provenance["retried"] = [earlier.data() for earlier in held.tries]
            notes.append(f"this is attempt {outcome.attempts}; before it: {'; '.join(map(str, held.tries))}")
        if ending.left_behind:
            outcome.provenance["left_behind"] = ending.left_behind
            notes.append(f"processes that the job left behind were killed: {ending.left_behind}")
        if notes:
            _note(held.folder, notes)
            spool.write_outcome(held.folder, outcome)
        held.claim.publish()
        return outcome

    def publish_unstarted(self, job: Job, held: Held) -> Outcome:
        """The outcome of a job that somebody cancelled before it started, or between two tries."""
        held.claim.clear()
        return self.publish(held, self.ending(job, held, Ended(job.id, 0.0, reason="cancelled")))

    def publish_without_teacher(self, job: Job, held: Held, teacher: Held, ended: Ended) -> Outcome:
        """The outcome of a job whose teacher could not be made, with the log of where that was tried."""
        folder = held.claim.clear()
        outcome = deaths.without_teacher(
            job,
            ended,
            teacher.folder,
            started_at=teacher.started_at,
            attempt=held.attempt,
            provenance=dict(self.provenance),
        )
        source = teacher.folder / spool.LOG
        if source.exists():
            shutil.copyfile(source, folder / spool.LOG)
        held.tries = list(teacher.tries)
        return self.publish(held, Ending(outcome, False))


def _note(folder: Path, lines: Iterable[str]) -> None:
    """Add lines of the scheduler to a job's log."""
    with (folder / spool.LOG).open("a", encoding="utf-8") as file:
        file.writelines(f"[kdbench] {line}\n" for line in lines)


def stopped_by(error: OSError, results: Path) -> UsageError:
    """What to tell a person whose run an error of the system ends."""
    what = "results cannot be written any more" if error.errno in UNWRITABLE else "the run cannot go on"
    hint = "what is finished is kept; the same command goes on from there"
    return UsageError(f"{what}: {error.strerror or error}", place=str(results), hint=hint)
