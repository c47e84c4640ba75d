"""``kdbench verify``: finished jobs run again, and what differs from the numbers that are stored."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import ExitCode, Json, Plugins, Read, Reference, complain, open_registry, print_json, read_from
from kdbench.cli.common import table as print_table
from kdbench.cli.run import Suites, Workers
from kdbench.cli.suites import Claims, Filters, Seeds

if TYPE_CHECKING:
    from kdbench.schedule.verify import Comparison, Verification

SAMPLE = 20
"""Jobs that are run again where nothing else is asked for: minutes, on most tracks."""


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    suites: Suites,
    results: Read = None,
    reference: Reference = False,
    sample: Annotated[int, typer.Option("--sample", metavar="N", min=1, help="How many jobs to draw.")] = SAMPLE,
    draw: Annotated[int, typer.Option("--draw", metavar="SEED", min=0, help="Another seed draws other jobs.")] = 0,
    filters: Filters = None,
    claims: Claims = False,
    seeds: Seeds = None,
    workers: Workers = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FOLDER", help="Keep the new outcomes and logs in this new folder.")
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run a random sample of finished jobs again and compare every number. Exit code 0: all are the same; 1: not all.

    Metrics and meters must agree to the last digit, but for clocks and memory. Other processors and packages round
    otherwise; where numbers differ, it says which of them are not what they were.

    Example: kdbench verify vision --reference --sample 10
    """
    from kdbench.schedule.console import Console
    from kdbench.schedule.session import execute, plan_run
    from kdbench.schedule.verify import draw_again
    from kdbench.suite import parse_seeds

    registry = open_registry(plugin)
    planned = plan_run(
        suites,
        results=read_from(results, reference, registry),
        seeds=None if seeds is None else parse_seeds(seeds),
        filter=filters,
        claims=claims,
        workers=workers,
        plugins=plugin or (),
        tracking=False,
        registry=registry,
        require_ready=False,
    )
    with _folder(keep) as into:
        verification = draw_again(planned, into, sample, draw)
        session = verification.session
        for note in session.notes:
            complain("note", note)
        result = execute(session, hooks=[Console(expected=session.seconds)], workers=workers)
        compared = verification.compare(result)
    if as_json:
        print_json(_data(verification, compared))
    else:
        _show(verification, compared)
    if result.signal is not None:
        raise typer.Exit(result.exit_code)
    raise typer.Exit(ExitCode.OK if all(one.state == "same" for one in compared) else ExitCode.FAILED)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the jobs run. Raises ``UsageError`` for a folder in which something is already."""
    from kdbench.errors import UsageError

    if keep is None:
        with tempfile.TemporaryDirectory(prefix="kdbench-verify-") as name:
            yield Path(name)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError("is not an empty folder", place=f"--keep {keep}", hint="name one that is not there")
    yield keep


# --- for people -------------------------------------------------------------------------------------------------------


def _show(verification: Verification, compared: Sequence[Comparison]) -> None:
    """The numbers that differ, what may have made them, and the sum of it."""
    rows = [
        (f"{was.job.task}@{was.job.scale}", was.job.label, was.job.seed, found.name, found.was, found.now)
        for one in compared
        for was in [one.was]
        for found in one.differences
    ]
    if rows:
        columns = ("task", "method", "seed", "number", "was", "is now")
        print_table(columns, rows, right=("seed", "was", "is now"))
        typer.echo("")
    for one in compared:
        if one.now is not None and one.state == "failed":
            job, error = one.was.job, one.now.error
            reason = "" if error is None else f": {' '.join(error.message.split())[:300]}"
            typer.echo(f"{one.now.status} now: {job.task}@{job.scale} {job.label} seed {job.seed}{reason}")
    changed = Counter(
        (name, *pair) for one in compared if one.state == "differs" for name, pair in one.surroundings.items()
    )
    for (name, then, now), jobs in changed.items():
        typer.echo(f"{name} was {then or 'not there'} and is {now or 'not there'}, in {jobs} of those that differ")
    typer.echo(_sum(verification, compared))


def _sum(verification: Verification, compared: Sequence[Comparison]) -> str:
    states = Counter(one.state for one in compared)
    numbers = sum(one.numbers for one in compared)
    methods = len({one.was.job.method for one in compared})
    words = {"same": "the same to the last digit", "differs": "different", "failed": "failed", "left": "not run"}
    said = ", ".join(f"{states[state]} {word}" for state, word in words.items() if states[state])  # type: ignore[index]
    drawn = f"{len(compared)} of {verification.candidates} finished jobs, of {methods} methods, run again"
    return f"{drawn}: {said} ({numbers} numbers compared)"


# --- for programs -----------------------------------------------------------------------------------------------------


def _data(verification: Verification, compared: Sequence[Comparison]) -> dict[str, Any]:
    states = Counter(one.state for one in compared)
    return {
        "candidates": verification.candidates,
        "jobs": [
            {
                "id": one.was.id,
                "task": one.was.job.task,
                "scale": one.was.job.scale,
                "method": one.was.job.method,
                "label": one.was.job.label,
                "seed": one.was.job.seed,
                "state": one.state,
                "numbers": one.numbers,
                "differences": [
                    {"kind": found.kind, "name": found.name, "was": found.was, "now": found.now}
                    for found in one.differences
                ],
                "surroundings": {name: {"was": was, "now": now} for name, (was, now) in one.surroundings.items()},
            }
            for one in compared
        ],
        **{state: states[state] for state in ("same", "differs", "failed", "left")},
    }
