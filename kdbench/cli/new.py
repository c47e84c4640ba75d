"""``kdbench new method`` and ``kdbench new package``: something to start from that runs as it is."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.common import Plugins, open_registry

if TYPE_CHECKING:
    from kdbench.scaffold.method import Written


class Style(StrEnum):
    """How a method trains."""

    loss = "loss"
    loop = "loop"


Way = Annotated[Style, typer.Option("--style", help="A loss for task.fit, or a training loop of its own.")]
"""Default: ``Style.loss``."""
Folder = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Where to write, made where it is missing.")]
"""Default: the current folder."""


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    new = typer.Typer(no_args_is_help=True)
    new.callback()(_new)
    for verb in (method, package):
        new.command()(verb)
    app.add_typer(new, name="new")


def _new() -> None:
    """Write a method, or a package of methods, to start from.

    Example: kdbench new method my_idea --track llm
    """


def method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the method and its file, such as my_idea.")],
    track: Annotated[str, typer.Option("--track", metavar="NAME", help="The track whose problems it solves.")],
    style: Way = Style.loss,
    folder: Folder = Path(),
    tests: Annotated[
        Path | None, typer.Option("--tests", metavar="FOLDER", help="Where its test goes; beside it.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write a method in one file that trains as it is, with its test and a suite with its rivals.

    Example: kdbench new method my_idea --track llm --style loop
    """
    from kdbench.scaffold.method import new_method

    registry = open_registry(plugin)
    _tell(new_method(registry, name, track, style=style.value, folder=folder, tests=tests))


def package(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the distribution, such as my-kd-methods.")],
    track: Annotated[str, typer.Option("--track", metavar="NAME", help="Of its first method.")] = "vision",
    style: Way = Style.loss,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="Its first method.")] = "my_idea",
    folder: Folder = Path(),
    plugin: Plugins = None,
) -> None:
    """Write an installable package with one method, its tests, a suite and a workflow for continuous integration.

    Example: kdbench new package my-kd-methods --track llm
    """
    from kdbench.scaffold.package import new_package

    registry = open_registry(plugin)
    _tell(new_package(registry, name, track, style=style.value, method=method, folder=folder))


def _tell(written: Written) -> None:
    for path in written.files:
        typer.echo(f"wrote {path}")
    typer.echo("\nnext:")
    width = max(len(command) for command, _ in written.commands)
    for command, meaning in written.commands:
        typer.echo(f"  {command:<{width}}  # {meaning}")
