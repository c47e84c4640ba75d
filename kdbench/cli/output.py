"""What verbs share that print tables in several formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Format = Literal["table", "md", "csv", "json", "parquet"]
_SUFFIXES: dict[str, Format] = {".md": "md", ".csv": "csv", ".json": "json", ".parquet": "parquet"}

FormatOption = Annotated[
    Format | None, typer.Option("--format", "-f", help="Default: table, or what the suffix of --output says.")
]
"""Default: None."""
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead.")]
"""Default: None."""


def format_of(format: Format | None, output: Path | None) -> Format:
    """The format that is asked for."""
    if format is not None:
        return format
    return _SUFFIXES.get(output.suffix.lower(), "table") if output is not None else "table"


def write_records(
    records: Sequence[dict[str, Any]],
    format: Format,
    path: Path | None,
    *,
    table: Callable[[], None],
    md: Callable[[], str],
) -> None:
    """Records, which have the same keys, as rows in a format; ``table`` and ``md`` make what people read."""
    from kdbench.leaderboard import render

    columns = list(records[0]) if records else ["task"]
    rows = [list(record.values()) for record in records]
    render.output(format, columns, rows, right=(), path=path, show=print, table=table, md=md)
