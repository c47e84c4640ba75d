"""Verbs that read results: leaderboard, compare, sql, show."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import Id, Json, Read, Reference, complain, print_json, read_from, table
from kdbench.cli.output import Format, FormatOption, Output, format_of, write_records
from kdbench.errors import UsageError, plain

if TYPE_CHECKING:
    from kdbench.errors import Problem
    from kdbench.leaderboard.boards import Board
    from kdbench.leaderboard.comparison import Comparison
    from kdbench.leaderboard.overall import Standings
    from kdbench.leaderboard.selection import Selection

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
    top: Annotated[
        int | None, typer.Option("--top", metavar="N", min=1, help="Of each table, the first N methods.")
    ] = None,
    format: FormatOption = None,
    output: Output = None,
    reference: Reference = False,
    results: Read = None,
) -> None:
    """Compare methods: one table per task, with intervals, ranks, gap closed and costs.

    Example: kdbench leaderboard --track vision --overall
    """
    from kdbench.leaderboard import boards, fronts, render
    from kdbench.leaderboard.selection import suite_name
    from kdbench.store import duck

    form = format_of(format, output)
    if top is not None and form not in ("table", "md"):
        raise UsageError(f"{form} has all rows, in order", place="--top", hint="leave it out")
    selection = boards.Selection(suite_name(suite), track, task)
    folder = read_from(results, reference)
    if over_tasks:
        _overall(selection, metric, by, mix_budgets, top, form, output, folder)
        return
    problems: list[Problem] = []
    found = duck.query(
        folder, lambda con: boards.load_boards(con, selection, metric, mix_budgets=mix_budgets), problems
    )
    _warn(problems)
    if by is not None:
        fronts.require_cost(found, by)
    write_records(
        boards.records(found, by),
        form,
        output,
        table=lambda: print_boards(found, by, at_most=top, whole="leave --top out"),
        md=lambda: render.boards_markdown(found, by, top),
    )


def _overall(
    selection: Selection,
    metric: str | None,
    by: str | None,
    mix_budgets: bool,
    top: int | None,
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
    write_records(
        overall.records(tables),
        format,
        path,
        table=lambda: _print_standings(tables, top),
        md=lambda: render.standings_markdown(tables, top),
    )


def _print_standings(tables: Iterable[Standings], at_most: int | None) -> None:
    from kdbench.leaderboard import aggregate, render

    for item in tables:
        columns, rows, right = render.standings_table(item)
        table(columns, rows[:at_most], title=render.standings_header(item), right=right)
        for note in filter(None, [render.left_out(rows, at_most), *item.notes]):
            typer.echo(f"  {plain(note)}")
        typer.echo("")
    typer.echo(aggregate.RULE)


def print_boards(found: Iterable[Board], by: str | None = None, *, at_most: int | None = None, whole: str = "") -> None:
    """Boards as tables, each with its header, rules and notes; refused ones as their header and the reasons.

    ``by``: against this cost, with the Pareto front. ``at_most``: rows of a board, the first ones; of one that has
    more it is said how many, and by ``whole`` what shows them.
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
        if render.left_out(rows, at_most):
            typer.echo(f"  {render.left_out(rows, at_most)}: {whole}")
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
    reference: Reference = False,
    results: Read = None,
) -> None:
    """Compare two methods in pairs: over seeds, and over the examples of the test set.

    Example: kdbench compare kd_fkl taid --task llm/text
    """
    from kdbench.leaderboard import comparison, render

    problems: list[Problem] = []
    found = comparison.compare(read_from(results, reference), a, b, task=task, metric=metric, problems=problems)
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
    reference: Reference = False,
    results: Read = None,
) -> None:
    """Query the results with SQL, read-only: the views jobs, metrics, costs, curves, leaderboard, tasks and suites.

    Example: kdbench sql "SELECT method, avg(score) FROM jobs GROUP BY ALL"
    """
    from kdbench.leaderboard import render
    from kdbench.store import sql as queries

    problems: list[Problem] = []
    text = sys.stdin.read() if query == "-" else query
    columns, rows = queries.run(read_from(results, reference), text, seconds=timeout, problems=problems)
    _warn(problems)

    def show_table() -> None:
        right = [name for i, name in enumerate(columns) if all(isinstance(row[i], int | float) for row in rows)]
        table(columns, [[_cell(cell) for cell in row] for row in rows], right=right)

    render.output(format_of(format, output), columns, rows, right=(), path=output, show=print, table=show_table)


def _cell(value: object) -> object:
    if value is None:
        return None
    return f"{value:.6g}" if isinstance(value, float) else plain(value)


def show(id: Id, as_json: Json = False, reference: Reference = False, results: Read = None) -> None:
    """Everything about one job: what it was, what it measured, what it cost, and why it failed.

    Example: kdbench show 3f2a
    """
    from kdbench.leaderboard.render import compact
    from kdbench.quantities import show_duration
    from kdbench.store import spool

    folder = spool.find_job(read_from(results, reference), id)
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


def _warn(problems: Iterable[Problem]) -> None:
    for problem in problems:
        complain("warning", problem)
