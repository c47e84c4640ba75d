"""``kdbench check`` and ``kdbench plan``: what a suite would run, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import (
    DEFAULT_RESULTS,
    ExitCode,
    Json,
    Plugins,
    Results,
    complain,
    open_registry,
    print_json,
    shown,
    table,
)
from kdbench.errors import Problem, UsageError

if TYPE_CHECKING:
    from kdbench.plan import Plan

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite's file, or the name of one that comes with kdbench.")
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", metavar="TEXT", help="Only jobs whose task, method or label has this text or glob; all must match."
    ),
]
Claims = Annotated[
    bool,
    typer.Option("--claims", help="Only jobs that a claim of a paper compares, both its sides being in the suite."),
]
Undecided = Annotated[
    int | None,
    typer.Option(
        "--undecided",
        metavar="N",
        min=1,
        help="As --claims, only of claims that the first N seeds in the results do not decide; for more --seeds.",
    ),
]
"""Default: None."""
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="N|LIST", help="A number of seeds (3), or the seeds (0,1,7).")
]


def register(app: typer.Typer) -> None:
    for verb in (check, plan):
        app.command()(verb)


def check(suite: SuiteName, results: Results = DEFAULT_RESULTS, plugin: Plugins = None, as_json: Json = False) -> None:
    """Resolve everything that a suite names, without running it: exit code 2 with every problem found.

    Example: kdbench check my.yaml
    """
    found, problems = _planned(suite, results, plugin, collect=True)
    if as_json:
        overview = {} if found is None else _overview(found)
        print_json({"ok": not problems, **overview, "problems": [asdict(problem) for problem in problems]})
    else:
        if found is not None:
            _summary(found)
        for problem in problems:
            complain("error", problem)
        if not problems:
            typer.echo("everything is there")
    if problems:
        raise typer.Exit(ExitCode.USAGE)


def plan(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    filters: Filters = None,
    claims: Claims = False,
    undecided: Undecided = None,
    seeds: Seeds = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="How many jobs there are and how long they take, without the table.")
    ] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show the jobs of a suite: done, failed, stale and left, missing teachers, and the time that is left.

    Example: kdbench plan my.yaml --filter vision/kd
    """
    found, problems = _planned(suite, results, plugin, filters, claims, undecided, seeds, collect=as_json)
    if found is None:
        print_json({"ok": False, "problems": [asdict(problem) for problem in problems]})
        raise typer.Exit(ExitCode.USAGE)
    if as_json:
        print_json(plan_data(found))
        return
    if summary:
        _summary(found)
    else:
        show_plan(found)
    for problem in found.problems:
        complain("warning", problem)


def _planned(
    name: str,
    results: Path,
    plugins: Sequence[Path] | None,
    filters: Sequence[str] | None = None,
    claims: bool = False,
    undecided: int | None = None,
    seeds: str | None = None,
    *,
    collect: bool,
) -> tuple[Plan | None, list[Problem]]:
    """The plan and what would stop its jobs; with ``collect``, no plan and the problems of an unusable suite."""
    from kdbench.plan import make_plan
    from kdbench.resolve import open_suite
    from kdbench.suite import parse_seeds

    registry = open_registry(plugins)
    try:
        chosen = None if seeds is None else parse_seeds(seeds)
        loaded = open_suite(name, registry)
        found = make_plan(loaded, registry, results, seeds=chosen, filter=filters, claims=claims, undecided=undecided)
    except UsageError as error:
        if not collect:
            raise
        return None, error.problems
    return found, found.problems


# --- for people -------------------------------------------------------------------------------------------------------


def show_plan(plan: Plan) -> None:
    """The jobs of a plan by task and method, what is missing and how long it takes."""
    rows = _groups(plan)
    table(
        ("task", "method", "seeds", "done", "failed", "stale", "left"),
        [(r["task"], r["label"], len(r["seeds"]), r["done"], r["failed"], r["stale"], r["left"]) for r in rows],
        title=f"{plan.suite.name}: {plan.suite.description}".rstrip(": "),
        right=("seeds", "done", "failed", "stale", "left"),
    )
    typer.echo("")
    _summary(plan)
    modules = Counter(module for changed in plan.stale.values() for module in changed)
    if modules:
        names = ", ".join(f"{name} ({count})" for name, count in modules.most_common())
        typer.echo(f"stale: {_count(len(plan.stale), 'job')} made with other versions of {names}")


def _summary(plan: Plan) -> None:
    from kdbench.quantities import show_duration

    left, failed = len(plan.left), len(plan.failed)
    tasks = {job.spec_digest for job in plan.jobs}
    methods = {(job.method, job.label) for job in plan.jobs}
    seeds = {job.seed for job in plan.jobs}
    counts = f"{_count(len(tasks), 'task')}, {_count(len(methods), 'method')}, {_count(len(seeds), 'seed')}"
    done = f"{len(plan.done)} done" + (f" ({failed} of them failed)" if failed else "")
    typer.echo(f"{plan.suite.name}: {_count(len(plan.jobs), 'job')} ({counts}): {done}, {left} left")
    missing = [need.title for need in plan.teachers if not need.present]
    if missing:
        typer.echo(f"teachers to make: {len(missing)} of {len(plan.teachers)}: {', '.join(missing)}")
    elif plan.teachers:
        typer.echo(f"teachers: all {len(plan.teachers)} are in the cache")
    if left and plan.estimate_seconds is None:
        typer.echo("time: unknown, since no job of these tasks has run yet")
    elif left and plan.estimate_seconds is not None:
        guess = f"about {show_duration(plan.estimate_seconds)} with {_count(plan.slots, 'job')} at a time"
        uncovered = f", and {_count(plan.unknown, 'job')} of which nothing is known" if plan.unknown else ""
        typer.echo(f"time: {guess}, going by {_source(plan)}{uncovered}")
    for note in plan.notes:
        complain("note", note)


def _source(plan: Plan) -> str:
    """What an estimate goes by: outcomes of this machine, reference results, or both."""
    own = len(plan.left) - plan.unknown - plan.lent
    if not plan.lent:
        return "past outcomes"
    return f"past outcomes and, for {_count(plan.lent, 'job')}, reference results" if own else "reference results"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


# --- for programs -----------------------------------------------------------------------------------------------------


def plan_data(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values: every job with its status (null: left), teachers, time, problems."""
    jobs = [
        {
            "id": job.id,
            "task": job.task,
            "scale": job.scale,
            "method": job.method,
            "label": job.label,
            "params": job.params,
            "seed": job.seed,
            "status": plan.done.get(job.id),
            "stale": plan.stale.get(job.id, []),
        }
        for job in plan.jobs
    ]
    teachers = [
        {"task": need.task, "title": need.title, "kind": need.kind, "present": need.present} for need in plan.teachers
    ]
    problems = [asdict(problem) for problem in plan.problems]
    return {"ok": True, **_overview(plan), "groups": _groups(plan), "jobs": jobs, "teachers": teachers} | {
        "problems": problems
    }


def _overview(plan: Plan) -> dict[str, Any]:
    return {
        "suite": plan.suite.name,
        "path": shown(str(plan.suite.path)),
        "tasks": sorted({f"{job.task}@{job.scale}" for job in plan.jobs}),
        "methods": sorted({job.method for job in plan.jobs}),
        "seeds": sorted({job.seed for job in plan.jobs}),
        "job_count": len(plan.jobs),
        "done": len(plan.done),
        "failed": len(plan.failed),
        "stale": len(plan.stale),
        "left": len(plan.left),
        "estimate_seconds": plan.estimate_seconds,
        "jobs_without_estimate": plan.unknown,
        "jobs_by_reference_results": plan.lent,
        "jobs_at_a_time": plan.slots,
        "notes": [asdict(note) for note in plan.notes],
    }


def _groups(plan: Plan) -> list[dict[str, Any]]:
    """One row per task and method with parameters, in the order of the plan."""
    labels = {task.digest: task.label for task in plan.tasks}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for job in plan.jobs:
        key = (job.spec_digest, f"{job.method} {job.label}")
        empty = {"task": labels[job.spec_digest], "method": job.method, "label": job.label, "seeds": []}
        row = groups.setdefault(key, {**empty, "done": 0, "failed": 0, "stale": 0, "left": 0})
        status = plan.done.get(job.id)
        row["seeds"].append(job.seed)
        row["left" if status is None else "done" if status == "ok" else "failed"] += 1
        row["stale"] += job.id in plan.stale
    return list(groups.values())
