"""From what a person asks for to a run: suite, plan, what of it is to do, and who is told.

The command line and :func:`kdbench.run` share this.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdbench.errors import UsageError
from kdbench.job import Run, utcnow
from kdbench.schedule import attempts
from kdbench.schedule.events import Events
from kdbench.schedule.executor import Context
from kdbench.schedule.loop import Loop, Preparation, RunResult
from kdbench.spec import canonical_json

if TYPE_CHECKING:
    from pluggy import PluginManager

    from kdbench.plan import Plan
    from kdbench.registry import Registry
    from kdbench.suite import Suite

Stale = Literal["keep", "rerun"]


@dataclass
class Session:
    """A planned run."""

    registry: Registry
    plan: Plan
    run: Run
    plugins: tuple[Path, ...]


def plan_run(
    suite: str | Path | Mapping[str, Any],
    *,
    results: str | Path = "results",
    seeds: int | Sequence[int] | None = None,
    filter: str | Sequence[str] | None = None,
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

    Raises ``UsageError`` with every problem of the suite, of its tasks and of this machine.
    """
    from kdbench.plan import make_plan
    from kdbench.registry import discover
    from kdbench.resolve import open_suite

    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UsageError(f"workers is a number of jobs at once, at least 1, but is {workers!r}", place="--workers")
    if stale not in ("keep", "rerun"):
        raise UsageError(f"stale is 'keep' or 'rerun', but is {stale!r}", place="--stale")
    files = tuple(Path(path) for path in plugins)
    registry = registry if registry is not None else discover(files)
    opened = open_suite(suite, registry)
    folder = Path(results)
    plan = make_plan(opened, registry, folder, seeds=seeds, filter=filter)
    todo = [
        job.id
        for job in plan.jobs
        if fresh
        or plan.done.get(job.id, "interrupted") == "interrupted"
        or (retry_failed and plan.done[job.id] != "ok")
        or (stale == "rerun" and job.id in plan.stale)
    ]
    if require_ready and todo and plan.problems:
        raise UsageError(plan.problems)
    run = Run(
        id=f"{utcnow():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        suites={opened.name: [job.id for job in plan.jobs]},
        results=folder,
        jobs=plan.jobs,
        todo=todo,
        workers=workers or plan.slots,
        tracking=_tracking(opened, folder, tracking),
    )
    return Session(registry, plan, run, files)


def _tracking(suite: Suite, results: Path, tracking: bool | str) -> str | None:
    if isinstance(tracking, str):
        return tracking
    return suite.tracking_uri(results) if tracking else None


def execute(session: Session, *, hooks: Sequence[object] = (), workers: int | None = None) -> RunResult:
    """Run what is to do, and tell the stores, the extensions and ``hooks`` (objects with event hooks).

    Raises ``UsageError`` where the results cannot be written or a job can never run here.
    """
    run, plan, registry = session.run, session.plan, session.registry
    attempts.require_writable(run.results)
    manager = registry.manager
    registered = [plugin for plugin in (*_stores(run, manager), *hooks) if manager.register(plugin, _name(plugin))]
    try:
        events = Events(manager, run)
        if not run.todo:
            events.run_started()
            result = RunResult(run, {job.id: plan.done[job.id] for job in run.jobs if job.id in plan.done})
            events.run_finished(result.outcomes)
            return result
        attempts.sweep(run.results)
        return _loop(session, events, workers).go()
    finally:
        for plugin in registered:
            manager.unregister(plugin)


def _name(plugin: object) -> str:
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def _stores(run: Run, manager: PluginManager) -> list[object]:
    """The hook implementations that come with kdbench and that every run has."""
    from kdbench.leaderboard.page import ResultsPage
    from kdbench.store.duck import DuckStore

    stores: list[object] = [DuckStore(), ResultsPage(manager)]
    if run.tracking is not None:
        from kdbench.store.mlflow import MlflowReporter

        stores.append(MlflowReporter())
    return stores


def _loop(session: Session, events: Events, workers: int | None) -> Loop:
    from kdbench import provenance

    run, plan, registry = session.run, session.plan, session.registry
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
    choice = plan.suite.executor
    executor = registry.executors()[choice.name](context, **choice.options)
    preparations, waits = _preparations(session, todo)
    try:
        return Loop(
            run,
            executor,
            events,
            done=plan.done,
            preparations=preparations,
            waits=waits,
            present=_Presence(session),
            provenance=common,
        )
    except BaseException:
        executor.close()
        raise


def _preparations(session: Session, todo: set[str]) -> tuple[list[Preparation], dict[str, str]]:
    """The teachers that are missing, by what tasks need, and which job waits for which."""
    missing = {canonical_json([need.kind, need.key]) for need in session.plan.teachers if not need.present}
    if not missing:
        return [], {}
    needs: dict[str, tuple[tuple[str, ...], str]] = {}
    for planned in session.plan.tasks:
        wanted = [(canonical_json([kind, key]), title) for kind, key, title in planned.spec.teacher_needs()]
        lacking = [(name, title) for name, title in wanted if name in missing]
        if lacking:
            names = tuple(name for name, _ in lacking)
            needs[planned.digest] = names, ", ".join(title for _, title in lacking)
    preparations: dict[str, Preparation] = {}
    waits: dict[str, str] = {}
    for job in session.run.jobs:
        if job.id not in todo or job.spec_digest not in needs:
            continue
        names, title = needs[job.spec_digest]
        preparation = Preparation(job, names, title)
        preparations.setdefault(preparation.id, preparation)
        waits[job.id] = preparation.id
    return list(preparations.values()), waits


class _Presence:
    """Whether a teacher is in the cache by now."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, need: str) -> bool:
        import json

        from kdbench.cache import Cache

        packs = [track.packs for track in self.session.registry.tracks.values() if track.packs is not None]
        kind, key = json.loads(need)
        return Cache(packs=packs).find(kind, key) is not None
