"""Bad input through the real command line: one clear message or a recorded outcome, and everything else goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.store import spool
from tests.toytrack import EXTENSION, write_method

KDBENCH = [sys.executable, "-c", "from kdbench.cli import main; main()"]

FAULTS = {
    "raises": "@hookimpl\ndef train(task, params):\n    raise ValueError('no\\x1b[2J luck')\n",
    "returns_none": "@hookimpl\ndef train(task, params):\n    task.student()\n",
    "never_ends": "@hookimpl\ndef train(task, params):\n    while True:\n        pass\n",
    "exits": "import sys\n@hookimpl\ndef train(task, params):\n    sys.exit(0)\n",
    "not_a_number": """
        @hookimpl
        def train(task, params):
            student = task.student()
            student.weight.data.fill_(float("nan"))
            return student
        """,
    "takes_all_memory": """
        @hookimpl
        def train(task, params):
            held = []
            while True:
                held.append(bytearray(1 << 26))
        """,
    "fails_to_import": "raise ImportError('not here')\n@hookimpl\ndef train(task, params):\n    pass\n",
    "prints": """
        @hookimpl
        def train(task, params):
            for _ in range(10_000):
                print("x" * 100)
            return task.student()
        """,
}
"""Methods that are found, and whose jobs go wrong (but for ``prints``)."""

REASONS = {
    "raises": ("failed", "ValueError: no\\x1b[2J luck"),
    "returns_none": ("failed", "train returned None"),
    "never_ends": ("timeout", "it ran longer than"),
    "exits": ("failed", "the method called sys.exit(0)"),
    "not_a_number": ("diverged", "values in weight of the trained Linear are NaN or infinite"),
    "takes_all_memory": ("oom", "600"),
    "fails_to_import": ("failed", "ImportError: not here"),
}

UNUSABLE = {
    "bad_syntax": ("def train(:\n", "not valid Python"),
    "no_hook": ("", "there is no train hook"),
    "not_decorated": ("def train(task, params):\n    pass\n", "train is not decorated"),
    "bad_argument": ("@hookimpl\ndef train(task, optimiser):\n    pass\n", "train has no argument 'optimiser'"),
}
"""Methods that reading their source already refuses."""


def go(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*KDBENCH, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """One run of every fault beside a sound method and beside plugins that cannot even be read."""
    folder = tmp_path_factory.mktemp("zoo")
    for slug, body in FAULTS.items():
        write_method(folder / "methods", slug, body)
    for slug, (body, _) in UNUSABLE.items():
        write_method(folder / "methods", slug, body)
    write_method(folder / "methods", "sound")
    write_method(folder / "methods" / "again", "sound")
    (folder / "methods" / "no_card.py").write_text("from kdbench import hookimpl\n@hookimpl\ndef train(task): ...\n")
    (folder / "methods" / "computed.py").write_text(
        "import os\nfrom kdbench import Baseline\nCARD = Baseline(slug='computed', title=os.name, "
        "track='toy', tasks=['*'])\n"
    )
    (folder / "zoo.yaml").write_text(
        f"tasks: [toy/bare@smoke]\nmethods: [sound, {', '.join(FAULTS)}]\nseeds: 1\ntracking: false\n"
        "timeout: 3s\nresources: {memory: 600 MiB}\n"
    )
    plugins = ["--plugin", str(EXTENSION), "--plugin", "methods", "--plugin", "methods/again"]
    return folder, plugins, go(folder, "run", "zoo.yaml", *plugins)


def test_bad_methods_are_recorded_and_the_others_go_on(zoo):
    folder, _, done = zoo
    assert done.returncode == 1, done.stderr
    lines = {line.split()[3]: line for line in done.stderr.splitlines() if line.startswith("[")}
    for slug in ("sound", "prints"):
        assert " ok " in lines[slug]
    for slug, (status, words) in REASONS.items():
        assert f"] {status} " in lines[slug]
        assert words in lines[slug]
    assert "\x1b" not in done.stderr, "a terminal must not take what a method said for commands"
    recorded = {outcome.job.label: outcome.status for outcome in spool.iter_outcomes(folder / "results")}
    assert recorded == dict.fromkeys(("sound", "prints"), "ok") | {
        slug: status for slug, (status, _) in REASONS.items()
    }


def test_the_leaderboard_shows_failures(zoo, monkeypatch):
    folder, _, done = zoo
    shown = {line.split()[0]: line for line in done.stdout.splitlines() if "no result" in line}
    assert shown.keys() == REASONS.keys()
    assert all(f"1 {status}" in shown[slug] for slug, (status, _) in REASONS.items())
    monkeypatch.chdir(folder)
    rows = json.loads(CliRunner().invoke(make_app(), ["leaderboard", "--format", "json"]).stdout)
    assert {row["label"] for row in rows if row["n_failed"]} == REASONS.keys()


def test_unusable_plugins_are_listed_with_place_and_reason_and_stop_nobody(zoo, monkeypatch):
    folder, plugins, _ = zoo
    monkeypatch.chdir(folder)
    listed = CliRunner().invoke(make_app(), ["methods", "--track", "toy", *plugins])
    assert listed.exit_code == 0
    assert "toy/sound" in listed.stdout
    lines = [line.strip() for line in listed.stdout.splitlines() if line.strip().startswith("methods/")]
    for slug, (_, words) in UNUSABLE.items():
        (line,) = [line for line in lines if line.startswith(f"methods/{slug}.py:")]
        assert words in line
    for words in (
        "no_card.py:1:1: there is no card",
        "title: os.name is not a literal",
        "toy/sound is defined already",
    ):
        assert any(words in line for line in lines), words
    taken = next(line for line in lines if "defined already" in line)
    assert "methods/again/sound.py" in taken
    assert "methods/sound.py" in taken


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("taks: [toy/bare]\nmethods: [sound]\n", ["1:1: unknown key 'taks' (did you mean 'tasks'?)"]),
        ("tasks: toy/bare\nmethods: [sound]\n", ["1:8: 'tasks' must be a list, but is the text 'toy/bare'"]),
        ("tasks: [toy/bare]\nmethods: [soudn]\n", ["2:11: there is no method 'soudn' (did you mean 'sound'"]),
        ("tasks: [toy/bear]\nmethods: [sound]\n", ["1:9: there is no task 'toy/bear' (did you mean 'toy/bare'"]),
        (
            "tasks: [vision/digits-fewlabel@smoke]\nmethods:\n- method: kd\n  params: {weight: 2, wight: 1}\n",
            [
                "4:20: 'weight' must be at least 0 and at most 1, but is the number 2",
                "4:23: vision/kd has no parameter",
            ],
        ),
        (  # form, names and parameters of one file at once
            "tasks: [toy/bare@huge, toy/lime]\nmethods:\n- {method: sound, prams: 1}\n- soundd\nseed: 2\n",
            ["1:9: 'tasks[0].scale'", "1:24: there is no task 'toy/lime'", "3:19: unknown key 'prams'"]
            + ["4:3: there is no method 'soundd'", "5:1: unknown key 'seed' (did you mean 'seeds'?)"],
        ),
        ("tasks: [toy/bare]\nmethods: [sound]\ntasks: [x]\n", ["3:1: the key 'tasks' is given twice"]),
        ("tasks:\n\t- toy/bare\n", ["2:1: a tab indents this line"]),
        ("", ["1:1: the file is empty"]),
        ("a" * 10_000_000, [" the file has 10,000,000 bytes"]),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{k}: &{k} [{','.join(['*' + j] * 10)}]\n" for j, k in zip("abcdef", "bcdefg", strict=True)),
            ["aliases blow this file up"],
        ),
        ("tasks: !!python/object/apply:os.system ['touch pwned']\n", ["1:8: the tag !!python/object/apply:os.system"]),
    ],
    ids=["key", "type", "method", "task", "range", "all", "twice", "tab", "empty", "large", "bomb", "tag"],
)
def test_bad_suites_get_their_place_and_exit_code_2(tmp_path, monkeypatch, content, said):
    write_method(tmp_path / "m", "sound")
    (tmp_path / "bad.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(make_app(), ["run", "bad.yaml", "--plugin", str(EXTENSION), "--plugin", "m"])
    assert done.exit_code == 2, done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == len(said), lines
    for line, words in zip(lines, said, strict=True):
        assert line.startswith("error: bad.yaml:")
        assert words in line
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "results").exists()


def test_results_that_cannot_be_written_are_one_message(zoo, monkeypatch):
    folder, plugins, _ = zoo
    monkeypatch.chdir(folder)
    Path("file").write_text("")
    for place in ("file", "file/below"):
        done = CliRunner().invoke(make_app(), ["run", "zoo.yaml", *plugins[:4], "--results", place])
        assert done.exit_code == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert errors == [f"error: {place}: is not a folder of results"]


def test_damaged_files_of_results_are_healed_or_named(zoo, monkeypatch):
    folder, plugins, _ = zoo
    monkeypatch.chdir(folder)
    results = folder / "results"
    for database in (results / "kdbench.duckdb", results / "store" / "kdbench.duckdb"):
        database.write_bytes(database.read_bytes()[:5000])
        healed = CliRunner().invoke(make_app(), ["sql", "SELECT count(*) AS n FROM jobs", "--format", "csv"])
        assert healed.exit_code == 0, healed.stderr
        assert healed.stdout.split() == ["n", str(len(FAULTS) + 1)]

    outcome = next(o for o in spool.iter_outcomes(results) if o.job.label == "prints")
    path = spool.job_folder(results, outcome.id) / spool.OUTCOME
    path.write_text(path.read_text()[:300])
    # what is damaged in place changes no folder, so that only commands that read every outcome see it
    made_anew = CliRunner().invoke(make_app(), ["rebuild"])
    assert made_anew.exit_code == 0
    assert f"{outcome.id}/outcome.json: damaged outcome" in made_anew.stderr
    shown = CliRunner().invoke(make_app(), ["leaderboard"])
    assert shown.exit_code == 0
    assert f"{outcome.id}/outcome.json: damaged outcome" in shown.stderr
    assert "sound" in shown.stdout
    again = go(folder, "run", "zoo.yaml", *plugins)
    assert "zoo: 1 of 9 jobs to run" in again.stderr
    assert "zoo: 9 jobs: 2 ok, 7 failed (1 of them now)" in again.stdout
