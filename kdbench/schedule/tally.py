"""How far a run is: jobs that run and how fast, jobs that are done, and how long the rest may take."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from kdbench.job import Job, Outcome, Place, Run

Kind = tuple[str, str]
"""Jobs of one kind take about as long: the digest of the task and the method."""

RATE_OVER = 16
"""Reports of progress, at most two a second, that the steps per second are taken over."""


def title(job: Job) -> str:
    """A job in a few words: task, method, seed."""
    return f"{job.task}@{job.scale}  {job.label or job.method.partition('/')[2]}  seed {job.seed}"


def kind_of(job: Job) -> Kind:
    """What decides how long a job takes."""
    return job.spec_digest, job.method


@dataclass
class Running:
    """A job that runs; times are of a clock that only goes forward."""

    job: Job
    since: float
    place: Place | None = None
    step: int = 0
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    usage: Mapping[str, float] = field(default_factory=dict)
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_OVER))

    def progress(self, now: float, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Note what the job reported."""
        if step < self.step:  # another training of the same job: the old pace says nothing about it
            self._marks.clear()
        self.step, self.total, self.metrics = step, total if total is not None else self.total, metrics
        self._marks.append((now, step))

    @property
    def rate(self) -> float | None:
        """Steps per second over the last reports; None before there are two."""
        if len(self._marks) < 2:
            return None
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return (after - before) / (last - first) if last > first else None

    def projected(self, now: float) -> float | None:
        """Seconds that the job takes in all if it goes on as it does; None before its first step."""
        if not self.step or not self.total:
            return None
        return (now - self.since) * max(1.0, self.total / self.step)


class Workers:
    """The jobs that run now, by id."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.running: dict[str, Running] = {}

    def started(self, job: Job, place: Place | None = None) -> None:
        """A worker took the job, for the first time or once more."""
        self.running[job.id] = Running(job, self.clock(), place)

    def progress(self, job: Job, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """A job said how far it is; one that does not run is ignored, here and below."""
        running = self.running.get(job.id)
        if running is not None:
            running.progress(self.clock(), step, total, metrics)

    def usage(self, job: Job, usage: Mapping[str, float]) -> None:
        """A job's processes were looked at."""
        running = self.running.get(job.id)
        if running is not None:
            running.usage = usage

    def ended(self, job: Job) -> None:
        """A worker is done with the job."""
        self.running.pop(job.id, None)


class Pace:
    """How long jobs take: measured in this run, else expected from past outcomes, else projected from their steps."""

    def __init__(self, expected: Mapping[Kind, float] | None = None) -> None:
        self._expected = dict(expected or {})
        self._seconds: Counter[Kind] = Counter()
        self._ended: Counter[Kind] = Counter()

    def add(self, kind: Kind, seconds: float) -> None:
        """A job of this kind took so long."""
        self._seconds[kind] += max(0.0, seconds)  # type: ignore[assignment]
        self._ended[kind] += 1

    def guesses(self, kinds: Iterable[Kind], running: Iterable[Running], now: float) -> dict[Kind, float]:
        """Seconds that a job of each kind takes; a kind of which nothing is known counts as the mean of the others.

        Empty where nothing is known of any job.
        """
        # a copy: a display asks from a thread of its own
        known = self._expected | {kind: self._seconds[kind] / count for kind, count in list(self._ended.items())}
        projected: dict[Kind, list[float]] = {}
        for job in running:
            seconds = job.projected(now)
            if seconds is not None and kind_of(job.job) not in known:
                projected.setdefault(kind_of(job.job), []).append(seconds)
        known |= {kind: sum(several) / len(several) for kind, several in projected.items()}
        if not known:
            return {}
        ended = self._ended.total()
        mean = self._seconds.total() / ended if ended else sum(known.values()) / len(known)
        return {kind: known.get(kind, mean) for kind in kinds}


class Tally:
    """Jobs that are left, and what came of those that have ended."""

    def __init__(self, todo: Iterable[Job]) -> None:
        self.left = Counter(kind_of(job) for job in todo)
        self.statuses: Counter[str] = Counter()

    def add(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""
        self.left[kind_of(job)] -= 1
        self.statuses[outcome.status] += 1

    @property
    def n_left(self) -> int:
        """Jobs that have not ended, running ones included."""
        return self.left.total()

    @property
    def n_cancelled(self) -> int:
        """Jobs that were ended on request: the next run does them again."""
        return self.statuses["interrupted"]

    @property
    def n_done(self) -> int:
        """Jobs that have ended by themselves or with a failure."""
        return self.statuses.total() - self.n_cancelled

    @property
    def n_failed(self) -> int:
        return self.n_done - self.statuses["ok"]

    def work(self, pace: Pace, running: Collection[Running], now: float) -> tuple[float, float] | None:
        """Seconds that the rest takes one job after the other, and that the longest of its running jobs still takes.

        ``running`` are those of the jobs that run. None while nothing is known about how long such jobs take.
        """
        guesses = pace.guesses(self.left, running, now)
        if not guesses and self.n_left:
            return None
        waiting = self.left - Counter(kind_of(job.job) for job in running)
        total = sum(count * guesses[kind] for kind, count in waiting.items())
        longest = 0.0
        for job in running:
            seconds = job.projected(now)
            rest = max(0.0, (guesses[kind_of(job.job)] if seconds is None else seconds) - (now - job.since))
            total, longest = total + rest, max(longest, rest)
        return total, longest


class RunTally:
    """The tallies of a run: of all its jobs, and of each of its suites, which may share jobs."""

    def __init__(self, run: Run, expected: Mapping[str, float | None] | None = None) -> None:
        """``expected``: seconds by the id of the job, as past outcomes tell; unknown ones are None or left out."""
        todo = set(run.todo)
        jobs = {job.id: job for job in run.jobs if job.id in todo}
        past: dict[Kind, float] = {}
        for id, seconds in (expected or {}).items():
            if seconds is not None and id in jobs:
                past.setdefault(kind_of(jobs[id]), seconds)
        self.slots = max(1, run.workers)
        self.pace = Pace(past)
        self.total = Tally(jobs.values())
        self.suites = {name: Tally(jobs[id] for id in ids if id in jobs) for name, ids in run.suites.items()}
        self._suites_of: dict[str, tuple[str, ...]] = {}
        for name, ids in run.suites.items():
            for id in ids:
                if id in jobs:
                    self._suites_of[id] = (*self._suites_of.get(id, ()), name)

    def suites_of(self, job: Job) -> tuple[str, ...]:
        """The suites that asked for this job."""
        return self._suites_of.get(job.id, ())

    def add(self, job: Job, outcome: Outcome) -> None:
        """A job has ended, here or in another run of the same folder."""
        if outcome.status != "interrupted":  # it would have taken longer
            self.pace.add(kind_of(job), outcome.seconds)
        self.total.add(job, outcome)
        for name in self.suites_of(job):
            self.suites[name].add(job, outcome)

    def eta(self, running: Collection[Running], now: float) -> float | None:
        """Seconds until the last job ends; None while nothing is known about how long such jobs take."""
        work = self.total.work(self.pace, running, now)
        if work is None:
            return None
        return max(work[0] / min(self.slots, max(1, self.total.n_left)), work[1])

    def etas(self, running: Collection[Running], now: float) -> dict[str, float | None]:
        """Seconds until each suite's last job ends, where the suites share the slots fairly."""
        found: dict[str, float | None] = dict.fromkeys(self.suites)
        works: dict[str, tuple[float, float]] = {}
        for name, tally in self.suites.items():
            work = tally.work(self.pace, [job for job in running if name in self.suites_of(job.job)], now)
            if work is not None:
                works[name] = work
        whole = self.eta(running, now)
        for name, seconds in shared_out({name: total for name, (total, _) in works.items()}, self.slots).items():
            own = max(seconds, works[name][1])
            # what suites have in common is done once: none takes longer than everything
            found[name] = own if whole is None else min(own, whole)
        return found


def shared_out(work: Mapping[str, float], slots: int) -> dict[str, float]:
    """When each of several bodies of work is done, if those that are left always share the slots equally.

    ``work``: seconds on one slot. As if it could be cut at will: a lower bound for work that is in pieces.
    """
    found: dict[str, float] = {}
    clock = done = 0.0
    for position, (name, seconds) in enumerate(sorted(work.items(), key=lambda item: item[1])):
        clock += (seconds - done) * (len(work) - position) / slots
        done = seconds
        found[name] = clock
    return found
