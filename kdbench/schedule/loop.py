"""The loop of a run: takes the jobs of a plan to their outcomes.

It decides what runs next (``packing``), hands it to an executor, puts what comes back into the spool (``attempts``)
and tells the hooks (``events``). It holds no outcomes, only their statuses.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, overload

from kdbench.errors import UsageError
from kdbench.job import Job, Outcome, Place, Run, Status, utcnow
from kdbench.schedule import attempts, deaths
from kdbench.schedule.attempts import Claim
from kdbench.schedule.events import Events
from kdbench.schedule.executor import Ended, Event, Executor, Progress, Resized, Started, Usage, Work
from kdbench.schedule.interrupts import Interrupts
from kdbench.schedule.packing import Demand, Slot, demand_of, pack
from kdbench.spec import digest
from kdbench.store import spool

PAUSE = 0.25
"""Seconds that the loop waits at most for something to happen: how long Ctrl-C may take to be noticed."""
ELSEWHERE = 0.5
"""Seconds between two looks at jobs that another run has."""
STOPPING = 5.0
"""Seconds that running jobs have to end after an interruption."""
TEACHER_TIME = 3600.0
"""Seconds that making a teacher may take at least, whatever the time of a job."""


@dataclass(frozen=True)
class Preparation:
    """Teachers to make before some jobs can start."""

    job: Job
    """One of those jobs: any will do."""
    needs: tuple[str, ...]
    """Names of the cache entries."""
    title: str = ""

    @property
    def id(self) -> str:
        return f"teacher-{digest(sorted(self.needs))}"


@dataclass
class RunResult:
    """What a run came to."""

    run: Run
    statuses: dict[str, Status]
    """Of the jobs of the plan that have an outcome, by id."""
    signal: int | None = None
    """Number of the signal that interrupted the run."""
    problems: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[Job]:
        """Jobs of this run without an outcome."""
        todo = set(self.run.todo)
        return [job for job in self.run.jobs if job.id in todo and job.id not in self.statuses]

    @property
    def failed(self) -> list[Job]:
        """Jobs of the plan, done now or before, whose outcome is not ``ok``."""
        return [job for job in self.run.jobs if self.statuses.get(job.id, "ok") != "ok"]

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


@dataclass
class _Item:
    """Work that waits for a slot."""

    id: str
    job: Job
    demand: Demand
    preparation: Preparation | None = None
    overtaken: int = 0


@dataclass
class _Running:
    item: _Item
    slot: Slot
    claim: Claim
    attempt: int
    started_at: datetime


class Loop:
    """One run. ``go`` is called once."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        events: Events,
        *,
        done: Mapping[str, Status],
        preparations: Sequence[Preparation] = (),
        waits: Mapping[str, str] | None = None,
        present: Callable[[str], bool] = lambda need: False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """``done`` are the outcomes of the plan's jobs before the run, those that are made again included.

        ``waits`` says by the id of a job which of the ``preparations`` (by id) it waits for; ``present(need)``
        whether a cache entry exists by now. Raises ``UsageError`` where a job can never run on this executor.
        """
        self.run = run
        self.executor = executor
        self.events = events
        self.done = dict(done)
        self.present = present
        self.provenance = dict(provenance or {})
        self.interrupts = Interrupts()
        todo = set(run.todo)
        self.free = executor.capacity
        self.baseline = spool.stamps(run.results, [id for id in run.todo if id in self.done])
        self.statuses: dict[str, Status] = {id: status for id, status in self.done.items() if id not in todo}
        self.ready: list[_Item] = []
        self.waiting: dict[str, list[_Item]] = {}
        self.elsewhere: dict[str, _Item] = {}
        self.running: dict[str, _Running] = {}
        self._next_look = 0.0
        self._stop_at: float | None = None
        self._fill(todo, preparations, waits or {})

    def _fill(self, todo: set[str], preparations: Sequence[Preparation], waits: Mapping[str, str]) -> None:
        demands: dict[Any, Demand] = {}
        problems: dict[str, None] = {}
        items: list[_Item] = []
        for job in self.run.jobs:
            if job.id not in todo:
                continue
            asked = job.resources
            demand = demands.get(asked)
            if demand is None:
                demand = demand_of(asked, self.executor.capacity)
                demands[asked] = demand
                reason = self.executor.refuses(demand)
                if reason is not None:
                    problems[f"{job.label or job.method} on {job.task} {reason}"] = None
            item = _Item(job.id, job, demand)
            if job.id in waits:
                self.waiting.setdefault(waits[job.id], []).append(item)
            else:
                items.append(item)
        if problems:
            raise UsageError("; ".join(problems), hint="change resources in the suite")
        first = [_Item(p.id, p.job, demands[p.job.resources], p) for p in preparations if p.id in self.waiting]
        self.ready = [*first, *items]

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self) -> RunResult:
        """Run until nothing is left or an interruption, and return what came of it."""
        result = RunResult(self.run, self.statuses)
        with self.interrupts:
            try:
                self.events.run_started()
                while self._unfinished():
                    self._check_interruption()
                    if self._stop_at is None:
                        self._launch()
                        self._look_elsewhere()
                    for event in self.executor.poll(PAUSE):
                        self._handle(event)
            except KeyboardInterrupt:
                self.interrupts.number = self.interrupts.number or signal.SIGINT
            except OSError as error:
                raise UsageError(
                    f"results cannot be written any more: {error.strerror or error}",
                    place=str(self.run.results),
                    hint="what is finished is kept; the same command goes on from there",
                ) from error
            finally:
                result.signal = self.interrupts.number
                self.executor.close()
                for running in self.running.values():
                    running.claim.release()
                attempts.settle(self.run.results)
                self.events.run_finished(result.outcomes)
        return result

    def _unfinished(self) -> bool:
        if self._stop_at is not None:
            return bool(self.running) and time.monotonic() < self._stop_at
        return bool(self.ready or self.waiting or self.elsewhere or self.running)

    def _check_interruption(self) -> None:
        if self.interrupts.number is not None and self._stop_at is None:
            self._stop_at = time.monotonic() + STOPPING
            for id in self.running:
                self.executor.cancel(id)

    def _launch(self) -> None:
        """Start what fits, until nothing more does."""
        while self.ready:
            chosen = pack(((item.demand, item.overtaken) for item in self.ready), self.free)
            if not chosen:
                return
            last = chosen[-1][0]
            positions = {position for position, _ in chosen}
            items = [(self.ready[position], slot) for position, slot in chosen]
            for position in range(last):
                if position not in positions:
                    self.ready[position].overtaken += 1
            self.ready = [item for i, item in enumerate(self.ready[: last + 1]) if i not in positions] + self.ready[
                last + 1 :
            ]
            for item, slot in items:
                self._start(item, slot)

    def _start(self, item: _Item, slot: Slot) -> None:
        claim = attempts.claim(self.run.results, item.id) if not self._shares_teacher(item) else None
        if claim is None:
            self.elsewhere[item.id] = item
            return
        if self._is_done(item):
            claim.release()
            return
        attempt = self._attempt(item)
        self.running[item.id] = _Running(item, slot, claim, attempt, utcnow())
        self.free = self.free.take(slot)
        timeout = item.job.timeout if item.preparation is None else max(TEACHER_TIME, item.job.timeout)
        kind = "job" if item.preparation is None else "prepare"
        work = Work(
            item.id,
            kind,  # type: ignore[arg-type]
            item.job,
            claim.clear(),
            slot,
            timeout,
            heartbeat=item.job.heartbeat,
            memory_limit=0 if slot.gpus else slot.memory,
            attempt=attempt,
        )
        self.executor.submit(work)

    def _attempt(self, item: _Item) -> int:
        """Number of the attempt that follows the job's earlier outcome."""
        if item.id not in self.done:
            return 1
        before = attempts.outcome_in(spool.job_folder(self.run.results, item.id))
        return 1 if before is None else before.attempts + 1

    def _shares_teacher(self, item: _Item) -> bool:
        """Whether a teacher of this preparation is being made by another one, for which it can only wait."""
        if item.preparation is None:
            return False
        being_made = {
            need for other in self.running.values() if other.item.preparation for need in other.item.preparation.needs
        }
        return not being_made.isdisjoint(item.preparation.needs)

    def _is_done(self, item: _Item) -> bool:
        """Whether another run did it since the plan was made; takes note of it."""
        if item.preparation is not None:
            if all(self.present(need) for need in item.preparation.needs):
                self._prepared(item.preparation)
                return True
            return False
        now = attempts.stamp(self.run.results, item.id)
        if now is None or now == self.baseline.get(item.id):
            return False
        outcome = attempts.outcome_in(spool.job_folder(self.run.results, item.id))
        if outcome is None:
            return False
        self._finished(item.job, outcome)
        return True

    def _look_elsewhere(self) -> None:
        """Jobs that another run had: take note of their outcomes, or take over where it gave them up."""
        now = time.monotonic()
        if not self.elsewhere or now < self._next_look:
            return
        self._next_look = now + ELSEWHERE
        waiting, self.elsewhere = self.elsewhere, {}
        for item in waiting.values():
            if not self._is_done(item):
                claim = attempts.claim(self.run.results, item.id)
                if claim is None:
                    self.elsewhere[item.id] = item
                else:
                    claim.release()
                    self.ready.insert(0, item)

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Resized):
            return
        running = self.running.get(event.id)
        if running is None:
            return
        item = running.item
        if isinstance(event, Ended):
            self._ended(running, event)
        elif item.preparation is not None:
            return
        elif isinstance(event, Started):
            place = Place(pid=event.pid, host=event.host, devices=event.devices, attempt=running.attempt)
            self.events.job_started(item.job, place)
        elif isinstance(event, Progress):
            self.events.job_progress(item.job, event.step, event.total, event.metrics)
        elif isinstance(event, Usage):
            self.events.job_usage(item.job, event.values)

    def _ended(self, running: _Running, ended: Ended) -> None:
        item, claim = running.item, running.claim
        try:
            if item.preparation is not None:
                self._preparation_ended(running, ended)
            else:
                self._job_ended(running, ended)
        finally:
            del self.running[item.id]
            self.free = self.free.give(running.slot)
            claim.release()

    def _job_ended(self, running: _Running, ended: Ended) -> None:
        job, folder = running.item.job, running.claim.folder
        # what a job writes while it is being ended is no result: a signal may have cut its training short
        outcome = attempts.outcome_in(folder) if ended.reason in (None, "cancelled", "lost") else None
        written = outcome is not None
        if outcome is None:
            if ended.reason == "cancelled" and self._stop_at is not None:
                return  # interrupted: as if it had never started
            outcome = deaths.outcome_of(
                job,
                ended,
                folder,
                started_at=running.started_at,
                attempt=running.attempt,
                provenance=self.provenance,
            )
            _note(folder, f"{outcome.status}: {outcome.error.message if outcome.error else ''}")
        if ended.left_behind:
            outcome.provenance["left_behind"] = ended.left_behind
            _note(folder, f"processes that the job left behind were killed: {ended.left_behind}")
        if not written or ended.left_behind:
            spool.write_outcome(folder, outcome)
        running.claim.publish()
        self._finished(job, outcome)

    def _preparation_ended(self, running: _Running, ended: Ended) -> None:
        preparation = running.item.preparation
        assert preparation is not None
        if ended.code == 0:
            self._prepared(preparation)
            return
        if ended.reason == "cancelled" and self._stop_at is not None:
            return
        for item in self.waiting.pop(preparation.id, []):
            claim = attempts.claim(self.run.results, item.id)
            if claim is None:
                self.elsewhere[item.id] = item
                continue
            try:
                if self._is_done(item):
                    continue
                folder = claim.clear()
                outcome = deaths.without_teacher(
                    item.job,
                    ended,
                    running.claim.folder,
                    started_at=running.started_at,
                    attempt=self._attempt(item),
                    provenance=self.provenance,
                )
                source = running.claim.folder / spool.LOG
                if source.exists():
                    shutil.copyfile(source, folder / spool.LOG)
                spool.write_outcome(folder, outcome)
                claim.publish()
                self._finished(item.job, outcome)
            finally:
                claim.release()

    def _prepared(self, preparation: Preparation) -> None:
        """The jobs that waited go first, so that what needs a teacher next is found early."""
        self.ready[:0] = self.waiting.pop(preparation.id, [])

    def _finished(self, job: Job, outcome: Outcome) -> None:
        self.statuses[job.id] = outcome.status
        self.events.job_finished(job, outcome)


def _note(folder: Path, text: str) -> None:
    """Add a line of the scheduler to a job's log."""
    with (folder / spool.LOG).open("a", encoding="utf-8") as file:
        file.write(f"[kdbench] {text}\n")
