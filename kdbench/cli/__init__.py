"""The command line: ``kdbench VERB``; one module per group of verbs, heavy imports inside their functions."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kdbench import __version__
from kdbench.cli.common import ExitCode
from kdbench.cli.common import report as report_error  # a module of this package is called report
from kdbench.errors import UsageError

VERBS = (
    "listing",
    "suites",
    "run",
    "verify",
    "watch",
    "results",
    "claims",
    "report",
    "exchange",
    "new",
    "conformance",
    "help",
    "sync",
    "maintenance",
)
"""Modules with verbs, in the order of the help; each has ``register(app)``."""


class Root(TyperGroup):
    """Turns what verbs raise into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except UsageError as error:
            report_error(error)
            raise typer.Exit(ExitCode.USAGE) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except BrokenPipeError as error:
            # the interpreter flushes once more when it ends; there is nobody left to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.PIPE_CLOSED) from error
        return result


def make_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="kdbench",
        cls=Root,
        help="Compare knowledge-distillation methods: same data, teacher, student and budget.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in VERBS:
        import_module(f"kdbench.cli.{name}").register(app)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit(ExitCode.OK)


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compare knowledge-distillation methods: same data, teacher, student and budget."""


def main() -> None:
    """Entry point of the command ``kdbench``."""
    # plans and boards make hundreds of thousands of objects that stay: by default each of them is looked at many times
    gc.set_threshold(50_000, 20, 50)
    make_app()()
