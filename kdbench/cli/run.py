"""``kdbench run``: what is missing of a suite, with progress, a summary at the end and an exit code."""

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
from kdbench.cli.suites import Filters, Seeds, SuiteName, plan_data, show_plan

if TYPE_CHECKING:
    from kdbench.leaderboard.boards import Board
    from kdbench.schedule.loop import RunResult


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    suite: SuiteName,
    results: Results = DEFAULT_RESULTS,
    filters: Filters = None,
    seeds: Seeds = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Jobs at once; default: the CPU cores.")
    ] = None,
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
    """Run what is missing of a suite. Exit code 0: every job is ok; 1: some failed; 2: bad input; 130: Ctrl-C."""
    from kdbench.schedule.console import Console
    from kdbench.schedule.session import execute, plan_run
    from kdbench.suite import parse_seeds

    session = plan_run(
        suite,
        results=results,
        seeds=None if seeds is None else parse_seeds(seeds),
        filter=filters,
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
            print_json({**plan_data(session.plan), "to_run": session.run.todo})
            return
        show_plan(session.plan)
        typer.echo(f"this command would run {_jobs(len(session.run.todo))}")
        for problem in session.plan.problems:
            complain("warning", problem)
        return
    for note in session.plan.notes:
        complain("note", note)
    result = execute(session, hooks=[Console()], workers=workers)
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


def _data(result: RunResult) -> dict[str, Any]:
    return {
        "run": result.run.id,
        "suite": result.run.suite,
        "results": str(result.run.results),
        "jobs": len(result.run.jobs),
        "ran": len(result.run.todo) - len(result.left),
        "ok": sum(status == "ok" for status in result.statuses.values()),
        "failed": {job.id: result.statuses[job.id] for job in result.failed},
        "left": [job.id for job in result.left],
        "interrupted": result.signal is not None,
        "exit_code": result.exit_code,
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _summary(result: RunResult, results: Path) -> None:
    """The leaderboard of the suite's tasks, what failed, where everything is and what to type next."""
    from kdbench.leaderboard.page import page_path

    run, left, failed = result.run, len(result.left), len(result.failed)
    if len(result.statuses) > failed:
        print_boards(_boards(result))
    ran = len(run.todo) - left
    said = [f"{_jobs(len(run.jobs))}: {len(result.statuses) - failed} ok"]
    said += [f"{failed} failed"] if failed else []
    said += [f"{left} left"] if left else []
    typer.echo(f"{run.suite}: {', '.join(said)} ({ran} of them now)" if ran else f"{run.suite}: {', '.join(said)}")
    for job in result.failed[:5]:
        typer.echo(f"  {result.statuses[job.id]}: {job.task} {job.label or job.method} seed {job.seed}, ", nl=False)
        typer.echo(f"kdbench logs {job.id}{_where(results)}")
    if failed > 5:
        typer.echo(f"  and {failed - 5} more")
    typer.echo(f"results: {results / 'jobs'} (one folder per job), {results / 'kdbench.duckdb'}")
    page = page_path(results, run.suite)
    if page.exists():
        typer.echo(f"page: {page}")
    typer.echo(f"next: {_next(result, results)}")


def _next(result: RunResult, results: Path) -> str:
    if result.left:
        return f"the same command runs the {_jobs(len(result.left))} that are left: {_command()}"
    if result.failed:
        return f"{_command('--retry-failed')} runs the failed jobs again"
    return f"kdbench leaderboard --suite {shlex.quote(result.run.suite)}{_where(results)}"


def _command(*more: str) -> str:
    given = [argument for argument in sys.argv[1:] if argument not in ("--fresh", *more)]
    return shlex.join(["kdbench", *given, *more])


def _where(results: Path) -> str:
    return "" if results == DEFAULT_RESULTS else f" --results {shlex.quote(str(results))}"


def _boards(result: RunResult) -> list[Board]:
    """The boards of the tasks of this run's jobs, by their headline metrics."""
    from kdbench.leaderboard.boards import Selection, load_boards
    from kdbench.store import duck

    digests = {job.spec_digest for job in result.run.jobs}
    found = duck.query(result.run.results, lambda con: load_boards(con, Selection(suite=result.run.suite)))
    return [board for board in found if board.spec_digest in digests]
