"""Finished jobs run again: whether the code that is here gives the numbers that are stored."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kdbench.errors import UsageError
from kdbench.job import Job, Outcome
from kdbench.schedule.result import Outcomes, RunResult
from kdbench.schedule.session import Session
from kdbench.spec import TaskSpec
from kdbench.store import spool

MEASURED = ("seconds", "bytes")
"""Meters whose names end so are of the machine, and differ from run to run."""


@dataclass(frozen=True)
class Difference:
    """A number that is not what it was."""

    kind: str
    """``metrics``, ``metrics of its own`` or ``meters``."""
    name: str
    was: float | None
    """None where there was none."""
    now: float | None


@dataclass(frozen=True)
class Comparison:
    """A job, as it is stored and as it came out now."""

    was: Outcome
    now: Outcome | None
    """None where it was not run to its end."""
    numbers: int
    """How many were compared."""
    differences: tuple[Difference, ...]

    @property
    def state(self) -> Literal["same", "differs", "failed", "left"]:
        """``failed``: it gave numbers before and gives none now."""
        if self.now is None or self.now.status == "interrupted":
            return "left"
        if self.now.status != "ok":
            return "failed"
        return "differs" if self.differences else "same"

    @property
    def surroundings(self) -> dict[str, tuple[str, str]]:
        """Processor, Python and packages that are not what they were, then and now."""
        if self.now is None:
            return {}
        then, now = _surroundings(self.was), _surroundings(self.now)
        names = sorted(then.keys() | now.keys())
        return {name: (then.get(name, ""), now.get(name, "")) for name in names if then.get(name) != now.get(name)}


@dataclass(frozen=True)
class Verification:
    """A planned run of jobs that a results folder has."""

    session: Session
    stored: Path
    """The results folder that has them."""
    candidates: int
    """How many of its jobs could have been drawn."""

    def compare(self, result: RunResult) -> list[Comparison]:
        """What came of each job, in the order of the suites. Raises ``UsageError`` for a damaged outcome."""
        specs = {task.digest: task.spec for plan in self.session.plans for task in plan.tasks}
        stored = Outcomes(self.stored, [job.id for job in self.session.run.jobs])
        return [self._compared(was, specs[was.job.spec_digest], result) for was in stored]

    def _compared(self, was: Outcome, spec: TaskSpec, result: RunResult) -> Comparison:
        now = spool.read_outcome(spool.job_folder(result.run.results, was.id))
        if now is None or now.status != "ok":
            return Comparison(was, now, 0, ())
        then, here = repeatable(was, spec), repeatable(now, spec)
        return Comparison(was, now, sum(map(len, then.values())), tuple(differences(then, here)))


def draw_again(session: Session, into: Path, sample: int, draw: int = 0) -> Verification:
    """Draw ``sample`` of the jobs that a planned run found ``ok`` in its results, to run them again in ``into``.

    Jobs are drawn at random, ``draw`` being the seed of that, and from as many methods as possible. A job of another
    version of its method or its task is another job and is not drawn.

    Raises ``UsageError`` with what would stop jobs on this machine, and where there is nothing to draw.
    """
    if session.problems:
        raise UsageError(session.problems)
    stored = session.run.results
    finished = [job for job in session.run.jobs if session.done.get(job.id) == "ok"]
    if not finished:
        message = f"has no finished job of {session.run.suite} as its methods and tasks are now"
        raise UsageError(message, place=str(stored), hint="kdbench plan SUITE shows what is done")
    chosen = {job.id for job in spread(finished, sample, draw)}
    jobs = [job for job in session.run.jobs if job.id in chosen]
    planned = {name: [id for id in ids if id in chosen] for name, ids in session.run.suites.items()}
    run = session.run.model_copy(
        update={
            "suites": {name: ids for name, ids in planned.items() if ids},
            "results": into,
            "jobs": jobs,
            "todo": [job.id for job in jobs],
        }
    )
    plans = tuple(replace(plan, done={}, stale={}) for plan in session.plans)
    again = replace(session, plans=plans, run=run, anew=frozenset(chosen))
    return Verification(again, stored, len(finished))


def spread(jobs: Sequence[Job], number: int, draw: int) -> list[Job]:
    """That many of the jobs, in random order: one of each method, then a second one of each, and so on."""
    shuffled = random.Random(draw).sample(jobs, len(jobs))
    rounds: Counter[str] = Counter()
    turns: list[tuple[int, Job]] = []
    for job in shuffled:
        turns.append((rounds[job.method], job))
        rounds[job.method] += 1
    return [job for _, job in sorted(turns, key=lambda turn: turn[0])[:number]]


def repeatable(outcome: Outcome, spec: TaskSpec) -> dict[str, dict[str, float]]:
    """What the seed decides of an outcome, by kind: ``metrics``, ``metrics of its own`` and ``meters``.

    Neither what a clock has measured is among it nor sizes of memory.
    """
    clocked = {metric.name for metric in spec.all_metrics() if metric.clock}
    return {
        "metrics": {name: value for name, value in outcome.metrics.items() if name not in clocked},
        "metrics of its own": dict(outcome.extra),
        "meters": meters(outcome),
    }


def meters(outcome: Outcome) -> dict[str, float]:
    """What a job spent, without times and sizes of memory."""
    return {name: value for name, value in outcome.cost.items() if not name.endswith(MEASURED)}


def differences(then: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> Iterator[Difference]:
    """The numbers that differ, in the last digit or more; both arguments are of :func:`repeatable`."""
    for kind, numbers in then.items():
        other = now[kind]
        for name in sorted(numbers.keys() | other.keys()):
            was, is_now = numbers.get(name), other.get(name)
            both_undefined = was != was and is_now != is_now
            if was != is_now and not both_undefined:
                yield Difference(kind, name, was, is_now)


def _surroundings(outcome: Outcome) -> dict[str, str]:
    known: dict[str, Any] = outcome.provenance
    return {
        "processor": str(known.get("hardware", {}).get("cpu", "")),
        "python": str(known.get("python", "")),
        **{name: str(version) for name, version in known.get("packages", {}).items()},
    }
