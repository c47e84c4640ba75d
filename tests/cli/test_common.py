"""Exit codes, messages, tables and JSON that all verbs share."""

from __future__ import annotations

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from kdbench.cli import Root
from kdbench.cli.common import ExitCode, open_registry, print_json, shown, table
from kdbench.errors import Problem, UsageError
from tests.helpers.plugins import write_method


def run_verb(error: BaseException):
    app = typer.Typer(cls=Root, pretty_exceptions_enable=False)

    @app.command()
    def verb() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    return CliRunner().invoke(app, ["verb"])


def test_every_problem_is_a_line_on_stderr_and_the_exit_code_is_2():
    problems = [Problem("suite.yaml:1:2", "wrong\n  in two lines", "do this"), Problem("", "no place")]
    result = run_verb(UsageError(problems))
    assert result.exit_code == ExitCode.USAGE == 2
    assert result.stderr.splitlines() == [
        "error: suite.yaml:1:2: wrong in two lines (do this)",
        "error: no place",
    ]
    assert result.stdout == ""


def test_an_interrupt_has_its_exit_code():
    result = run_verb(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (ExitCode.INTERRUPTED, "interrupted\n")
    assert ExitCode.INTERRUPTED == 130


def test_exit_codes_of_verbs_pass_through():
    assert run_verb(typer.Exit(ExitCode.FAILED)).exit_code == 1


def test_mistakes_of_kdbench_itself_are_not_hidden():
    assert isinstance(run_verb(ZeroDivisionError("a bug")).exception, ZeroDivisionError)


def test_every_exit_code_has_its_sentence():
    import inspect

    source = inspect.getsource(ExitCode)
    for code in ExitCode:
        after = source.split(f"{code.name} = {code.value}\n")[1].strip()
        assert after.startswith('"""')


def test_tables_are_aligned_and_whole_where_nobody_watches(capsys):
    table(("name", "n"), [("a", 1), ("long " * 60, None), ("[b]", 12345)], title="T", right=("n",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "T"
    assert lines[2].endswith("    1")
    assert "long " * 59 in lines[3]
    assert lines[4].startswith("[b]")
    assert lines[4].endswith("  12345")
    assert len({len(line) for line in (lines[1], lines[2], lines[4])}) == 1


def test_tables_on_a_terminal_fit_its_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    table(("name", "n"), [("word " * 30, 1), ("[bold]x", 2)], right=("n",))
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 40
    assert "[bold]x" in out
    assert out.count("word") == 30


def test_json_is_json_whatever_the_numbers(capsys, tmp_path):
    print_json({"nan": float("nan"), "inf": [float("-inf"), 1.5], "path": tmp_path, 3: (True, None, "ü")})
    text = capsys.readouterr().out
    assert json.loads(text) == {"nan": None, "inf": [None, 1.5], "path": str(tmp_path), "3": [True, None, "ü"]}
    assert "ü" in text


def test_places_below_the_current_folder_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(f"{tmp_path}/a/b.py:1:2") == "a/b.py:1:2"
    assert shown("/elsewhere/b.py:1") == "/elsewhere/b.py:1"


def test_a_broken_plugin_is_warned_about_and_its_use_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    path = write_method(tmp_path / "mine", "ill", old="def train", new="def trian")
    registry = open_registry([path])
    assert f"warning: {path}:13:1: plugin left out: trian is no hook" in capsys.readouterr().err
    assert registry.method("vision/teacher")
    with pytest.raises(UsageError, match="trian is no hook"):
        registry.method("ill")
