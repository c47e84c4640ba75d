"""The help of every verb shows how it is used, with commands that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from kdbench.cli import make_app

APP = make_app()


def verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb and every group of verbs, with the words that lead to it."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))


VERBS = dict(verbs(typer.main.get_command(APP)))


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_has_an_example_that_its_help_shows_in_one_line(path):
    shown = CliRunner().invoke(APP, [*path, "--help"]).stdout
    examples = re.findall(r"^ *Example: (kdbench .*)$", shown, re.MULTILINE)
    assert examples, f"{' '.join(path)} has no example"
    for example in examples:
        words = shlex.split(example)[1:]
        if ">>" in words:
            words = words[: words.index(">>")]
        assert tuple(words[: len(path)]) == path
        depth = max(n for n in range(1, len(words) + 1) if tuple(words[:n]) in VERBS)
        command = VERBS[tuple(words[:depth])]
        context = command.context_class(command, info_name="kdbench")
        command.make_parser(context).parse_args(list(words[depth:]))  # raises for options that do not exist


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_and_every_option_says_what_it_is(path):
    command = VERBS[path]
    first = (command.help or "").strip().partition("\n\n")[0]
    assert first.rstrip().endswith("."), f"{' '.join(path)}: the help begins with a sentence"
    silent = [p.name for p in command.params if not getattr(p, "help", None)]
    assert silent == [], f"{' '.join(path)}: {silent} have no help"


def test_shells_can_complete():
    assert "--install-completion" in CliRunner().invoke(APP, ["--help"]).stdout
