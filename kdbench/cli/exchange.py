"""Verbs that move results between machines: export and import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdbench.cli.common import DEFAULT_RESULTS, Json, Results, complain, print_json, table

if TYPE_CHECKING:
    from kdbench.errors import Problem
    from kdbench.store.exchange import Taken

MOST_SHOWN = 20
"""Differences that are printed; --json has all."""


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(export)
    app.command("import")(import_)


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New, empty, or an earlier export.")],
    format: Annotated[Literal["parquet", "csv"], typer.Option("--format", "-f", help="Of the files.")] = "parquet",
    suite: Annotated[str | None, typer.Option("--suite", metavar="NAME", help="Jobs of this suite only.")] = None,
    track: Annotated[str | None, typer.Option("--track", metavar="NAME", help="Jobs of this track only.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="track/name or name, with @scale for one.")
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write results as one file per table, for other programs and for another machine's import.

    Example: kdbench export exported --suite quickstart
    """
    from kdbench.leaderboard.selection import Selection, suite_name
    from kdbench.quantities import show_bytes
    from kdbench.store import export as exports

    problems: list[Problem] = []
    manifest = exports.export(results, folder, format, Selection(suite_name(suite), track, task), problems)
    for problem in problems:
        complain("warning", problem)
    rows = [[name, file.rows, show_bytes(file.bytes)] for name, file in manifest.files.items()]
    table(["file", "rows", "size"], rows, right=["rows", "size"])
    typer.echo(f"{folder}: {len(rows)} files and {exports.MANIFEST}")


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A results folder, a folder of export, or a kdbench.duckdb.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come; change nothing.")] = False,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Take over the results of another machine: jobs that are missing here, or failed here and not there.

    Example: kdbench import exported
    """
    from kdbench.store import exchange

    problems: list[Problem] = []
    taken = exchange.take_over(source, results, dry_run=dry_run, problems=problems)
    for problem in problems:
        complain("warning", problem)
    if as_json:
        print_json({**vars(taken), "differences": [vars(difference) for difference in taken.differences]})
        return
    _print(taken, "would be imported" if dry_run else "imported")


def _print(taken: Taken, done: str) -> None:
    from kdbench.errors import plain

    count = len(taken.new) + len(taken.better)
    of = f" ({len(taken.new)} new, {len(taken.better)} that failed here)" if taken.better else ""
    typer.echo(f"{count} {'job' if count == 1 else 'jobs'} {done}{of}, {len(taken.known)} known already")
    if taken.busy:
        typer.echo(f"{len(taken.busy)} left to a run here that has them or can go on with them")
    if taken.bare:
        typer.echo(f"{len(taken.bare)} came without some of their files, which their provenance names")
    if taken.suites:
        typer.echo(f"suites: {', '.join(map(plain, taken.suites))}")
    if taken.differences:
        jobs = len({difference.id for difference in taken.differences})
        rows = [
            [item.id, f"{plain(item.task)}@{item.scale}", plain(item.label), item.seed, plain(item.metric)]
            + ["" if value is None else repr(value) for value in (item.ours, item.theirs)]
            for item in taken.differences[:MOST_SHOWN]
        ]
        title = f"equal work, other numbers, in {jobs} {'job' if jobs == 1 else 'jobs'}; those from here are kept:"
        table(["job", "task", "method", "seed", "metric", "here", "there"], rows, title=title, right=["here", "there"])
        if len(taken.differences) > MOST_SHOWN:
            typer.echo(f"... and {len(taken.differences) - MOST_SHOWN} more (--json lists all)")
