"""What waits when a run begins: every job with what it occupies and how long it may take, and the teachers first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kdbench.errors import UsageError
from kdbench.job import Job, Resources, Run
from kdbench.schedule.learning import room_of
from kdbench.schedule.order import Item, Preparation
from kdbench.schedule.packing import Capacity, Demand

if TYPE_CHECKING:
    from kdbench.history import Expectation


def line_up(
    run: Run,
    capacity: Capacity,
    refuses: Callable[[Demand], str | None],
    *,
    preparations: Sequence[Preparation],
    waits: Mapping[str, str],
    expected: Mapping[str, Expectation],
) -> tuple[list[Item], dict[str, list[Item]]]:
    """What can start at once, and by the id of a preparation what waits for it.

    ``waits`` says by the id of a job which preparation it waits for, ``expected`` what past outcomes say about it.
    Raises ``UsageError`` for each kind of job that ``refuses`` says can never run.
    """
    rooms: dict[tuple[Resources, Expectation | None], tuple[Demand, int]] = {}
    problems: dict[str, None] = {}

    def room(job: Job, expectation: Expectation | None) -> tuple[Demand, int]:
        key = (job.resources, expectation)
        if key not in rooms:
            demand, limit, reason = room_of(job.resources, capacity, expectation, refuses)
            rooms[key] = demand, limit
            if reason is not None:
                problems[f"{job.label or job.method} on {job.task} {reason}"] = None
        return rooms[key]

    todo = set(run.todo)
    suites = _suites_of(run, todo)
    ready: list[Item] = []
    waiting: dict[str, list[Item]] = {}
    for job in run.jobs:
        if job.id in todo:
            expectation = expected.get(job.id)
            demand, limit = room(job, expectation)
            seconds = None if expectation is None else expectation.seconds
            item = Item(job.id, job, demand, suites[job.id], seconds, limit=limit)
            (waiting.setdefault(waits[job.id], []) if job.id in waits else ready).append(item)
    for preparation in preparations:
        jobs = waiting.get(preparation.id)
        if jobs:
            demand, limit = room(preparation.job, None)  # what its jobs took says nothing of their teacher
            names = tuple(dict.fromkeys(suite for item in jobs for suite in item.suites))
            item = Item(preparation.id, preparation.job, demand, names, preparation=preparation, limit=limit)
            item.awaited = len(jobs)
            ready.append(item)
    if problems:
        raise UsageError("; ".join(problems), hint="change resources in the suite")
    return ready, waiting


def _suites_of(run: Run, ids: set[str]) -> dict[str, tuple[str, ...]]:
    """The suites that each of the jobs is for; equal ones are one object."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    found: dict[str, tuple[str, ...]] = {}
    for suite, members in run.suites.items():
        for id in members:
            if id in ids:
                names = (*found.get(id, ()), suite)
                found[id] = known.setdefault(names, names)
    return found
