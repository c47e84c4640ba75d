"""What a run came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from kdbench.errors import UsageError
from kdbench.job import Job, Outcome, Run, Status
from kdbench.store import spool


@dataclass
class RunResult:
    """What a run came to."""

    run: Run
    statuses: dict[str, Status]
    """Of the jobs of the plan that have an outcome, by id."""
    signal: int | None = None
    """Number of the signal that interrupted the run; of Ctrl-C where ``kdbench cancel`` did."""

    @property
    def left(self) -> list[Job]:
        """Jobs of this run without an outcome, or with one that says no more than that they were interrupted."""
        todo = set(self.run.todo)
        return [
            job for job in self.run.jobs if job.id in todo and self.statuses.get(job.id, "interrupted") == "interrupted"
        ]

    @property
    def failed(self) -> list[Job]:
        """Jobs of the plan, done now or before, that ended without a result; interrupted ones are left instead."""
        return [job for job in self.run.jobs if self.statuses.get(job.id, "ok") not in ("ok", "interrupted")]

    @property
    def outcomes(self) -> Outcomes:
        """The outcomes of the plan's jobs, read from the spool when they are looked at."""
        return Outcomes(self.run.results, [job.id for job in self.run.jobs if job.id in self.statuses])

    @property
    def exit_code(self) -> int:
        """0: every job of the plan is ok; 1: some are not; 128 + signal (130 for Ctrl-C): interrupted."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed or self.left else 0

    def of(self, suite: str) -> RunResult:
        """The part of one suite of the run. Raises ``KeyError`` for a suite that the run does not have."""
        ids = self.run.suites[suite]
        mine = set(ids)
        run = self.run.model_copy(
            update={
                "suites": {suite: ids},
                "jobs": [job for job in self.run.jobs if job.id in mine],
                "todo": [id for id in self.run.todo if id in mine],
            }
        )
        return RunResult(run, {id: status for id, status in self.statuses.items() if id in mine}, self.signal)


class Outcomes(Sequence[Outcome]):
    """Outcomes of a spool, read when they are looked at: ten thousand of them need not be in memory."""

    def __init__(self, results: Path, ids: Sequence[str]) -> None:
        self.results = results
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Outcomes: ...
    def __getitem__(self, index: int | slice) -> Outcome | Outcomes:
        if isinstance(index, slice):
            return Outcomes(self.results, self.ids[index])
        folder = spool.job_folder(self.results, self.ids[index])
        outcome = spool.read_outcome(folder)
        if outcome is None:
            raise UsageError("the outcome was removed during the run", place=str(folder))
        return outcome

    def __iter__(self) -> Iterator[Outcome]:
        return (self[index] for index in range(len(self)))
