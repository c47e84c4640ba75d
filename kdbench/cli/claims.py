"""``kdbench claims``: which claims of papers hold here, and the jobs that tell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import (
    DEFAULT_RESULTS,
    Json,
    Plugins,
    Read,
    Reference,
    complain,
    open_registry,
    print_json,
    read_from,
    table,
)
from kdbench.cli.output import FormatOption, Output, format_of, write_records
from kdbench.errors import UsageError, did_you_mean, plain

if TYPE_CHECKING:
    from kdbench.cli.output import Format
    from kdbench.discovery.records import Method
    from kdbench.errors import Problem
    from kdbench.leaderboard.claims import Conclusion, Finding
    from kdbench.registry import Registry


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(claims)


Methods = Annotated[
    list[str] | None,
    typer.Argument(metavar="[METHOD]...", help="slug or track/slug; without, all whose card makes claims."),
]


def claims(
    methods: Methods = None,
    track: Annotated[str | None, typer.Option("--track", metavar="NAME", help="Only of this track.")] = None,
    scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="Scale of the tasks.")] = "cpu",
    run: Annotated[
        bool, typer.Option("--run", help="First run the jobs that the claims of METHOD still lack.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N|LIST", help="Of --run: a number of seeds, or the seeds; 5.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Of --run: also jobs that failed.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Of --run: jobs at once; the CPU cores.")
    ] = None,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Of --run: leave MLflow out.")] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Only how many papers and claims of each track came out how.")
    ] = False,
    format: FormatOption = None,
    output: Output = None,
    plugin: Plugins = None,
    as_json: Json = False,
    reference: Reference = False,
    results: Read = None,
) -> None:
    """Say which claims of papers are reproduced, not reproduced or undecided, and with --run make what is missing.

    Example: kdbench claims taid --run --seeds 5
    """
    from kdbench.leaderboard import claimtext
    from kdbench.leaderboard.claims import conclude, load_claims
    from kdbench.store import duck

    registry = open_registry(plugin)
    _require_scale(scale)
    chosen = _chosen(registry, methods or (), track)
    if as_json and (format is not None or output is not None):
        raise UsageError("--json prints JSON of its own form", place="--json", hint="leave it out, or the others")
    if run and reference:
        hint = "kdbench claims --run METHOD makes them in a folder of your own"
        raise UsageError("no jobs are added to the results that come with kdbench", place="--reference", hint=hint)
    if run and not methods:
        hint = "kdbench claims --run METHOD; without --run, all are listed"
        raise UsageError("which claims? --run needs the names of methods", place="--run", hint=hint)
    if not run and (seeds is not None or retry_failed or workers is not None or no_tracking):
        raise UsageError("--seeds, --retry-failed, --workers and --no-tracking are about jobs to run", hint="add --run")
    folder, code = read_from(results, reference, registry), 0
    if run:
        code = _run(registry, chosen, scale, seeds, folder, workers, retry_failed, plugin, not no_tracking)
    problems: list[Problem] = []
    keys = [method.key for method in chosen]
    found = duck.query(folder, lambda con: load_claims(con, registry, methods=keys, scale=scale), problems)
    for problem in problems:
        complain("warning", problem)
    findings = [finding for finding in found if finding.standard and finding.scale == scale]
    conclusions = conclude(findings)
    if summary:
        _print_ledger(conclusions, scale, format_of(format, output), output, as_json)
    elif as_json:
        print_json(_data(registry, conclusions, scale))
    else:
        options = _options(DEFAULT_RESULTS if reference else folder, plugin)
        shown = [f for conclusion in conclusions for f in conclusion.findings if methods or f.jobs]
        write_records(
            [finding.record() for finding in findings],
            format_of(format, output),
            output,
            table=lambda: _show(registry, conclusions, shown, options, explain=bool(methods)),
            md=lambda: claimtext.papers_markdown(conclusions, shown, registry, options),
        )
    if code:
        raise typer.Exit(code)


def _require_scale(scale: str) -> None:
    from kdbench.spec import SCALES

    if scale not in SCALES:
        raise UsageError(
            f"there is no scale {scale!r}", place="--scale", hint=did_you_mean(scale, SCALES, label="scales")
        )


def _chosen(registry: Registry, names: Sequence[str], track: str | None) -> list[Method]:
    """Methods with claims. Raises ``UsageError`` for a name that is unknown or whose card claims nothing."""
    if track is not None and track not in registry.tracks:
        hint = did_you_mean(track, list(registry.tracks), label="tracks")
        raise UsageError(f"there is no track {track!r}", place="--track", hint=hint)
    claiming = [m for m in registry.methods.values() if m.card.claims and track in (None, m.track)]
    if not names:
        if not claiming:
            raise UsageError("no card here makes claims", place="" if track is None else "--track")
        return claiming
    found = list(dict.fromkeys(registry.method(name, track).key for name in names))
    methods = [registry.methods[key] for key in found]
    for method in methods:
        if not method.card.claims:
            hint = did_you_mean(method.slug, [other.slug for other in claiming], label="with claims")
            raise UsageError(f"the card of {method.key} makes no claims", place=str(method.path), hint=hint)
    return methods


def _run(
    registry: Registry,
    methods: Sequence[Method],
    scale: str,
    seeds: str | None,
    results: Path,
    workers: int | None,
    retry_failed: bool,
    plugins: Sequence[Path] | None,
    tracking: bool,
) -> int:
    """Run the jobs that the claims of these methods are about and that are not done; returns the exit code."""
    from kdbench.leaderboard.stated import suite_of_claims
    from kdbench.schedule.console import Console
    from kdbench.schedule.session import execute, plan_run
    from kdbench.suite import DEFAULT_SEEDS, parse_seeds

    numbers = list(range(DEFAULT_SEEDS)) if seeds is None else parse_seeds(seeds)
    session = plan_run(
        [suite_of_claims(registry, method, scale, numbers) for method in methods],
        results=results,
        workers=workers,
        retry_failed=retry_failed,
        plugins=plugins or (),
        tracking=tracking,
        registry=registry,
    )
    for note in session.notes:
        complain("note", note)
    result = execute(session, hooks=[Console(expected=session.seconds)], workers=workers)
    jobs, todo, left = len(result.run.jobs), len(result.run.todo), len(result.left)
    typer.echo(
        f"{', '.join(result.run.suites)}: {jobs} job{'s' * (jobs != 1)}, {todo - left} of them run now, "
        f"{len(result.failed)} failed, {left} left",
        err=True,
    )
    return result.exit_code


# --- for programs -----------------------------------------------------------------------------------------------------


def _data(registry: Registry, conclusions: Sequence[Conclusion], scale: str) -> dict[str, Any]:
    return {"scale": scale, "papers": [_paper(registry, conclusion) for conclusion in conclusions]}


def _paper(registry: Registry, conclusion: Conclusion) -> dict[str, Any]:
    card = registry.methods[conclusion.method].card
    return {
        "method": conclusion.method,
        "title": card.title,
        "source": getattr(card, "source", None),
        "departures": list(getattr(card, "departures", ())),
        "verdict": conclusion.verdict,
        "findings": [{**finding.record(), "statement": finding.claim.note} for finding in conclusion.findings],
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _options(results: Path, plugins: Sequence[Path] | None) -> str:
    """What a command needs beside its own to find the same results and methods."""
    words = [] if results == DEFAULT_RESULTS else ["--results", str(results)]
    words += [word for path in plugins or () for word in ("--plugin", str(path))]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _print_ledger(
    conclusions: Sequence[Conclusion], scale: str, format: Format, output: Path | None, as_json: bool
) -> None:
    """How many papers and claims came out how."""
    from kdbench.leaderboard import ledger

    entries = ledger.ledger(conclusions)
    records = [entry.record() for entry in entries]
    if as_json:
        print_json({"scale": scale, "ledger": records})
        return

    def show() -> None:
        columns, rows, right = ledger.table(entries)
        table(columns, rows, right=right)
        typer.echo(f"\n{ledger.RULE}")

    write_records(records, format, output, table=show, md=lambda: ledger.to_markdown(entries))


def _show(
    registry: Registry,
    conclusions: Sequence[Conclusion],
    findings: Sequence[Finding],
    options: str,
    *,
    explain: bool,
) -> None:
    """Papers, then findings on them; ``explain``: and what the claims and departures are in words."""
    from kdbench.leaderboard import claimtext

    columns, rows, right = claimtext.conclusions_table(conclusions, registry, options)
    table(columns, rows, title=claimtext.summary(conclusions), right=right)
    if findings:
        typer.echo("")
        columns, rows, right = claimtext.findings_table(findings, options)
        table(columns, rows, right=right)
    typer.echo("")
    if claimtext.mixture(findings):
        typer.echo(claimtext.mixture(findings))
    if explain:
        _explain(registry, findings)
    typer.echo(claimtext.RULE)


def _explain(registry: Registry, findings: Sequence[Finding]) -> None:
    """What each claim says in words, and where our implementation departs from the paper."""
    for method in dict.fromkeys(finding.method for finding in findings):
        card = registry.methods[method].card
        for number, claim in enumerate(card.claims, 1):
            if claim.note:
                typer.echo(f"{plain(method)} claim {number}: {plain(claim.note)}")
        for departure in getattr(card, "departures", ()):
            typer.echo(f"{plain(method)} departs from its paper: {plain(departure)}")
