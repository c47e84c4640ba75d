"""``kdbench report``: results as pages to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.common import Json, Plugins, Read, Reference, complain, open_registry, print_json, read_from

if TYPE_CHECKING:
    from kdbench.errors import Problem


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(report)


def report(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="New, empty, or a site made before.")] = Path(
        "site"
    ),
    suite: Annotated[str | None, typer.Option("--suite", metavar="NAME", help="Jobs of this suite only.")] = None,
    track: Annotated[str | None, typer.Option("--track", metavar="NAME", help="Jobs of this track only.")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    reference: Reference = False,
    results: Read = None,
) -> None:
    """Write the results as a static site: boards, charts, methods, claims and failures, readable without a network.

    Example: kdbench report --out site
    """
    from kdbench.leaderboard.report.site import build
    from kdbench.leaderboard.selection import Selection
    from kdbench.quantities import show_bytes

    problems: list[Problem] = []
    registry = open_registry(plugin)
    folder = read_from(results, reference, registry)
    built = build(folder, out, selection=Selection(suite=suite, track=track), registry=registry, problems=problems)
    for problem in problems:
        complain("warning", problem)
    if as_json:
        print_json(vars(built))
        return
    typer.echo(f"{built.pages} pages, {show_bytes(built.size)}, {built.seconds:.1f} s: open {built.index}")
