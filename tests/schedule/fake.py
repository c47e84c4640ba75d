"""An executor without processes, whose time passes only when the loop waits: whole runs in milliseconds.

    clock = Clock()
    executor = FakeExecutor(Capacity(4), clock, lambda work: Does(seconds=work.job.seed))
    result = fake_loop(tmp_path, jobs, executor).go()

``FakeExecutors`` contributes one to a whole run under the name ``fake``.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from kdbench.discovery.extensions import new_manager
from kdbench.hookspecs import hookimpl
from kdbench.job import Failure, Job, Outcome, Run, Status
from kdbench.schedule import attempts
from kdbench.schedule.events import Events
from kdbench.schedule.executor import Ended, Event, Progress, Resized, Started, Usage, Work
from kdbench.schedule.loop import Loop
from kdbench.schedule.packing import TINY, Capacity, Demand, never_fits
from kdbench.store import spool
from tests.helpers.outcomes import START, make_outcome


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Does:
    """What a piece of work does, and how it ends."""

    seconds: float = 1.0
    status: Status | None = "ok"
    """Of the outcome that it writes; None: it writes none."""
    error: Failure = field(default_factory=lambda: Failure(type="RuntimeError", message="planted"))
    """Of an outcome that is not ok."""
    ended: Mapping[str, Any] = field(default_factory=lambda: {"code": 0})
    """What its end says beside the time."""
    steps: int = 0
    """How often it reports progress and usage, evenly over its time."""
    log: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    """Meters of its outcome."""
    stubborn: float = 0.0
    """Seconds that it takes to end after it was asked to."""


@dataclass
class Ran:
    """One start of a piece of work, for tests to look at."""

    work: Work
    started: float
    ended: float | None = None


class FakeExecutor:
    """Runs nothing. Complains (``AssertionError``) where the loop breaks its word: slots given twice, work started
    twice or in a folder that holds something."""

    def __init__(
        self,
        capacity: Capacity,
        clock: Clock,
        does: Callable[[Work], Does] = lambda work: Does(),
    ) -> None:
        self.clock = clock
        self.does = does
        self.ran: list[Ran] = []
        self.closed = False
        self.cancelled: list[str] = []
        self._capacity = capacity
        self._free = capacity
        self._resized = False
        self._running: dict[str, Ran] = {}
        self._agenda: list[tuple[float, int, Callable[[], Event | None]]] = []
        self._number = count()

    # --- what the loop calls ------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def refuses(self, demand: Demand) -> str | None:
        return never_fits(demand, self._capacity)

    def submit(self, work: Work) -> None:
        assert not self.closed
        assert work.id not in self._running, f"{work.id} runs already"
        assert [path.name for path in work.folder.iterdir()] in ([], ["checkpoint"])
        self._free = self._free.take(work.slot)
        if not self._resized:  # afterwards it may be less than nothing for a while
            assert_within(self._free)
        ran = Ran(work, self.clock.now)
        self.ran.append(ran)
        self._running[work.id] = ran
        does = self.does(work)
        self.at(0.0, lambda: self._live(ran, Started(work.id, pid=len(self.ran))))
        for step in range(1, does.steps + 1):
            after = does.seconds * step / (does.steps + 1)
            self.at(after, lambda step=step: self._live(ran, Progress(work.id, step, does.steps, {"loss": 1 / step})))
            self.at(after, lambda step=step: self._live(ran, Usage(work.id, {"rss_bytes": 2.0**20 * step})))
        self.at(does.seconds, lambda: self._end(ran, does, dict(does.ended)))

    def poll(self, timeout: float) -> list[Event]:
        """The next thing that happens, and all that happen with it; time passes until then."""
        assert not self.closed
        until = self.clock.now + timeout
        events: list[Event] = []
        while not events and self._agenda and self._agenda[0][0] <= until:
            now = self._agenda[0][0]
            self.clock.now = max(self.clock.now, now)
            while self._agenda and self._agenda[0][0] <= now:
                event = heapq.heappop(self._agenda)[2]()
                if event is not None:
                    events.append(event)
        if not events:
            self.clock.now = max(self.clock.now, until)
        return events

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        ran = self._running.get(id)
        if ran is not None:
            does = self.does(ran.work)
            self.at(does.stubborn, lambda: self._end(ran, Does(status=None), {"reason": "cancelled"}))

    def close(self) -> None:
        self.closed = True
        self._running.clear()

    # --- what tests call ----------------------------------------------------------------------------------------------

    def at(self, after: float, happens: Callable[[], Any]) -> None:
        """Let something happen ``after`` seconds from now; an event that it returns reaches the loop."""
        heapq.heappush(self._agenda, (self.clock.now + after, next(self._number), happens))

    def resize(self, capacity: Capacity, *lost: str) -> None:
        """A machine comes, or goes with the work (``lost``) that ran on it."""
        self._capacity, self._resized = capacity, True
        self._free = capacity
        for ran in self._running.values():
            self._free = self._free.take(ran.work.slot)
        for id in lost:
            ran = self._running[id]
            self.at(0.0, lambda ran=ran: self._end(ran, Does(status=None), {"reason": "lost", "message": "gone"}))
        self.at(0.0, lambda: Resized(capacity))

    @property
    def running(self) -> list[str]:
        """Ids of what runs now."""
        return list(self._running)

    def seeds(self) -> list[int]:
        """Seeds of the jobs in the order in which they started: a short name for them."""
        return [ran.work.job.seed for ran in self.ran if ran.work.kind == "job"]

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _live(self, ran: Ran, event: Event) -> Event | None:
        return event if self._running.get(ran.work.id) is ran else None

    def _end(self, ran: Ran, does: Does, ended: dict[str, Any]) -> Ended | None:
        work = ran.work
        if self._running.get(work.id) is not ran:
            return None
        del self._running[work.id]
        self._free = self._free.give(work.slot)
        ran.ended = self.clock.now
        (work.folder / spool.LOG).write_text(does.log)
        if does.status is not None and work.kind == "job":
            spool.write_outcome(work.folder, outcome_of(work, does, ran.started, ran.ended))
        return Ended(work.id, ran.ended - ran.started, **ended)


def outcome_of(work: Work, does: Does, started: float, ended: float) -> Outcome:
    """What a job writes that ends by itself."""
    outcome = make_outcome(work.job, 0.5, status=does.status or "ok", cost=does.cost)
    outcome.started_at = START + timedelta(seconds=started)
    outcome.finished_at = START + timedelta(seconds=ended)
    outcome.attempts = work.attempt
    if outcome.error is not None:
        outcome.error = does.error
    return outcome


def assert_within(free: Capacity) -> None:
    """Nothing is given away that is not there."""
    assert free.cpus >= -TINY, free
    assert free.memory >= 0, free
    for device in free.gpus:
        assert device.share >= -TINY, free
        assert device.memory >= 0, free


# --- whole runs -------------------------------------------------------------------------------------------------------


class Told:
    """Event hooks that remember what they were told, one line each: ``started 3 2`` is seed 3, second attempt."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.outcomes: list[Outcome] = []

    @hookimpl
    def kdbench_job_started(self, job: Job, place: Any) -> None:
        self.said.append(f"started {job.seed} {place.attempt}")

    @hookimpl
    def kdbench_job_progress(self, job: Job, step: int) -> None:
        self.said.append(f"step {job.seed} {step}")

    @hookimpl
    def kdbench_job_usage(self, job: Job, usage: Mapping[str, float]) -> None:
        self.said.append(f"usage {job.seed} {usage['rss_bytes']:g}")

    @hookimpl
    def kdbench_job_finished(self, job: Job, outcome: Outcome) -> None:
        self.said.append(f"{outcome.status} {job.seed}")
        self.outcomes.append(outcome)

    @hookimpl
    def kdbench_run_finished(self, outcomes: Sequence[Outcome]) -> None:
        self.said.append(f"finished {len(outcomes)}")


class Wishes:
    """Requests of people: ids, or None for the whole run."""

    def __init__(self) -> None:
        self.posted: list[str | None] = []

    def new(self) -> list[str | None]:
        posted, self.posted = self.posted, []
        return posted


def fake_loop(
    results: Path,
    jobs: Sequence[Job],
    executor: FakeExecutor,
    *,
    suites: Mapping[str, Sequence[Job]] | None = None,
    todo: Sequence[Job] | None = None,
    done: Mapping[str, Status] | None = None,
    hooks: Sequence[object] = (),
    **more: Any,
) -> Loop:
    """A loop over jobs (all of them ``todo`` where nothing is said) whose results are in a folder of their own."""
    attempts.require_writable(results)
    manager = new_manager()
    for number, hook in enumerate(hooks):
        manager.register(hook, f"hook {number}")
    planned = suites or {"suite": jobs}
    run = Run(
        id="run",
        suites={name: [job.id for job in members] for name, members in planned.items()},
        results=results,
        jobs=list(jobs),
        todo=[job.id for job in (jobs if todo is None else todo)],
    )
    return Loop(run, executor, Events(manager, run), done=done or {}, clock=executor.clock, **more)


@dataclass(eq=False)
class FakeExecutors:
    """An extension with the executor ``fake``, for runs that are planned from a suite."""

    capacity: Capacity = field(default_factory=lambda: Capacity(2.0, (), 1 << 32))
    does: Callable[[Work], Does] = lambda work: Does()
    made: list[FakeExecutor] = field(default_factory=list)

    @hookimpl
    def kdbench_executors(self) -> Mapping[str, Callable[..., FakeExecutor]]:
        return {"fake": self._make}

    def _make(self, context: Any, **options: Any) -> FakeExecutor:
        self.made.append(FakeExecutor(self.capacity, Clock(), self.does))
        return self.made[-1]


def statuses(results: Path) -> dict[str, str]:
    """Status of every job of a spool, as it is on the disk."""
    return {path.parent.name: json.loads(path.read_text())["status"] for path in results.glob("jobs/*/outcome.json")}
