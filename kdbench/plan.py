"""From a suite to jobs: what would run, what is done, what is stale, and how long the rest takes.

Nothing here imports torch or a method. Every parameter and every task is validated once, and the text that an id is
the digest of is put together from parts, so that ten thousand jobs take a fraction of a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cache import Cache
from kdbench.errors import Problem, UsageError, did_you_mean
from kdbench.history import Expectation, History
from kdbench.job import Job, Resources, Status
from kdbench.preflight import preflight
from kdbench.resolve import Asked, PlannedMethod, PlannedTask, Resolver
from kdbench.schedule.packing import TINY
from kdbench.spec import PROTOCOL, canonical_json
from kdbench.suite import Suite

if TYPE_CHECKING:
    from kdbench.registry import Registry


@dataclass(frozen=True)
class TeacherNeed:
    """A cache entry that jobs of a task need before they start."""

    task: str
    title: str
    kind: str
    key: Any
    present: bool


@dataclass
class Plan:
    """What a suite asks for, and how much of it a results folder has."""

    suite: Suite
    jobs: list[Job]
    """By task, then method, then seed; equal work once."""
    done: dict[str, Status]
    """Status of the jobs that have an outcome, by id."""
    stale: dict[str, list[str]]
    """Ids of done jobs whose outcome was made with other code, with the modules of kdbench that differ now."""
    teachers: list[TeacherNeed]
    estimate_seconds: float | None
    """Wall-clock time of what is left, from past outcomes; None where they say nothing about any job that is left."""
    problems: list[Problem]
    """What would stop jobs on this machine."""
    notes: list[Problem] = field(default_factory=list)
    """What is odd but stops nothing: work asked for twice, damaged outcomes."""
    tasks: list[PlannedTask] = field(default_factory=list)
    unknown: int = 0
    """Jobs that are left and that the estimate does not cover."""
    lent: int = 0
    """Jobs that are left and whose time the estimate takes from the results that come with kdbench."""
    slots: int = 1
    """Jobs that run at the same time, which the estimate assumes."""
    expected: dict[str, Expectation] = field(default_factory=dict)
    """What past outcomes say about the time and the memory of each job, by id."""

    @property
    def left(self) -> list[Job]:
        """Jobs without an outcome."""
        return [job for job in self.jobs if job.id not in self.done]

    @property
    def failed(self) -> list[Job]:
        """Jobs with an outcome that is not ``ok``."""
        return [job for job in self.jobs if self.done.get(job.id, "ok") != "ok"]


def make_plan(
    suite: Suite,
    registry: Registry,
    results: Path,
    *,
    seeds: int | Sequence[int] | None = None,
    filter: str | Sequence[str] | None = None,
    claims: bool = False,
    undecided: int | None = None,
    cache: Cache | None = None,
) -> Plan:
    """Resolve a suite against what is installed and what ``results`` has.

    ``seeds`` replaces the suite's: a number of seeds, or the seeds. ``filter`` keeps jobs whose task, method or label
    matches (a glob, or a part of the text); of several filters, all must match. ``claims`` keeps jobs that a claim of
    a card compares, both its sides being in the suite; ``undecided``, of those the jobs of claims that the first so
    many seeds in ``results`` do not decide. Raises ``UsageError`` with every problem of the suite's tasks, methods and
    parameters.
    """
    chosen = _seeds(suite, seeds)
    resolver = Resolver(suite, registry)
    tasks = resolver.tasks()
    cells = resolver.cells(tasks, len(chosen))
    if resolver.problems:
        resolved = {planned.method.key: planned.method for _, planned in cells}
        asked = {Asked.of(suite, task.index, planned.index) for task, planned in cells}
        _, more = preflight(suite, registry, results, [(task.index, task.spec) for task in tasks], resolved, asked)
        raise UsageError(list(dict.fromkeys([*resolver.problems, *more])))
    jobs, notes, asked_by = _jobs(suite, cells, chosen)
    claims = claims or undecided is not None
    if claims:
        jobs = _compared(jobs, registry, results, undecided)
    if filter is not None:
        jobs = _filtered(jobs, [filter] if isinstance(filter, str) else filter, claims)
    if claims or filter is not None:
        kept = {job.spec_digest for job in jobs}
        tasks = [task for task in tasks if task.digest in kept]
    history = History(results, jobs)
    used = {job.method: registry.methods[job.method] for job in jobs}
    asked = {asked_by[job.id] for job in jobs}
    slots, problems = preflight(suite, registry, results, [(task.index, task.spec) for task in tasks], used, asked)
    estimate = history.estimate(slots)
    return Plan(
        suite=suite,
        jobs=jobs,
        done=history.done,
        stale=history.stale(),
        teachers=_teachers(tasks, registry, cache),
        estimate_seconds=estimate.seconds,
        problems=problems,
        notes=notes + history.problems,
        tasks=tasks,
        unknown=estimate.unknown,
        lent=estimate.lent,
        slots=_at_once(jobs, slots),
        expected=history.expected(),
    )


def _seeds(suite: Suite, seeds: int | Sequence[int] | None) -> list[int]:
    if seeds is None:
        return list(suite.seeds)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in chosen):
        raise UsageError(f"seeds are a number of seeds above 0, or whole numbers from 0, but are {seeds!r}")
    return chosen


# --- jobs -------------------------------------------------------------------------------------------------------------


def _jobs(
    suite: Suite, cells: list[tuple[PlannedTask, PlannedMethod]], seeds: Sequence[int]
) -> tuple[list[Job], list[Problem], dict[str, Asked]]:
    """Jobs in order, each once, a note for every entry that asks for work that another one asked for before, and by
    the id of a job what its entries ask for."""
    jobs: dict[str, Job] = {}
    repeated: dict[tuple[str, str], int] = {}
    by_entries: dict[tuple[int, int], Asked] = {}
    asked_by: dict[str, Asked] = {}
    texts: dict[int, str] = {}
    for task, planned in cells:
        entries = task.index, planned.index
        asked = by_entries.get(entries) or by_entries.setdefault(entries, Asked.of(suite, *entries))
        method = planned.method
        fragments = {
            "method": canonical_json(method.key),
            "method_digest": canonical_json(method.digest),
            "params": texts.setdefault(id(planned), canonical_json(planned.params)),
            "task": canonical_json(task.spec.name),
            "spec": task.text,
            "track_version": str(task.version),
            "protocol": str(PROTOCOL),
        }
        head, tail = _around_seed(fragments)
        first = Job.model_construct(  # every part is validated already
            set(),  # which fields were given: nobody asks, and it would take more room than all that jobs do not share
            method=method.key,
            method_digest=method.digest,
            params=planned.params,
            task=task.spec.name,
            spec=task.identity,
            seed=0,
            track_version=task.version,
            protocol=PROTOCOL,
            suite=suite.name,
            label=planned.label,
            method_file=method.path,
            module=method.module,
            resources=asked.resources,
            timeout=suite.timeout or task.spec.timeout,
            heartbeat=suite.heartbeat,
            checkpoint_every=suite.checkpoint_every,
            keep=tuple(dict.fromkeys(suite.keep)),
        )
        for seed in seeds:
            id_ = hashlib.sha256(head + b"%d" % seed + tail).hexdigest()[:16]
            if id_ in jobs:
                key = (suite.place("methods", planned.index), f"{planned.label} on {task.label}")
                repeated[key] = repeated.get(key, 0) + 1
                continue
            job = copy(first)
            job.__dict__.update(seed=seed, id=id_, spec_digest=task.digest)
            jobs[id_] = job
            asked_by[id_] = asked
    notes = [
        Problem(place, f"{what} is asked for more than once ({count} job{'s' * (count != 1)}); it runs once")
        for (place, what), count in repeated.items()
    ]
    return list(jobs.values()), notes, asked_by


def _at_once(jobs: Sequence[Job], slots: Mapping[Resources, int]) -> int:
    """How many of the jobs run at the same time, on average."""
    return max(1, int(len(jobs) / sum(1 / slots[job.resources] for job in jobs) + TINY)) if jobs else 1


def _around_seed(fragments: Mapping[str, str]) -> tuple[bytes, bytes]:
    """The canonical JSON of an identity before and after the value of its seed."""
    parts = {**fragments, "seed": ""}
    before = ",".join(f'"{name}":{parts[name]}' for name in sorted(parts) if name <= "seed")
    after = ",".join(f'"{name}":{parts[name]}' for name in sorted(parts) if name > "seed")
    return f"{{{before}".encode(), f",{after}}}".encode()


def _compared(jobs: list[Job], registry: Registry, results: Path, undecided: int | None) -> list[Job]:
    from kdbench.leaderboard.stated import compared

    kept = compared(registry, jobs)
    if not kept:
        hint = "kdbench claims lists the claims and what they compare"
        raise UsageError("no claim of a card compares jobs of this suite", place="--claims", hint=hint)
    return kept if undecided is None else _undecided(kept, registry, results, undecided)


def _undecided(jobs: list[Job], registry: Registry, results: Path, seeds: int) -> list[Job]:
    from kdbench.leaderboard.claims import decided
    from kdbench.leaderboard.stated import compared

    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"it is a number of seeds, at least 1, but is {seeds!r}", place="--undecided")
    kept = compared(registry, jobs, decided(results, registry, range(seeds)))
    if not kept:
        message = f"{seeds} seeds decide every claim that compares jobs of this suite"
        raise UsageError(message, place="--undecided", hint="kdbench claims shows the verdicts")
    return kept


def _filtered(jobs: list[Job], filters: Sequence[str], claims: bool) -> list[Job]:
    def matches(job: Job, pattern: str) -> bool:
        texts = (job.task, f"{job.task}@{job.scale}", job.method, job.label, f"{job.track}/{job.label}")
        return any(pattern in text or fnmatchcase(text, pattern) for text in texts)

    kept = [job for job in jobs if all(matches(job, pattern) for pattern in filters)]
    if not kept:
        known = sorted({name for job in jobs for name in (job.task, job.method, job.label)})
        shown = " and ".join(repr(pattern) for pattern in filters)
        message = f"no job {'that claims compare ' if claims else ''}matches {shown}"
        raise UsageError(message, place="--filter", hint=did_you_mean(filters[0], known, label="there are"))
    return kept


def _teachers(tasks: list[PlannedTask], registry: Registry, cache: Cache | None) -> list[TeacherNeed]:
    if cache is None:
        cache = Cache(packs=[track.packs for track in registry.tracks.values() if track.packs is not None])
    needs: dict[str, TeacherNeed] = {}
    for task in tasks:
        for kind, key, title in task.spec.teacher_needs():
            name = canonical_json([kind, key])
            if name not in needs:
                needs[name] = TeacherNeed(task.spec.name, title, kind, key, cache.find(kind, key) is not None)
    return list(needs.values())
