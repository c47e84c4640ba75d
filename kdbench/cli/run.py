"""``kdbench run``: what is missing of suites, with progress, a summary at the end and an exit code."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdbench.cli.common import (
    DEFAULT_RESULTS,
    Json,
    Plugins,
    Results,
    complain,
    open_registry,
    print_json,
)
from kdbench.cli.results import print_boards
from kdbench.cli.suites import Claims, Filters, Seeds, Undecided, plan_data, show_plan

if TYPE_CHECKING:
    from kdbench.leaderboard.boards import Board
    from kdbench.schedule.result import RunResult
    from kdbench.schedule.session import Session


ROWS = 20
"""Of each board that are shown at the end of a run: what it says should be in view."""


def register(app: typer.Typer) -> None:
    app.command()(run)


Suites = Annotated[
    list[str],
    typer.Argument(metavar="SUITE...", help="Files of suites, or names of such that come with kdbench; one or more."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Jobs at once; default: the CPU cores.")
]
"""Default: None."""


def run(
    suites: Suites,
    results: Results = DEFAULT_RESULTS,
    filters: Filters = None,
    claims: Claims = False,
    undecided: Undecided = None,
    seeds: Seeds = None,
    workers: Workers = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run everything again, what is done included.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run jobs again that failed.")] = False,
    stale: Annotated[
        str, typer.Option("--stale", metavar="keep|rerun", help="Jobs that other code of kdbench made.")
    ] = "keep",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and run nothing.")] = False,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Leave MLflow out.")] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run what is missing of suites. Exit code 0: every job is ok; 1: some failed; 2: bad input; 130: Ctrl-C.

    Several suites share the machine fairly, and jobs that they have in common run once.

    Example: kdbench run suites/quickstart.yaml --workers 2
    """
    from kdbench.schedule.console import Console
    from kdbench.schedule.session import execute, plan_run
    from kdbench.suite import parse_seeds

    session = plan_run(
        suites,
        results=results,
        seeds=None if seeds is None else parse_seeds(seeds),
        filter=filters,
        claims=claims,
        undecided=undecided,
        workers=workers,
        fresh=fresh,
        retry_failed=retry_failed,
        stale=_stale(stale),
        plugins=plugin or (),
        tracking=not no_tracking,
        registry=open_registry(plugin),
        require_ready=not dry_run,
    )
    if dry_run:
        if as_json:
            print_json(_planned(session))
            return
        for plan in session.plans:
            show_plan(plan)
        typer.echo(f"this command would run {_jobs(len(session.run.todo))}")
        for problem in session.problems:
            complain("warning", problem)
        return
    for note in session.notes:
        complain("note", note)
    result = execute(session, hooks=[Console(expected=session.seconds)], workers=workers)
    if as_json:
        print_json(_data(result))
    else:
        _summary(result, results)
    raise typer.Exit(result.exit_code)


def _stale(text: str) -> Literal["keep", "rerun"]:
    from kdbench.errors import UsageError

    if text == "keep" or text == "rerun":
        return text  # type: ignore[return-value]
    raise UsageError(f"{text!r} is neither 'keep' nor 'rerun'", place="--stale")


def _jobs(number: int) -> str:
    return f"{number} job" + "s" * (number != 1)


def _planned(session: Session) -> dict[str, Any]:
    """What a dry run tells programs: the plan, or those of several suites."""
    plans = [plan_data(plan) for plan in session.plans]
    return {**(plans[0] if len(plans) == 1 else {"ok": True, "suites": plans}), "to_run": session.run.todo}


def _data(result: RunResult) -> dict[str, Any]:
    """What came of a run, for programs: the whole, and each of its suites."""
    run = result.run
    return {
        "run": run.id,
        "suite": run.suite,
        "results": str(run.results),
        **_numbers(result),
        "suites": {name: _numbers(result.of(name)) for name in run.suites},
        "interrupted": result.signal is not None,
        "exit_code": result.exit_code,
    }


def _numbers(result: RunResult) -> dict[str, Any]:
    return {
        "jobs": len(result.run.jobs),
        "ran": len(result.run.todo) - len(result.left),
        "ok": sum(status == "ok" for status in result.statuses.values()),
        "failed": {job.id: result.statuses[job.id] for job in result.failed},
        "left": [job.id for job in result.left],
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _summary(result: RunResult, results: Path) -> None:
    """For each suite its leaderboard, what failed and its page; then where everything is and what to type next."""
    from kdbench.leaderboard.page import page_path

    parts = [result.of(name) for name in result.run.suites]
    for part in parts:
        _one_suite(part, results)
    typer.echo(f"results: {results / 'jobs'} (one folder per job), {results / 'kdbench.duckdb'}")
    for part in parts:
        page = page_path(results, part.run.suite)
        if page.exists():
            typer.echo(f"page: {page}")
    typer.echo(f"next: {_next(result, results)}")


def _one_suite(result: RunResult, results: Path) -> None:
    run, left, failed = result.run, len(result.left), len(result.failed)
    ok = sum(status == "ok" for status in result.statuses.values())
    if ok:
        print_boards(_boards(result), at_most=ROWS, whole=_leaderboard(run.suite, results))
    ran = len(run.todo) - left
    said = [f"{_jobs(len(run.jobs))}: {ok} ok"]
    said += [f"{failed} failed"] if failed else []
    said += [f"{left} left"] if left else []
    typer.echo(f"{run.suite}: {', '.join(said)} ({ran} of them now)" if ran else f"{run.suite}: {', '.join(said)}")
    for job in result.failed[:5]:
        typer.echo(f"  {result.statuses[job.id]}: {job.task} {job.label or job.method} seed {job.seed}, ", nl=False)
        typer.echo(f"kdbench logs {job.id}{_where(results)}")
    if failed > 5:
        typer.echo(f"  and {failed - 5} more")


def _next(result: RunResult, results: Path) -> str:
    if result.left:
        return f"the same command runs the {_jobs(len(result.left))} that are left: {_command()}"
    if result.failed:
        return f"{_command('--retry-failed')} runs the failed jobs again"
    return "; ".join(_leaderboard(name, results) for name in result.run.suites)


def _leaderboard(suite: str, results: Path) -> str:
    return f"kdbench leaderboard --suite {shlex.quote(suite)}{_where(results)}"


def _command(*more: str) -> str:
    given = [argument for argument in sys.argv[1:] if argument not in ("--fresh", *more)]
    return shlex.join(["kdbench", *given, *more])


def _where(results: Path) -> str:
    return "" if results == DEFAULT_RESULTS else f" --results {shlex.quote(str(results))}"


def _boards(result: RunResult) -> list[Board]:
    """The boards of the tasks of one suite's jobs, by their headline metrics."""
    from kdbench.leaderboard.boards import Selection, load_boards
    from kdbench.store import duck

    digests = {job.spec_digest for job in result.run.jobs}
    selection = Selection(suite=result.run.suite)
    found = duck.query(result.run.results, lambda con: load_boards(con, selection), refresh=False)
    return [board for board in found if board.spec_digest in digests]
