"""``kdbench doctor`` and ``kdbench cite``."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from kdbench.cli.common import DEFAULT_RESULTS, ExitCode, Json, Plugins, Results, open_registry, print_json, shown


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(doctor)
    app.command()(cite)


def doctor(plugin: Plugins = None, as_json: Json = False, results: Results = DEFAULT_RESULTS) -> None:
    """Look at this installation: versions, devices, optional packages, folders, locks, plugins.

    Exits with 2 where something will fail.

    Example: kdbench doctor --results /data/results
    """
    from kdbench.checkup import checkup, worst

    checks = checkup(open_registry(plugin, warn=False), results)
    if as_json:
        print_json({"state": worst(checks), "checks": [asdict(check) for check in checks]})
    else:
        for section, group in groupby(checks, key=lambda check: check.section):
            typer.echo(typer.style(section, bold=True))
            for check in group:
                mark = {"ok": "  ", "note": "- ", "problem": "! "}[check.state]
                colour = {"ok": None, "note": "yellow", "problem": "red"}[check.state]
                hint = f" ({check.hint})" if check.hint else ""
                typer.echo(typer.style(f"{mark}{shown(check.name):<18} {check.value}{hint}", fg=colour))
    if worst(checks) == "problem":
        raise typer.Exit(ExitCode.USAGE)


def cite(
    names: Annotated[list[str], typer.Argument(metavar="METHOD...", help="Methods, such as llm/taid.")],
    plugin: Plugins = None,
) -> None:
    """Print the papers of methods as BibTeX.

    Example: kdbench cite llm/taid vision/ofa_kd >> paper.bib
    """
    from kdbench.bibtex import bibliography

    registry = open_registry(plugin, warn=False)
    typer.echo(bibliography([registry.method(name).card for name in names]), nl=False)
