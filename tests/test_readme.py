"""The README shows what is there: its example is the tested file, its commands exist, its suite is valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.plan import make_plan
from kdbench.registry import discover
from kdbench.suite import load_suite, suite_of
from kdbench.worker import run_job
from tests.helpers.outcomes import grid, put

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "docs" / "examples" / "annealed_kd.py"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_method_shown_is_the_tested_file():
    assert EXAMPLE.read_text() in blocks("python")


def shown_commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:].split("#")[0].strip() for line in lines if line.startswith("$ kdbench ")]


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_shown_exists_with_its_options(command: str):
    words = shlex.split(command)
    verbs = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]
    assert words[1] in verbs
    verb = verbs[words[1]]
    while hasattr(verb, "commands"):
        words = words[1:]
        verb = verb.commands[words[1]]
    known = {option for parameter in verb.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} <= known


def test_every_track_is_in_the_table_with_its_page_and_suites():
    linked = dict(re.findall(r"^\| \[(\w+)\]\((docs/tracks/\w+\.md)\)", README, re.MULTILINE))
    assert set(linked) == set(discover().tracks)
    for name, page in linked.items():
        assert (ROOT / page).is_file()
        assert (ROOT / "suites" / f"{name}.yaml").is_file()
        assert (ROOT / "suites" / "paper" / f"{name}.yaml").is_file()


def test_the_suite_shown_is_valid(tmp_path: Path):
    (shown,) = (block for block in blocks("yaml") if block.startswith("name: my-comparison"))
    path = tmp_path / "my.yaml"
    path.write_text(shown)
    assert load_suite(path).name == "my-comparison"


def test_the_example_is_found_without_being_executed():
    method = discover([EXAMPLE]).method("annealed_kd", "vision")
    assert method.source == "--plugin"
    assert {field.name for field in method.fields} == {"start", "end", "weight"}


def test_the_example_runs_on_a_task_of_the_quickstart(tmp_path: Path):
    registry = discover([EXAMPLE])
    suite = suite_of({"tasks": ["vision/digits-fewlabel@smoke"], "methods": ["annealed_kd"], "seeds": 1})
    (job,) = make_plan(suite, registry, tmp_path).jobs
    outcome = run_job(job, tmp_path / "job", registry=registry)
    assert outcome.status == "ok", outcome.error


def test_the_queries_shown_give_what_they_are_for(tmp_path: Path):
    put(tmp_path, grid({"kd": [0.5, 0.7], "sft": [0.4, 0.4]}, task="llm/instruct"))
    queries = [one for one in shown_commands() if one.startswith("kdbench sql") and "--reference" not in one]
    assert queries
    for query in queries:
        arguments = [*shlex.split(query)[1:], "--results", str(tmp_path), "--format", "csv"]
        result = CliRunner().invoke(make_app(), arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[1:] == ["llm/kd,0.6", "llm/sft,0.4"]


def test_the_suite_of_the_example_resolves(tmp_path: Path):
    plan = make_plan(load_suite(EXAMPLE.with_name("annealed.yaml")), discover([EXAMPLE]), tmp_path)
    assert len(plan.jobs) == 15
