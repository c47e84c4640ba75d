"""``kdbench test-method``: whether a method keeps the contract."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kdbench.cli.common import ExitCode, Json, Plugins, print_json


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command("test-method")(conformance)


def conformance(
    methods: Annotated[list[str], typer.Argument(metavar="FILE|SLUG...", help="A method's file, or its name.")],
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="Try it on this task, not on the first it lists.")
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run a method on the smallest task of its track in every way that the contract speaks of.

    Exits with 1 where a check failed.

    Example: kdbench test-method my_idea.py
    """
    from kdbench.conformance.subjects import subjects

    registry, chosen = subjects(methods, tuple(plugin or ()))
    from tempfile import TemporaryDirectory

    from kdbench.conformance.checks import examine
    from kdbench.conformance.evidence import Evidence, smallest_task

    reports: list[dict[str, Any]] = []
    for method in chosen:
        spec = smallest_task(registry, method, task)
        if not as_json:
            typer.echo(typer.style(f"{method.key} on {spec.name}@{spec.scale}", bold=True))
        findings = []
        with TemporaryDirectory(prefix="kdbench-") as folder, _quiet():
            for found in examine(Evidence(registry, method, spec, Path(folder))):
                findings.append(found)
                if not as_json:
                    _show(found.check, found.state, found.message, found.advice)
        failed = sum(found.state == "failed" for found in findings)
        reports.append({"method": method.key, "task": spec.name, "findings": [asdict(found) for found in findings]})
        if not as_json:
            typer.echo(
                f"{len(findings) - failed} of {len(findings)} checks passed" if failed else "it keeps the contract"
            )
    if as_json:
        print_json(reports)
    if any(found["state"] == "failed" for report in reports for found in report["findings"]):
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that jobs go on from checkpoints, which is tried here."""
    logger = logging.getLogger("kdbench.training")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _show(check: str, state: str, message: str, advice: str) -> None:
    colour = {"ok": "green", "failed": "red"}.get(state, "yellow")
    line = f"  {typer.style(f'{state:<15}', fg=colour)}{check}"
    typer.echo(line + (f": {message}" if message else ""))
    if advice and state == "failed":
        typer.echo(f"{'':17}what to change: {advice}")
