"""Verbs that read results: leaderboard, compare, sql, show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdbench.cli.common import DEFAULT_RESULTS, Id, Json, Results, complain, print_json, table
from kdbench.errors import UsageError, plain

if TYPE_CHECKING:
    from kdbench.errors import Problem
    from kdbench.leaderboard.boards import Board
    from kdbench.leaderboard.comparison import Comparison
    from kdbench.leaderboard.overall import Standings
    from kdbench.leaderboard.selection import Selection

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
    track: Annotated[str | None, typer.Option("--track", metavar="NAME", help="Jobs of this track only.")] = None,
    task: Task = None,
    metric: Metric = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COST", help="Against a cost such as flops, with the Pareto front.")
    ] = None,
    over_tasks: Annotated[bool, typer.Option("--overall", help="One table over the tasks of each track.")] = False,
    mix_budgets: Annotated[
        bool, typer.Option("--mix-budgets", help="Put boards that differ only in their budget on one.")
    ] = False,
    format: FormatOption = None,
    output: Output = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Compare methods: one table per task, with intervals, ranks, gap closed and costs.

    Example: kdbench leaderboard --track vision --overall
    """
    from kdbench.leaderboard import boards, fronts, render
    from kdbench.leaderboard.selection import suite_name
    from kdbench.store import duck

    selection = boards.Selection(suite_name(suite), track, task)
    if over_tasks:
        _overall(selection, metric, by, mix_budgets, _format(format, output), output, results)
        return
    problems: list[Problem] = []
    found = duck.query(
        results, lambda con: boards.load_boards(con, selection, metric, mix_budgets=mix_budgets), problems
    )
    _warn(problems)
    if by is not None:
        fronts.require_cost(found, by)
    _output(
        boards.records(found, by),
        _format(format, output),
        output,
        table=lambda: print_boards(found, by),
        md=lambda: render.boards_markdown(found, by),
    )


def _overall(
    selection: Selection,
    metric: str | None,
    by: str | None,
    mix_budgets: bool,
    format: Format,
    path: Path | None,
    results: Path,
) -> None:
    """One table over the tasks of each track and scale."""
    from kdbench.leaderboard import overall, render
    from kdbench.store import duck

    if by is not None:
        raise UsageError("costs of different tasks are not added up", place="--by", hint="leave --overall out")
    overall.one_budget(mix_budgets)
    problems: list[Problem] = []
    tables = duck.query(results, lambda con: overall.load(con, selection, metric), problems)
    _warn(problems)
    _output(
        overall.records(tables),
        format,
        path,
        table=lambda: _print_standings(tables),
        md=lambda: render.standings_markdown(tables),
    )


def _output(
    records: Sequence[dict[str, Any]],
    format: Format,
    path: Path | None,
    *,
    table: Callable[[], None],
    md: Callable[[], str],
) -> None:
    from kdbench.leaderboard import render

    columns = list(records[0]) if records else ["task"]
    rows = [list(record.values()) for record in records]
    render.output(format, columns, rows, right=(), path=path, show=print, table=table, md=md)


def _print_standings(tables: Iterable[Standings]) -> None:
    from kdbench.leaderboard import aggregate, render

    for item in tables:
        columns, rows, right = render.standings_table(item)
        table(columns, rows, title=render.standings_header(item), right=right)
        for note in item.notes:
            typer.echo(f"  {plain(note)}")
        typer.echo("")
    typer.echo(aggregate.RULE)


def print_boards(found: Iterable[Board], by: str | None = None, *, at_most: int | None = None, whole: str = "") -> None:
    """Boards as tables, each with its header, rules and notes; refused ones as their header and the reasons.

    ``by``: against this cost, with the Pareto front. ``at_most``: rows of a board, the first ones; of one that has
    more it is said how many, and that the command ``whole`` shows them.
    """
    from kdbench.leaderboard import render

    for board in found:
        if board.refused:
            typer.echo(render.header(board))
            for line in render.refusal(board):
                typer.echo(f"  {line}")
            typer.echo("")
            continue
        columns, rows, right = render.board_table(board, by)
        table(columns, rows[:at_most], title=render.header(board), right=right)
        more = len(rows) - len(rows[:at_most])
        if more:
            typer.echo(f"  and {more} more method{'s' * (more != 1)}: {whole}")
        for note in [*render.rules(board, by), *board.notes]:
            typer.echo(f"  {plain(note)}")
        typer.echo("")
    typer.echo(render.closing(by))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Label, slug or track/slug of a method.")],
    b: Annotated[str, typer.Argument(metavar="B", help="As A; differences are A - B.")],
    task: Task = None,
    metric: Metric = None,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Compare two methods in pairs: over seeds, and over the examples of the test set.

    Example: kdbench compare kd_fkl taid --task llm/text
    """
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
                    [item.title, board.metric, over, *scores, f"{value.mean * factor:+.4g}", interval, p, value.n]
                )
    table(columns, rows, title=f"A = {plain(a)}, B = {plain(b)}", right=columns[3:])
    for item in found:
        for note in filter(None, [item.outlook, *item.notes]):
            typer.echo(f"  {plain(item.title)}: {plain(note)}")
    typer.echo(comparison.RULE)


def _comparison(item: Comparison) -> dict[str, Any]:
    return {
        **item.board.about(),
        "a": item.a.label,
        "b": item.b.label,
        "seeds": vars(item.seeds) if item.seeds else None,
        "separated": item.separated,
        "seeds_needed": item.needed,
        "more_seeds": item.more,
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
    """Query the results with SQL, read-only: the views jobs, metrics, costs, curves, leaderboard, tasks and suites.

    Example: kdbench sql "SELECT method, avg(score) FROM jobs GROUP BY ALL"
    """
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
    """Everything about one job: what it was, what it measured, what it cost, and why it failed.

    Example: kdbench show 3f2a
    """
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
    origin = outcome.provenance.get("imported")
    if isinstance(origin, dict):
        lines["imported"] = f"{origin.get('at', '')} UTC from {origin.get('from', '')}"
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


def _warn(problems: Iterable[Problem]) -> None:
    for problem in problems:
        complain("warning", problem)
