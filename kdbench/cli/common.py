"""What all verbs share: exit codes, common options, errors, tables and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.errors import Problem, UsageError, plain

if TYPE_CHECKING:
    from rich.table import Table

    from kdbench.registry import Registry


class ExitCode(IntEnum):
    """What the exit code of ``kdbench`` says."""

    OK = 0
    """Everything that was asked for is done."""
    FAILED = 1
    """Some jobs failed; their outcomes say why."""
    USAGE = 2
    """The input is wrong: an option, a suite, a plugin, a data set or a results folder."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C; what was finished is kept."""
    PIPE_CLOSED = 141
    """Whoever read the output closed it before the end."""


Results = Annotated[
    Path, typer.Option("--results", metavar="FOLDER", help="Folder of outcomes, made where it is missing.")
]
"""Default: ``DEFAULT_RESULTS``."""
DEFAULT_RESULTS = Path("results")
Read = Annotated[
    Path | None, typer.Option("--results", metavar="FOLDER", help="Folder of outcomes.", show_default="results")
]
"""Of verbs that only read results, and can read those that come with kdbench. Default: None; see :func:`read_from`."""
Reference = Annotated[bool, typer.Option("--reference", help="Read the results that come with kdbench instead.")]
"""Default: False."""
Id = Annotated[str, typer.Argument(metavar="ID", help="A job; the beginning of its id is enough.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="PATH", help="A plugin's file, or a folder of them; may be given again."),
]
"""Default: None."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Default: False."""


def shown(place: str) -> str:
    """A place for people: paths below the current folder are relative to it."""
    here = os.getcwd() + os.sep
    return place[len(here) :] if place.startswith(here) and here != os.sep else place


def complain(kind: str, problem: Problem) -> None:
    """One problem as one line on stderr: ``error: place: message (hint)``."""
    line = plain(Problem(shown(problem.place), " ".join(problem.message.split()), " ".join(problem.hint.split())))
    typer.echo(f"{typer.style(f'{kind}:', fg='red' if kind == 'error' else 'yellow', bold=True)} {line}", err=True)


def report(error: UsageError) -> None:
    """Every problem of an error, a line each, on stderr."""
    for problem in error.problems:
        complain("error", problem)


def open_registry(plugins: Sequence[Path] | None = None, *, warn: bool = True) -> Registry:
    """Everything that is installed, and the plugins given by ``--plugin``; a warning for each that is broken."""
    from kdbench.registry import discover

    registry = discover(tuple(plugins or ()))
    if warn:
        for broken in registry.broken:
            reason = f"plugin left out: {broken.reason}"
            complain("warning", Problem(broken.place, reason, broken.hint))
    return registry


def read_from(results: Path | None, reference: bool, registry: Registry | None = None) -> Path:
    """The results folder that a verb with ``--results`` and ``--reference`` reads.

    Of reference results a line on stderr says what they are and how much of what they were made with has changed:
    against ``registry``, or else everything that is installed. Raises ``UsageError`` where both options are given, and
    where there are no reference results or they cannot be read.
    """
    if not reference:
        return DEFAULT_RESULTS if results is None else results
    if results is not None:
        raise UsageError("--results names a folder, and --reference none", place="--reference", hint="leave one out")
    from kdbench.leaderboard.vintage import vintage
    from kdbench.store import duck
    from kdbench.store import reference as shipped

    found = shipped.found()
    if not found.present:
        complain("note", Problem("", f"unpacking {found.jobs} reference results, once"))
    folder = found.unpack()
    known = registry if registry is not None else open_registry(warn=False)
    line = duck.query(folder, lambda con: vintage(con, known)).line()
    complain("note", Problem("", f"reference results: {line}"))
    return folder


def print_json(value: Any) -> None:
    """JSON for programs: undefined and infinite numbers are null, paths are text, order is kept."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    right: Sequence[str] = (),
) -> None:
    """Print a table: drawn to the width of a terminal, plain aligned text (nothing cut) elsewhere.

    ``right`` names the columns that are aligned to the right, usually numbers. None is shown as an empty cell.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(drawn(columns, cells, title=title, right=right))
        return
    if title:
        typer.echo(title)
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())


def drawn(
    columns: Sequence[str], cells: Sequence[Sequence[str]], *, title: str = "", right: Sequence[str] = ()
) -> Table:
    """The table that a terminal gets."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name in columns:
        made.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell) for cell in row))  # Text: brackets in cells are no markup
    return made
