"""Verbs that read results: leaderboard, compare, sql, show."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdbench.cli.common import DEFAULT_RESULTS, Id, Json, Results, complain, print_json, table
from kdbench.errors import plain

if TYPE_CHECKING:
    from kdbench.errors import Problem
    from kdbench.leaderboard.boards import Board
    from kdbench.leaderboard.comparison import Comparison

Format = Literal["table", "md", "csv", "json", "parquet"]
_SUFFIXES: dict[str, Format] = {".md": "md", ".csv": "csv", ".json": "json", ".parquet": "parquet"}

FormatOption = Annotated[
    Format | None, typer.Option("--format", "-f", help="Default: table, or what the suffix of --output says.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead.")]
Task = Annotated[str | None, typer.Option("--task", metavar="TASK", help="track/name or name, with @scale for one.")]
Metric = Annotated[str | None, typer.Option("--metric", help="Default: the headline metric of each task.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    for verb in (leaderboard, compare, sql, show):
        app.command()(verb)


def leaderboard(
    suite: Annotated[str | None, typer.Option("--suite", metavar="NAME", help="Jobs of this suite only.")] = None,
    track: Annotated[str | None, typer.Option("--track", metavar="NAME")] = None,
    task: Task = None,
    metric: Metric = None,
    format: FormatOption = None,
    output: Output = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Compare methods: one table per task, with intervals, ranks, gap closed and costs."""
    from kdbench.leaderboard import boards, render
    from kdbench.store import duck

    selection = boards.Selection(_suite_name(suite), track, task)
    problems: list[Problem] = []
    found = duck.query(results, lambda con: boards.load_boards(con, selection, metric), problems)
    _warn(problems)
    records = boards.records(found)
    columns = list(records[0]) if records else ["task"]
    render.output(
        _format(format, output),
        columns,
        [list(record.values()) for record in records],
        right=(),
        path=output,
        show=print,
        table=lambda: print_boards(found),
        md=lambda: render.boards_markdown(found),
    )


def print_boards(found: Iterable[Board]) -> None:
    """Boards as tables, each with its header and notes; refused ones as their header and the reasons."""
    from kdbench.leaderboard import render

    for board in found:
        if board.refused:
            typer.echo(render.header(board))
            for line in render.refusal(board):
                typer.echo(f"  {line}")
            typer.echo("")
            continue
        columns, rows, right = render.board_table(board)
        table(columns, rows, title=render.header(board), right=right)
        for note in [render.gap_names(board), *board.notes]:
            typer.echo(f"  {plain(note)}")
        typer.echo("")
    typer.echo(render.RULE)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Label, slug or track/slug of a method.")],
    b: Annotated[str, typer.Argument(metavar="B", help="As A; differences are A - B.")],
    task: Task = None,
    metric: Metric = None,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Compare two methods in pairs: over seeds, and over the examples of the test set."""
    from kdbench.leaderboard import comparison, render

    problems: list[Problem] = []
    found = comparison.compare(results, a, b, task=task, metric=metric, problems=problems)
    _warn(problems)
    if as_json:
        print_json([_comparison(item) for item in found])
        return
    columns = ["task", "metric", "over", "A", "B", "A - B", "95 % interval", "p", "n"]
    rows: list[list[object]] = []
    for item in found:
        board, factor = item.board, render.factor_of(item.board)
        for over, value in (("seeds", item.seeds), ("examples", item.examples)):
            if value is not None:
                low, high = value.low, value.high
                interval = "" if low is None or high is None else f"{low * factor:+.4g} to {high * factor:+.4g}"
                p = "" if value.p is None else f"{value.p:.3g}"
                scores = [render.estimate(row.score, factor) if over == "seeds" else "" for row in (item.a, item.b)]
                rows.append(
                    [board.title, board.metric, over, *scores, f"{value.mean * factor:+.4g}", interval, p, value.n]
                )
    table(columns, rows, title=f"A = {plain(a)}, B = {plain(b)}", right=columns[3:])
    for item in found:
        for note in item.notes:
            typer.echo(f"  {item.board.title}: {plain(note)}")
    typer.echo(
        "over seeds: paired t test on common seeds, speaks of new students; over examples: paired bootstrap "
        "(percentile interval), speaks of new test examples for these very students"
    )


def _comparison(item: Comparison) -> dict[str, Any]:
    return {
        **item.board.about(),
        "a": item.a.label,
        "b": item.b.label,
        "seeds": vars(item.seeds) if item.seeds else None,
        "examples": vars(item.examples) if item.examples else None,
        "notes": item.notes,
    }


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT; - reads it from standard input.")],
    format: FormatOption = None,
    output: Output = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds after which the query is stopped.")
    ] = 60,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Query the results with SQL, read-only: the views jobs, metrics, costs, curves, leaderboard, tasks and suites."""
    from kdbench.leaderboard import render
    from kdbench.store import sql as queries

    problems: list[Problem] = []
    text = sys.stdin.read() if query == "-" else query
    columns, rows = queries.run(results, text, seconds=timeout, problems=problems)
    _warn(problems)

    def show_table() -> None:
        right = [name for i, name in enumerate(columns) if all(isinstance(row[i], int | float) for row in rows)]
        table(columns, [[_cell(cell) for cell in row] for row in rows], right=right)

    render.output(_format(format, output), columns, rows, right=(), path=output, show=print, table=show_table)


def _cell(value: object) -> object:
    if value is None:
        return None
    return f"{value:.6g}" if isinstance(value, float) else plain(value)


def show(id: Id, as_json: Json = False, results: Results = DEFAULT_RESULTS) -> None:
    """Everything about one job: what it was, what it measured, what it cost, and why it failed."""
    from kdbench.leaderboard.render import compact
    from kdbench.quantities import show_duration
    from kdbench.store import spool

    folder = spool.find_job(results, id)
    outcome = spool.read_outcome(folder)
    if outcome is None:
        typer.echo(f"{folder.name} has no outcome yet: it is running, or was interrupted (kdbench logs {folder.name})")
        return
    if as_json:
        typer.echo(outcome.model_dump_json(indent=2))
        return
    job = outcome.job
    lines = {
        "job": outcome.id,
        "status": outcome.status + (f" (attempt {outcome.attempts})" if outcome.attempts > 1 else ""),
        "method": f"{job.method} as {job.label}" if job.label else job.method,
        "task": f"{job.task}@{job.scale} ({job.spec_digest})",
        "seed": job.seed,
        "suite": job.suite,
        "started": f"{outcome.started_at:%Y-%m-%d %H:%M:%S} UTC, took {show_duration(outcome.seconds)}",
        "folder": folder,
    }
    for name, value in lines.items():
        typer.echo(f"{name:9} {plain(value)}")
    if outcome.error is not None:
        typer.echo(f"error     {plain(outcome.error.type)}: {plain(outcome.error.message)}")
        for line in outcome.error.traceback.splitlines():
            typer.echo(f"          {plain(line)}")
    for title, values in (("parameters", job.params), ("metrics", outcome.metrics), ("own metrics", outcome.extra)):
        if values:
            typer.echo("")
            cells = [[plain(name), _cell(value)] for name, value in values.items()]
            table([title, "value"], cells, right=["value"])
    if outcome.cost:
        typer.echo("")
        table(["cost", "amount"], [[plain(k), compact(v)] for k, v in outcome.cost.items()], right=["amount"])
    git = outcome.provenance.get("git") or {}
    typer.echo("")
    typer.echo(
        f"commit {plain(git.get('commit', 'unknown'))}{' with uncommitted changes' if git.get('dirty') else ''}, "
        f"device {plain(outcome.provenance.get('device', 'unknown'))}; artifacts: "
        f"{plain(', '.join(outcome.artifacts)) or 'none'}"
    )


def _format(format: Format | None, output: Path | None) -> Format:
    if format is not None:
        return format
    return _SUFFIXES.get(output.suffix.lower(), "table") if output is not None else "table"


def _suite_name(suite: str | None) -> str | None:
    """A suite by its name or its file."""
    if suite is None or not suite.endswith((".yaml", ".yml")):
        return suite
    from kdbench.yamlio import load

    path = Path(suite)
    data = load(path).data
    return str(data.get("name") or path.stem) if isinstance(data, dict) else path.stem


def _warn(problems: Iterable[Problem]) -> None:
    for problem in problems:
        complain("warning", problem)
