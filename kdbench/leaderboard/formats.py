"""Rows as CSV, JSON, Markdown and Parquet, for programs and pages.

Texts come from plugins: Markdown never gets control characters of theirs.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from kdbench.errors import UsageError, plain

Format = Literal["table", "md", "csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

Table = tuple[Sequence[str], Sequence[Sequence[object]], Sequence[str]]
"""Column names, rows of cells, and the names of the columns that are aligned to the right."""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(plain("" if c is None else c).replace("|", "\\|") for c in cells) + " |"

    rule = "|" + "|".join("---:" if name in right else "---" for name in columns) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)]) + "\n"


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV with a header line; null is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else _scalar(cell) for cell in row] for row in rows)
    return file.getvalue()


def json_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A JSON list of objects; values that JSON does not know (NaN, infinities) are null, times are ISO 8601."""
    content = [{name: jsonable(cell) for name, cell in zip(columns, row, strict=True)} for row in rows]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def jsonable(value: Any) -> Any:
    """``value`` as JSON knows it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Decimal):
        return jsonable(float(value))
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [jsonable(item) for item in value]
    return str(value)


def _scalar(value: object) -> object:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, list | dict | tuple):
        return json.dumps(jsonable(value), ensure_ascii=False)
    return value


def write_parquet(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Parquet file. Raises ``UsageError`` for values of mixed types."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        arrays = [pa.array(list(cells)) for cells in zip(*rows, strict=True)] or [pa.nulls(0) for _ in columns]
        table = pa.Table.from_arrays(arrays, names=list(columns))
    except (pa.ArrowException, TypeError) as error:
        raise UsageError(f"these rows cannot be written as Parquet: {error}", place=str(path)) from error
    parquet.write_table(table, path)


def output(
    format: Format,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str],
    path: Path | None,
    show: Callable[[str], None],
    table: Callable[[], None],
    md: Callable[[], str] | None = None,
) -> None:
    """Write rows in a format to ``path``, or show them.

    ``show`` prints text; ``table`` prints the table for people; ``md`` makes Markdown where it is more than the rows.
    Raises ``UsageError`` for Parquet without a path, and where the path cannot be written.
    """
    if format == "parquet" and path is None:
        raise UsageError("a Parquet file needs a name", place="--format parquet", hint="add -o FILE")
    if format == "table" and path is None:
        table()
        return
    try:
        if format == "parquet":
            assert path is not None
            write_parquet(path, columns, rows)
            return
        if format in ("md", "table"):
            text = md() if md is not None else markdown(columns, rows, right)
        elif format == "csv":
            text = csv_text(columns, rows)
        else:
            text = json_text(columns, rows)
        if path is not None:
            path.write_text(text, encoding="utf-8")
            return
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", place=str(path)) from error
    show(text.rstrip("\n"))
