"""From what a person asks for to a run: suites, plans, what of them is to do, and who is told.

The command line and :func:`kdbench.run` share this.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdbench.errors import Problem, UsageError
from kdbench.job import Job, Run, Status, utcnow
from kdbench.schedule import attempts
from kdbench.schedule.events import Events
from kdbench.schedule.executor import Context
from kdbench.schedule.loop import Loop
from kdbench.schedule.preparations import Presence, needs_of, preparations_of
from kdbench.schedule.result import RunResult

if TYPE_CHECKING:
    from kdbench.history import Expectation
    from kdbench.plan import Plan
    from kdbench.registry import Registry
    from kdbench.suite import Suite

Stale = Literal["keep", "rerun"]
SuiteLike = str | Path | Mapping[str, Any]
"""A suite by its path or name, or as data with the keys of a suite file."""


@dataclass
class Session:
    """A planned run."""

    registry: Registry
    plans: tuple[Plan, ...]
    """Of each of its suites, in order."""
    run: Run
    plugins: tuple[Path, ...]
    anew: frozenset[str] = frozenset()
    """Ids of the jobs that do not go on from a checkpoint."""

    @property
    def problems(self) -> list[Problem]:
        """What would stop jobs on this machine."""
        return _each(problem for plan in self.plans for problem in plan.problems)

    @property
    def notes(self) -> list[Problem]:
        """What is odd but stops nothing."""
        return _each(note for plan in self.plans for note in plan.notes)

    @property
    def done(self) -> dict[str, Status]:
        """Status of the jobs that had an outcome when the run was planned, by id."""
        return {id: status for plan in self.plans for id, status in plan.done.items()}

    @property
    def expected(self) -> dict[str, Expectation]:
        """What past outcomes say about each job, by id."""
        return {id: expectation for plan in self.plans for id, expectation in plan.expected.items()}

    @property
    def seconds(self) -> dict[str, float | None]:
        """How long each job may take, by id, for those who show the time that is left."""
        return {id: expectation.seconds for id, expectation in self.expected.items()}


def _each(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def plan_run(
    suites: SuiteLike | Sequence[SuiteLike],
    *,
    results: str | Path = "results",
    seeds: int | Sequence[int] | None = None,
    filter: str | Sequence[str] | None = None,
    claims: bool = False,
    undecided: int | None = None,
    workers: int | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    stale: Stale = "keep",
    plugins: Sequence[str | Path] = (),
    tracking: bool | str = True,
    registry: Registry | None = None,
    require_ready: bool = True,
) -> Session:
    """Plan a run without starting anything; see :func:`kdbench.run` for the arguments.

    ``require_ready``: what would stop jobs on this machine is an error, where there are jobs to run.

    Raises ``UsageError`` with every problem of the suites, of their tasks and of this machine.
    """
    from kdbench.registry import discover

    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers is a number of jobs at once, at least 1, but is {workers!r}", place="--workers")
    if stale not in ("keep", "rerun"):
        raise UsageError(f"stale is 'keep' or 'rerun', but is {stale!r}", place="--stale")
    files = tuple(Path(path) for path in plugins)
    registry = registry if registry is not None else discover(files)
    folder = Path(results)
    several = [suites] if isinstance(suites, str | Path | Mapping) else list(suites)
    plans = _plans(several, registry, folder, seeds, filter, claims, undecided)
    uri = _agreed([plan.suite for plan in plans], folder, tracking)
    jobs, odd = _together(plans)
    plans[0].notes.extend(odd)
    done: dict[str, Status] = {id: status for plan in plans for id, status in plan.done.items()}
    old = {id for plan in plans for id in plan.stale}
    todo = [
        job.id
        for job in jobs
        if fresh
        or done.get(job.id, "interrupted") == "interrupted"
        or (retry_failed and done[job.id] != "ok")
        or (stale == "rerun" and job.id in old)
    ]
    run = Run(
        id=f"{utcnow():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        suites={plan.suite.name: [job.id for job in plan.jobs] for plan in plans},
        results=folder,
        jobs=jobs,
        todo=todo,
        workers=workers or min(plan.slots for plan in plans),
        tracking=uri,
    )
    anew = frozenset(id for id in todo if fresh or done.get(id, "interrupted") != "interrupted")
    session = Session(registry, tuple(plans), run, files, anew)
    if require_ready and todo and session.problems:
        raise UsageError(session.problems)
    return session


def _plans(
    suites: Sequence[SuiteLike],
    registry: Registry,
    results: Path,
    seeds: int | Sequence[int] | None,
    filter: str | Sequence[str] | None,
    claims: bool,
    undecided: int | None,
) -> list[Plan]:
    """A plan of each suite in which a job is asked for. Raises ``UsageError`` with the problems of all."""
    from kdbench.plan import make_plan
    from kdbench.resolve import open_suite

    plans: list[Plan] = []
    problems: list[Problem] = []
    unmatched: list[Problem] = []
    for suite in suites:
        try:
            opened = open_suite(suite, registry)
            plans.append(
                make_plan(opened, registry, results, seeds=seeds, filter=filter, claims=claims, undecided=undecided)
            )
        except UsageError as error:
            choices = {problem.place for problem in error.problems} <= {"--filter", "--claims", "--undecided"}
            elsewhere = len(suites) > 1 and choices
            (unmatched if elsewhere else problems).extend(error.problems)
    if problems or not plans:
        raise UsageError(_each(problems or unmatched) or [Problem("", "a run needs at least one suite")])
    return plans


def _agreed(suites: Sequence[Suite], results: Path, tracking: bool | str) -> str | None:
    """The tracking URI of a run, after a look at what its suites must have in common.

    Raises ``UsageError`` where two have one name, or want other executors or other tracking.
    """
    first, *others = suites
    uris = [
        tracking if isinstance(tracking, str) else suite.tracking_uri(results) if tracking else None for suite in suites
    ]
    problems: list[Problem] = []
    names = {first.name: first}
    for suite, uri in zip(others, uris[1:], strict=True):
        if suite.name in names:
            place = suite.place("name")
            other = names[suite.name].place("name")
            hint = "leave one out, or give one of them another name"
            problems.append(Problem(place, f"two suites of this run are called '{suite.name}', also {other}", hint))
        names[suite.name] = suite
        if suite.executor != first.executor:
            message = f"suites of one run share an executor, but {first.name} has another ({first.place('executor')})"
            problems.append(Problem(suite.place("executor"), message, "run them one after the other"))
        if uri != uris[0]:
            message = f"suites of one run are tracked alike, but {first.name} is not ({first.place('tracking')})"
            problems.append(Problem(suite.place("tracking"), message, "run them one after the other, or --no-tracking"))
    if problems:
        raise UsageError(problems)
    return uris[0]


def _together(plans: Sequence[Plan]) -> tuple[list[Job], list[Problem]]:
    """Every job of the plans once, and a note on each suite whose jobs run as an earlier suite wants them to.

    What a job of several suites keeps and how much time it may take is what any of them wants.
    """
    jobs: dict[str, Job] = {}
    notes: list[Problem] = []
    for plan in plans:
        different = 0
        for job in plan.jobs:
            first = jobs.setdefault(job.id, job)
            if first is job:
                continue
            different += first.resources != job.resources
            keep = tuple(dict.fromkeys((*first.keep, *job.keep)))
            timeout = max(first.timeout, job.timeout)
            beats = [beat for beat in (first.heartbeat, job.heartbeat) if beat is not None]
            heartbeat = max(beats) if len(beats) == 2 else None
            if (keep, timeout, heartbeat) != (first.keep, first.timeout, first.heartbeat):
                jobs[job.id] = first.model_copy(update={"keep": keep, "timeout": timeout, "heartbeat": heartbeat})
        if different:
            message = f"{different} of its jobs are an earlier suite's too, and run with the resources asked for there"
            notes.append(Problem(plan.suite.place("resources"), message))
    return list(jobs.values()), notes


def execute(session: Session, *, hooks: Sequence[object] = (), workers: int | None = None) -> RunResult:
    """Run what is to do, and tell the stores, the extensions and ``hooks`` (objects with event hooks).

    Raises ``UsageError`` where the results cannot be written or a job can never run here.
    """
    from kdbench.schedule.watch import Watch

    run, manager = session.run, session.registry.manager
    attempts.require_writable(run.results)
    attempts.sweep(run.results, session.anew)
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(run, session.seconds))
        for plugin in (*_stores(run, session.registry), watch, *hooks):
            if manager.register(plugin, _name(plugin)):
                stack.callback(manager.unregister, plugin)
        events = Events(manager, run)
        if run.todo:
            result = _loop(session, events, workers).go()
        else:
            result = RunResult(run, session.done)
            events.run_started()
            events.run_finished(result.outcomes)
        watch.exit_code = result.exit_code
        return result


def _name(plugin: object) -> str:
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def _stores(run: Run, registry: Registry) -> list[object]:
    """The hook implementations that come with kdbench and that every run has."""
    from kdbench.leaderboard.page import ResultsPage
    from kdbench.store.follow import DuckStore
    from kdbench.store.index import IndexKeeper

    stores: list[object] = [DuckStore(registry), IndexKeeper(), ResultsPage(registry.manager, registry)]
    if run.tracking is not None:
        from kdbench.store.mlflow import MlflowReporter

        stores.append(MlflowReporter())
    return stores


def _loop(session: Session, events: Events, workers: int | None) -> Loop:
    from kdbench import provenance
    from kdbench.schedule.requests import Requests

    run, registry = session.run, session.registry
    todo = set(run.todo)
    jobs = [job for job in run.jobs if job.id in todo]
    tracks = sorted({job.task.partition("/")[0] for job in jobs})
    common = provenance.of_run()
    context = Context(
        workers=workers,
        wants_gpus=any(job.resources.on_gpu for job in jobs),
        preload=tuple(dict.fromkeys(name for track in tracks for name in registry.tracks[track].preload)),
        tracks=tracks,
        plugins=session.plugins,
        provenance=common,
    )
    choice = session.plans[0].suite.executor
    executor = registry.executors()[choice.name](context, **choice.options)
    preparations, waits = preparations_of(session.plans, jobs)
    try:
        return Loop(
            run,
            executor,
            events,
            done=session.done,
            preparations=preparations,
            waits=waits,
            needs=needs_of(session.plans),
            expected=session.expected,
            present=Presence([track.packs for track in registry.tracks.values() if track.packs is not None]),
            provenance=common,
            asked=Requests(run.results, run.id),
        )
    except BaseException:
        executor.close()
        raise
