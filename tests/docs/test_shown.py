"""What the documentation shows is what there is: commands, their output, suites, and code that is a tested file."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from kdbench.catalog import Catalog
from kdbench.cli import make_app
from kdbench.plan import make_plan
from kdbench.registry import Registry, discover
from kdbench.suite import Suite, load_suite, suite_of
from kdbench.worker import prepare, run_job
from tests.helpers.documents import DOCS, ROOT, Shown, blocks, commands

EXAMPLES = DOCS / "examples"
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text()
    for path in sorted(DOCS.rglob("*.md"))
    if path.relative_to(DOCS).parts[0] not in ("_build", "_ext", "methods")
}
SHOWN = [
    pytest.param(shown, id=f"{page}: {shown.command[:50]}") for page, text in PAGES.items() for shown in commands(text)
]


def words_of(shown: Shown) -> list[str]:
    return shlex.split(shown.command)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", SHOWN)
def test_every_command_shown_exists_with_its_options(shown: Shown):
    words = words_of(shown)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[0] != "kdbench":
        return
    command, words = typer.main.get_command(make_app()), words[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    assert not hasattr(command, "commands"), f"{shown.command} names no verb"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}


WITH_OUTPUT = [case for case in SHOWN if case.values[0].output]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader types: a checkout, with the results that come with the documentation."""
    there = tmp_path_factory.mktemp("reader")
    (there / "docs").symlink_to(DOCS)
    for results in ("annealed-results", "waves-results"):
        command = ["import", str(EXAMPLES / results), "--results", str(there / "results")]
        assert CliRunner().invoke(make_app(), command).exit_code == 0
    return there


def matches(shown: str, printed: str) -> bool:
    """Whether a text is printed; a line ``...`` stands for any lines, spaces at the ends of lines do not count."""
    lines = [line.rstrip() for line in shown.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in lines)
    plain = "".join(line.rstrip() + "\n" for line in printed.splitlines())
    return re.fullmatch(pattern, plain) is not None


@pytest.mark.parametrize("shown", WITH_OUTPUT)
def test_the_output_shown_is_what_is_printed(
    shown: Shown, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = words_of(shown)
    if words[:2] == ["kdbench", "import"]:  # the first that there is
        (tmp_path / "docs").symlink_to(DOCS)
        reader = tmp_path
    monkeypatch.chdir(reader)
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
    else:
        printed = CliRunner().invoke(make_app(), words[1:], terminal_width=200).output
    assert matches(shown.output, printed), printed


def test_output_is_compared_line_by_line():
    assert matches("a\n...\nd\n", "a\nb\nc\nd\n")
    assert matches("a  \n...\n", "a\n")
    assert not matches("a\n...\nd\n", "a\nb\n")
    assert not matches("a\n", "a\nb\n")


# --- suites -----------------------------------------------------------------------------------------------------------


def shown_suites() -> list[object]:
    return [
        pytest.param(block, id=f"{page}-{number}")
        for page, text in PAGES.items()
        for number, block in enumerate(blocks(text, "yaml"))
    ]


@pytest.mark.parametrize("block", shown_suites())
def test_every_suite_shown_is_valid(block: str, tmp_path: Path):
    """Parts of a suite are, in one that has the rest; alternatives are written as comments."""
    alternatives = [
        block,
        *(line.removeprefix("# ") + "\n" for line in re.findall(r"^# \w+: .*$", block, re.MULTILINE)),
    ]
    (tmp_path / "my.yaml").write_text("name: my\ntasks: [vision/digits-gap]\nmethods: [kd]\n")
    for text in alternatives:
        data = yaml.safe_load(text)
        if "track" in data:
            continue  # tasks: see below
        assert {key.removesuffix("+") for key in data} <= set(Suite.model_fields)
        if not {"tasks", "methods"} <= set(data) and "extends" not in data:
            text = "extends: my.yaml\n" + text
        path = tmp_path / "shown.yaml"
        path.write_text(text)
        suite = load_suite(path)
        if suite.executor.name == "local" and not any("hf-" in task.task for task in suite.tasks):
            assert make_plan(suite, discover(), tmp_path).jobs


def test_the_tasks_shown_are_tasks(tmp_path: Path):
    (block,) = [b for text in PAGES.values() for b in blocks(text, "yaml") if b.startswith("track:")]
    path = tmp_path / "tasks.yaml"
    path.write_text(block)
    catalog = Catalog(discover().tracks, [(path, "shown")])
    assert catalog.broken == []
    assert catalog.resolve("vision/digits-tiny").limits == {"steps": 100}


# --- code -------------------------------------------------------------------------------------------------------------


def test_all_code_shown_is_a_file_that_is_tested():
    """Pages include files; the tests below, and those of the README, run them."""
    assert [page for page, text in PAGES.items() if blocks(text, "python")] == []
    included = {
        path
        for text in PAGES.values()
        for path in re.findall(r"^```\{literalinclude\} (?:\.\./)*examples/(\S+)$", text, re.M)
    }
    tested = {"annealed_kd.py", "annealed.yaml", "own_loop.py", "notify.py", "first_run.py", "frame.py", "waves.yaml"}
    tested |= {
        "own_draft.py",
        "own_generator.py",
        "own_reinforcement.py",
        "own_unmasking.py",
        "own_policy.py",
        "own_set.py",
    }
    tested |= {f"waves/{path.name}" for path in (EXAMPLES / "waves").iterdir() if path.is_file()}
    assert included <= tested
    assert {path.name for path in EXAMPLES.glob("*.*")} <= tested | {"wrong.yaml"}


@pytest.mark.parametrize(
    ("example", "task"),
    [
        ("own_loop", "vision/digits-fewlabel"),
        ("own_draft", "decoding/arith"),
        ("own_reinforcement", "reasoning_rl/mixed"),
        ("own_generator", "diffusion/ring"),
        ("own_unmasking", "dllm/fixed"),
        ("own_policy", "policy/nav-bimodal"),
        ("own_set", "dataset_distillation/digits"),
    ],
)
def test_a_method_of_ones_own_trains(example: str, task: str, tmp_path: Path):
    registry = discover([EXAMPLES / f"{example}.py"])
    suite = suite_of({"tasks": [f"{task}@smoke"], "methods": [example], "seeds": 1})
    (job,) = make_plan(suite, registry, tmp_path).jobs
    outcome = run_job(job, tmp_path / "job", registry=registry)
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == job.spec["limits"]["steps"]


def test_the_extension_contributes_a_suite_and_notes_failures(tmp_path: Path):
    from types import SimpleNamespace as Some

    registry = discover([EXAMPLES / "notify.py"])
    assert registry.suites()["annealed"] == EXAMPLES / "annealed.yaml"
    job = Some(label="kd", task="vision/digits-gap", seed=3)
    for status in ("ok", "diverged"):
        registry.manager.hook.kdbench_job_finished(
            run=Some(results=tmp_path), job=job, outcome=Some(status=status, job=job)
        )
    assert (tmp_path / "failures.txt").read_text() == "kd on vision/digits-gap, seed 3: diverged\n"


def test_a_suite_runs_from_python(tmp_path: Path):
    command = [sys.executable, str(EXAMPLES / "first_run.py")]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        [method, seed, "ok"] for method in ("teacher", "no_kd", "kd") for seed in ("0", "1")
    ]


@pytest.fixture
def waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The track of the documentation, as an installed package whose entry points are those shown."""
    (shown,) = [tomllib.loads(block) for text in PAGES.values() for block in blocks(text, "toml")]
    points = shown["project"]["entry-points"]["kdbench"]
    metadata = tmp_path / "installed" / "waves-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: waves\nVersion: 1.0\n")
    lines = ["[kdbench]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "installed" / "waves").symlink_to(EXAMPLES / "waves")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    yield discover()
    for name in [name for name in sys.modules if name.split(".")[0] == "waves"]:
        del sys.modules[name]


def test_the_track_of_the_documentation_is_whole(waves: Registry, tmp_path: Path):
    assert waves.broken == []
    assert {key for key in waves.methods if key.startswith("waves/")} == {
        f"waves/{slug}" for slug in ("mimic", "plain", "teacher")
    }
    assert len(make_plan(load_suite(EXAMPLES / "waves.yaml"), waves, tmp_path).jobs) == 24
    smoke = suite_of({"tasks": ["waves/sine@smoke"], "methods": ["teacher", "plain", "mimic"], "seeds": 1})
    scores = {}
    for job in make_plan(smoke, waves, tmp_path).jobs:
        prepare(job, tmp_path / "prepared", registry=waves)
        outcome = run_job(job, tmp_path / job.id, registry=waves)
        assert outcome.status == "ok", outcome.error
        scores[outcome.job.label] = outcome.headline
    assert scores["teacher"] < scores["plain"]
    assert scores["teacher"] < scores["mimic"]
