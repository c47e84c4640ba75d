"""``kdbench sync mlflow``: what a tracking server missed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import DEFAULT_RESULTS, ExitCode, Json, Results, complain, print_json
from kdbench.errors import Problem

if TYPE_CHECKING:
    from kdbench.store.resend import Each, Report


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    sync = typer.Typer(no_args_is_help=True)
    sync.callback()(_sync)
    sync.command("mlflow")(mlflow)
    app.add_typer(sync, name="sync")


def _sync() -> None:
    """Send results to other places that show them.

    Example: kdbench sync mlflow
    """


def mlflow(
    uri: Annotated[
        str | None,
        typer.Option("--uri", metavar="URI", help="Send there; default: the servers that the suites were run with."),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", metavar="NAME", help="This suite only; may be given again.")
    ] = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Also bring back what was deleted there: experiments and runs.")
    ] = False,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Send what MLflow has missed: each outcome once, whatever was interrupted. Exit code 1: something is left.

    MLflow's own variables (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_TOKEN, ...) say who you are.

    Example: kdbench sync mlflow --uri http://tracking.example:5000
    """
    from kdbench.store import duck
    from kdbench.store.resend import destinations, problems, resend

    duck.require_results(results)
    reports = []
    for server, suites in destinations(results, uri, suite or ()).items():

        def waiting(server: str = server) -> None:
            complain("note", Problem(_public(server), "another process sends to it now: waiting"))

        with _progress() as each:
            reports.append(resend(results, server, suites, restore=deleted, waiting=waiting, each=each))
        for problem in problems(reports[-1]):
            complain("error", problem)
        if not as_json:
            _show(reports[-1])
    if as_json:
        print_json([_data(report) for report in reports])
    if not all(report.ok for report in reports):
        raise typer.Exit(ExitCode.FAILED)


def _public(uri: str) -> str:
    from kdbench.store.membership import public

    return public(uri)


@contextmanager
def _progress() -> Iterator[Each]:
    """A bar where a person watches; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("MLflow"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _show(report: Report) -> None:
    from kdbench.errors import plain

    said = [f"{report.sent} sent", f"{report.there} there before"]
    said += [f"{report.left} left"] if report.left else []
    typer.echo(f"{plain(report.server)} ({plain(', '.join(report.suites))}): {', '.join(said)}")
    if report.deleted:
        typer.echo(f"  {_runs(report.deleted)} deleted there, and it stays so: --deleted brings back what was deleted")
    for suite in report.restored:
        typer.echo(f"  the experiment {plain(suite)!r} was deleted there; it is back, for there was something to send")
    for suite in report.hidden:
        typer.echo(f"  the experiment {plain(suite)!r} was deleted there, and it stays so: --deleted brings it back")


def _runs(number: int) -> str:
    return f"{number} run was" if number == 1 else f"{number} runs were"


def _data(report: Report) -> dict[str, Any]:
    return {**vars(report), "ok": report.ok}
