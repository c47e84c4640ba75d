"""Boards and rows as text: numbers with the digits that their intervals allow, tables, CSV, JSON, Parquet.

Labels, error messages and metric names come from plugins: control characters in them are never sent to a terminal.
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
from kdbench.leaderboard.boards import Board, Row
from kdbench.leaderboard.statistics import Estimate
from kdbench.quantities import show_duration

Format = Literal["table", "md", "csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

Table = tuple[Sequence[str], Sequence[Sequence[object]], Sequence[str]]
"""Column names, rows of cells, and the names of the columns that are aligned to the right."""

_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def compact(value: float | None) -> str:
    """A count or an amount with three significant digits and an SI prefix: ``6.4k``, ``1.23G``."""
    if value is None:
        return ""
    for factor, prefix in _SI:
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def estimate(value: Estimate | None, factor: float = 1.0) -> str:
    """``mean ± half interval`` with as many decimals as two digits of the half interval need.

    Without an interval (one seed) four significant digits of the mean.
    """
    if value is None:
        return ""
    mean, half = value.mean * factor, value.half
    if half is None:
        return f"{mean:.4g}"
    half *= factor
    if half == 0:
        return f"{mean:.4g} ± 0"
    decimals = min(max(1 - math.floor(math.log10(half)), 0), 6)
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def factor_of(board: Board) -> float:
    """100 for fractions that are shown in percent, 1 otherwise."""
    return 100.0 if board.unit == "%" and board.bounds[1] == 1 else 1.0


def header(board: Board) -> str:
    """One line: task, metric and direction, budget, seeds, and what the intervals are."""
    better = {"max": ", more is better", "min": ", less is better", None: ""}[board.direction]
    unit = f" in {board.unit}" if board.unit else ""
    budget = ", ".join(f"{amount:g} {name}" for name, amount in board.limits.items()) or "none"
    seeds = f"{board.seeds[0]}-{board.seeds[-1]}"
    if board.seeds != list(range(board.seeds[0], board.seeds[-1] + 1)):
        seeds = ", ".join(map(str, board.seeds[:8])) + (", ..." if len(board.seeds) > 8 else "")
    elif len(board.seeds) == 1:
        seeds = str(board.seeds[0])
    noun = "seed" if len(board.seeds) == 1 else "seeds"
    return plain(
        f"{board.title}: {board.metric}{unit}{better}; budget {budget}; student {noun} {seeds}; "
        f"± is the 95 % t interval over student seeds, with one teacher (seed {board.teacher_seed})"
    )


def board_table(board: Board) -> Table:
    """The table of a board, for people."""
    unit = f" ({board.unit})" if board.unit else ""
    score = f"{board.metric}{unit}"
    columns = ["rank", "method", score, "gap closed (%)", "n", "failed", "train", "teacher queries", "FLOPs", "params"]
    cells = [_cells(board, row) for row in board.rows]
    return columns, cells, [name for name in columns if name != "method"]


def _cells(board: Board, row: Row) -> list[object]:
    failed = ", ".join(f"{count} {status}" for status, count in sorted(row.failures.items()))
    seconds = row.costs.get("train_seconds")
    return [
        "" if row.rank is None else str(row.rank),
        plain(row.label) + (" *" if row.mixed else ""),
        estimate(row.score, factor_of(board)) or "no result",
        estimate(row.gap, 100),
        row.score.n if row.score else 0,
        failed,
        "" if seconds is None else show_duration(seconds),
        compact(row.costs.get("teacher_queries")),
        compact(row.costs.get("flops")),
        compact(row.costs.get("parameters")),
    ]


RULE = (
    "rank: the places that the data leave open, from 1 + the methods that are significantly better to all but those "
    "that are significantly worse (paired t tests over common seeds, Holm-corrected among a method's comparisons, "
    "level 0.05; a spread over seeds counts as one test example at least); methods with failed jobs rank behind all "
    "others. "
    "gap closed: (method - floor) / (ceiling - floor)"
)
"""What a table of a board needs to be read."""


def gap_names(board: Board) -> str:
    """Which methods are 0 and 100 % of the gap."""
    missing = [role for role in ("floor", "ceiling") if not getattr(board, role)]
    if missing:
        return f"gap closed: undefined, as the task has no {' and no '.join(missing)}"
    return f"gap closed: 0 is {board.floor}, 100 is {board.ceiling}"


def refusal(board: Board) -> list[str]:
    """What is shown instead of the rows of a refused board: one line of explanation, then the reasons."""
    return ["no leaderboard: these results say nothing about the methods, because", *map(plain, board.refused)]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(plain("" if c is None else c).replace("|", "\\|") for c in cells) + " |"

    rule = "|" + "|".join("---:" if name in right else "---" for name in columns) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)]) + "\n"


def boards_markdown(boards: Sequence[Board]) -> str:
    """Boards in Markdown, each with its header and notes."""
    parts = []
    for board in boards:
        if board.refused:
            lines = refusal(board)
            parts.append(f"**{header(board)}**\n\n{lines[0]}\n\n" + "".join(f"- {line}\n" for line in lines[1:]))
            continue
        columns, rows, right = board_table(board)
        notes = "".join(f"\n- {plain(note)}" for note in board.notes)
        parts.append(f"**{header(board)}**\n\n{markdown(columns, rows, right)}{notes}".rstrip() + "\n")
    return "\n".join([*parts, f"{RULE}\n"])


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
    try:
        if format == "parquet":
            assert path is not None
            write_parquet(path, columns, rows)
            return
        if format == "table" and path is None:
            table()
            return
        if format in ("md", "table"):
            text = md() if md is not None else markdown(columns, rows, right)
        elif format == "csv":
            text = csv_text(columns, rows)
        else:
            text = json_text(columns, rows)
        if path is None:
            show(text.rstrip("\n"))
        else:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", place=str(path)) from error
