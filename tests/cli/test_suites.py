"""``kdbench check`` and ``kdbench plan``: one clear message per problem, exit codes, JSON, no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.plan import make_plan
from kdbench.registry import discover
from kdbench.suite import load_suite
from tests.helpers.claims import compare, write_paper
from tests.helpers.outcomes import make_outcome, put
from tests.helpers.reference import come_with, ship
from tests.helpers.suites import write_methods
from tests.toytrack import EXTENSION

GOOD = "tasks: [line@smoke, bare@smoke]\nmethods: [plain, {method: tuned, grid: {alpha: [0.2, 0.4]}}]\nseeds: 2\n"


@pytest.fixture(scope="module")
def methods(tmp_path_factory) -> Path:
    return write_methods(tmp_path_factory.mktemp("methods"))


@pytest.fixture
def kdbench(methods, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(methods.parent / f"cache-of-{tmp_path.name}"))  # no teacher of other tests

    def run(verb: str, content: str | bytes | None, *options: str):
        path = tmp_path / "suite.yaml"
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        arguments = [verb, str(path), "--plugin", str(EXTENSION), "--plugin", str(methods)]
        return CliRunner().invoke(make_app(), [*arguments, "--results", str(tmp_path / "results"), *options])

    return run


ALIASES = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
)


@pytest.mark.parametrize("verb", ["check", "plan"])
@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        pytest.param(GOOD + "sede: 1\n", ":4:1", "unknown key 'sede' (did you mean 'seeds'?)", id="typo in a key"),
        pytest.param(GOOD + "budget: 3\n", ":4:9", "'budget' must be a mapping", id="wrong type"),
        pytest.param(GOOD.replace("plain", "plian"), ":2:11", "there is no method 'plian'", id="unknown method"),
        pytest.param(GOOD.replace("line", "lnie"), ":1:9", "there is no task 'lnie'", id="unknown task"),
        pytest.param(GOOD.replace("0.4", "4"), ":2:54", "'alpha' must be at least 0 and at most 1", id="out of range"),
        pytest.param(GOOD + "seeds: 3\n", ":4:1", "the key 'seeds' is given twice", id="duplicate key"),
        pytest.param("tasks:\n\t- line\n", ":2:1", "a tab indents this line", id="tab"),
        pytest.param("", ":1:1", "the file is empty", id="empty file"),
        pytest.param("[a, b]", ":1:1", "the file holds a list of 2 items", id="not a mapping"),
        pytest.param("x" * (10 << 20), "", "the file has 10,485,760 bytes, but YAML files up to", id="10 MB"),
        pytest.param(ALIASES, ":", "aliases blow this file up", id="alias bomb"),
        pytest.param(
            'tasks: !!python/object/apply:os.system ["touch marker"]\n',
            ":1:8",
            "never run code",
            id="tag that runs code",
        ),
        pytest.param(b"tasks: [\xff]\n", ":1:9", "byte 0xff is not UTF-8 text", id="not UTF-8"),
        pytest.param("a: 1\n---\nb: 2\n", ":2:1", "a second YAML document", id="two documents"),
        pytest.param("a: \0", ":1:4", "a NUL byte", id="NUL"),
        pytest.param("extends: suite.yaml\n", ":1:10", "suite.yaml -> suite.yaml", id="extends itself"),
        pytest.param(None, "", "there is no such file", id="missing file"),
    ],
)
def test_bad_input_gets_one_message_with_its_place(kdbench, tmp_path, monkeypatch, verb, content, place, words):
    monkeypatch.chdir(tmp_path)
    result = kdbench(verb, content)
    assert result.exit_code == 2, result.output
    assert f"error: suite.yaml{place}" in result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == (["suite.yaml"] if content is not None else [])


def test_all_problems_are_shown_each_on_its_line(kdbench):
    content = "tasks: [lin, line]\nmethods: [plian, {method: tuned, params: {alpha: 9}}]\nexecutor: lokal\n"
    result = kdbench("check", content)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert all(word in result.stderr for word in ("'lin'", "'plian'", "'alpha'", "'lokal'"))


def test_a_folder_is_no_suite(kdbench, tmp_path):
    (tmp_path / "suite.yaml").mkdir()
    result = kdbench("check", None)
    assert result.exit_code == 2
    assert "this is a folder, but a YAML file was expected" in result.stderr


def test_check_says_what_would_run(kdbench):
    result = kdbench("check", GOOD)
    assert result.exit_code == 0, result.output
    assert "suite: 12 jobs (2 tasks, 3 methods, 2 seeds): 0 done, 12 left" in result.stdout
    assert "teachers to make: 1 of 1: teacher of toy/line" in result.stdout
    assert "everything is there" in result.stdout


def test_check_refuses_what_this_machine_does_not_have_and_plan_warns(kdbench):
    content = GOOD + "resources: {cpus: 1000}\n"
    checked, planned = kdbench("check", content), kdbench("plan", content)
    assert (checked.exit_code, planned.exit_code) == (2, 0)
    assert "error: " in checked.stderr
    assert "each job asks for 1000 CPU cores" in checked.stderr
    assert "warning: " in planned.stderr
    assert "12 left" in planned.stdout


def test_plan_shows_jobs_by_task_and_method(kdbench):
    result = kdbench("plan", GOOD)
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("toy/")]
    assert [row[:2] for row in rows] == [
        [f"toy/{task}@smoke", label]
        for task in ("line", "bare")
        for label in ("plain", "tuned(alpha=0.2)", "tuned(alpha=0.4)")
    ]
    assert all(row[2:] == ["2", "0", "0", "0", "2"] for row in rows)


def test_plan_takes_seeds_and_filters(kdbench):
    result = kdbench("plan", GOOD, "--seeds", "4,", "--filter", "toy/line", "--filter", "tuned", "--json")
    data = json.loads(result.stdout)
    assert [(job["task"], job["label"], job["seed"]) for job in data["jobs"]] == [
        ("toy/line", "tuned(alpha=0.2)", 4),
        ("toy/line", "tuned(alpha=0.4)", 4),
    ]
    assert kdbench("plan", GOOD, "--filter", "none").exit_code == 2
    assert kdbench("plan", GOOD, "--seeds", "x").exit_code == 2


def test_plan_takes_what_claims_compare_and_says_so_where_nothing_is(kdbench, methods):
    write_paper(methods, "claims_tuned", compare("claims_tuned", "tuned", tasks=["bare"]))
    try:
        content = GOOD.replace("plain", "claims_tuned, tuned")
        shown = kdbench("plan", content, "--claims", "--summary")
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.startswith("suite: 4 jobs (1 task, 2 methods, 2 seeds): 0 done, 4 left\n")
        assert "toy/bare@smoke  " not in shown.stdout, "the table"
        early = kdbench("plan", content, "--undecided", "5")
        assert early.exit_code == 2
        assert "no results" in early.stderr
        assert "kdbench run" in early.stderr
        none = kdbench("plan", GOOD, "--claims")
        assert none.exit_code == 2
        assert none.stderr.startswith("error: --claims: no claim of a card compares jobs of this suite")
    finally:
        (methods / "claims_tuned.py").unlink()


def test_plan_says_by_what_the_time_is_estimated(kdbench, methods, tmp_path, monkeypatch):
    folder = come_with(monkeypatch, tmp_path / "reference")
    assert "time: unknown" in kdbench("plan", GOOD, "--summary").stdout
    jobs = make_plan(load_suite(tmp_path / "suite.yaml"), discover([EXTENSION, methods]), tmp_path / "results").jobs
    on_line = [job for job in jobs if job.task == "toy/line"]
    ship(folder, "toy", [make_outcome(job, 0.5, minutes=60) for job in on_line])
    lent = kdbench("plan", GOOD, "--summary").stdout
    assert re.search(r"time: about .* going by reference results, and 6 jobs of which nothing is known\n", lent)
    data = json.loads(kdbench("plan", GOOD, "--json").stdout)
    assert (data["jobs_by_reference_results"], data["jobs_without_estimate"]) == (6, 6)
    bare = next(job for job in jobs if job.task == "toy/bare")
    put(tmp_path / "results", make_outcome(bare, 0.5))
    both = kdbench("plan", GOOD, "--summary").stdout
    assert "going by past outcomes and, for 6 jobs, reference results\n" in both


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_json_for_programs(kdbench, verb):
    good, bad = kdbench(verb, GOOD, "--json"), kdbench(verb, GOOD + "x: 1\n", "--json")
    data = json.loads(good.stdout)
    assert (good.exit_code, data["ok"], data["job_count"], data["left"]) == (0, True, 12, 12)
    data = json.loads(bad.stdout)
    assert (bad.exit_code, data["ok"]) == (2, False)
    assert data["problems"][0]["message"] == "unknown key 'x'"
    assert data["problems"][0]["place"].endswith("suite.yaml:4:1")


def test_neither_verb_imports_torch(methods, tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD)
    script = (
        "import sys\nfrom kdbench.cli import make_app\n"
        "for verb in ('check', 'plan'):\n"
        "    make_app()([verb, *sys.argv[1:]], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'pandas', 'duckdb', 'mlflow', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [str(tmp_path / "a.yaml"), "--plugin", str(EXTENSION), "--plugin", str(methods)]
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert "everything is there" in done.stdout
