"""``kdbench verify`` as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kdbench.store import spool
from tests.toytrack import EXTENSION, write_method

KDBENCH = [sys.executable, "-c", "from kdbench.cli import main; main()"]
TURNS = """
import os
@hookimpl
def train(task, params):
    if os.environ.get("KDBENCH_TEST_BREAK"):
        raise ValueError("broken by now")
    return task.student()
"""


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs a verb on a suite of two methods and two seeds."""
    write_method(tmp_path / "m", "plain")
    write_method(tmp_path / "m", "turns", TURNS)
    suite = "tasks: [toy/bare@smoke]\nmethods: [plain, turns]\nseeds: 2\ntracking: false\n"
    (tmp_path / "mine.yaml").write_text(suite)

    def call(verb, *more):
        plugins = ["--plugin", str(EXTENSION), "--plugin", str(tmp_path / "m")]
        command = [*KDBENCH, verb, "mine.yaml", *plugins, *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return call


def test_the_same_numbers_are_exit_code_0_and_others_are_shown_and_1(go, tmp_path, monkeypatch):
    nothing = go("verify")
    assert nothing.returncode == 2
    assert (
        "error: results: has no finished job of mine as its methods and tasks are now (kdbench plan" in nothing.stderr
    )
    assert go("run").returncode == 0

    same = go("verify", "--sample", "3", "--keep", "again")
    assert same.returncode == 0, same.stderr
    assert same.stdout.startswith("3 of 4 finished jobs, of 2 methods, run again: 3 the same to the last digit (")
    assert len(list(spool.iter_outcomes(tmp_path / "again"))) == 3
    taken = go("verify", "--keep", "again")
    assert taken.returncode == 2
    assert "--keep again: is not an empty folder" in taken.stderr

    first = next(spool.iter_outcomes(tmp_path / "results"))
    name = first.job.spec["headline"]["name"]
    first.metrics[name] += 0.25
    first.provenance["packages"]["torch"] = "1.0"
    spool.write_outcome(spool.job_folder(tmp_path / "results", first.id), first)
    monkeypatch.setenv("KDBENCH_TEST_BREAK", "1")
    other = go("verify")
    assert other.returncode == 1, other.stderr
    assert "failed now: toy/bare@smoke turns seed 0: broken by now" in other.stdout
    data = json.loads(go("verify", "--json").stdout)
    assert (data["candidates"], data["failed"], data["left"]) == (4, 2, 0)

    monkeypatch.delenv("KDBENCH_TEST_BREAK")
    wrong = go("verify")
    assert wrong.returncode == 1, wrong.stderr
    row = next(line for line in wrong.stdout.splitlines() if line.startswith("toy/bare@smoke"))
    assert name in row
    assert "torch was 1.0 and is " in wrong.stdout
    assert "4 of 4 finished jobs, of 2 methods, run again: 3 the same to the last digit, 1 different (" in wrong.stdout


def test_reference_results_and_a_results_folder_are_one_or_the_other(go):
    both = go("verify", "--reference", "--results", "elsewhere")
    assert both.returncode == 2
    assert "--reference: --results names a folder" in both.stderr
