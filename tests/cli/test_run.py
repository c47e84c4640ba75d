"""``kdbench run`` as a person meets it: exit codes, messages, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from kdbench.cli.results import print_boards
from kdbench.cli.run import ROWS
from kdbench.leaderboard.boards import Selection, load_boards
from kdbench.store import duck, spool
from tests.helpers.claims import compare, write_paper
from tests.helpers.outcomes import grid, put
from tests.toytrack import EXTENSION, PLAIN, write_method

KDBENCH = [sys.executable, "-c", "from kdbench.cli import main; main()"]

WAITS = """
import time
@hookimpl
def train(task, params):
    if task.seed:
        print("waiting", flush=True)
        time.sleep(600)
    return task.student()
"""


@pytest.fixture
def command(tmp_path):
    """Writes a suite and gives the command that runs it in ``tmp_path``."""

    def make(*methods, seeds=2, body=None, **more):
        folder = tmp_path / "m"
        for slug in methods:
            write_method(folder, slug, *([body] if body else []))
        lines = [f"tasks: [toy/bare@smoke]\nmethods: [{', '.join(methods)}]\nseeds: {seeds}\ntracking: false"]
        lines += [f"{key}: {value}" for key, value in more.items()]
        (tmp_path / "mine.yaml").write_text("\n".join(lines) + "\n")
        return [*KDBENCH, "run", "mine.yaml", "--plugin", str(EXTENSION), "--plugin", str(folder)]

    return make


def go(command, cwd, *more):
    return subprocess.run([*command, *more], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_ends_with_a_table_the_paths_and_what_to_type_next(command, tmp_path):
    start = command("plain")
    planned = go(start, tmp_path, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "would run 2 jobs" in planned.stdout
    assert not (tmp_path / "results").exists()

    done = go(start, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(lines) == 2
    assert lines[0].startswith("[1/2] ok")
    assert "toy/bare@smoke" in done.stdout
    assert "mine: 2 jobs: 2 ok" in done.stdout
    assert "results/jobs" in done.stdout
    assert "next: kdbench leaderboard --suite mine" in done.stdout

    started = time.monotonic()
    again = go(start, tmp_path)
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started < 20, "nothing is imported for nothing (about a second on an idle machine)"
    assert "[1/" not in again.stderr


def test_several_suites_are_one_run_with_a_summary_of_each(command, tmp_path):
    start = command("plain", "other")
    (tmp_path / "two.yaml").write_text("tasks: [toy/bare@smoke]\nmethods: [plain]\nseeds: 3\ntracking: false\n")
    start = [*start[:5], "two.yaml", *start[5:]]
    assert start[3:6] == ["run", "mine.yaml", "two.yaml"]
    planned = go(start, tmp_path, "--dry-run", "--json")
    data = json.loads(planned.stdout)
    assert [plan["job_count"] for plan in data["suites"]] == [4, 3]
    assert len(data["to_run"]) == 5, "two jobs are in both"

    done = go(start, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine: 4 jobs: 4 ok (4 of them now)" in done.stdout
    assert "two: 3 jobs: 3 ok (3 of them now)" in done.stdout
    assert done.stdout.count("page: results/leaderboards/") == 2
    assert "kdbench leaderboard --suite mine; kdbench leaderboard --suite two" in done.stdout
    assert "5 of 5 jobs to run" in done.stderr

    again = json.loads(go(start, tmp_path, "--json").stdout)
    assert (again["suite"], again["jobs"], again["ran"], again["ok"]) == ("mine + two", 5, 0, 5)
    assert {name: part["ok"] for name, part in again["suites"].items()} == {"mine": 4, "two": 3}

    (tmp_path / "two.yaml").write_text("name: mine\ntasks: [toy/bare@smoke]\nmethods: [plain]\nexecutor: ray\n")
    refused = go(start, tmp_path)
    assert refused.returncode == 2
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: two.yaml:")]
    assert len(errors) == 3, "the name, the executor and the tracking"


def test_only_what_claims_compare_runs_and_a_suite_without_any_is_left_out_of_several(command, tmp_path):
    start = command("plain", "old", "new", seeds=1)
    for slug in ("new", "old"):
        (tmp_path / "m" / f"{slug}.py").unlink()
    write_paper(tmp_path / "m", "new", compare("new", "old", tasks=["bare"]), body=PLAIN)
    write_paper(tmp_path / "m", "old", body=PLAIN)
    done = go(start, tmp_path, "--claims")
    assert done.returncode == 0, done.stderr
    assert "mine: 2 jobs: 2 ok (2 of them now)" in done.stdout
    assert sorted(outcome.job.label for outcome in spool.iter_outcomes(tmp_path / "results")) == ["new", "old"]

    more = json.loads(go(start, tmp_path, "--undecided", "1", "--seeds", "3", "--dry-run", "--json").stdout)
    assert (more["seeds"], more["job_count"], more["done"], len(more["to_run"])) == ([0, 1, 2], 6, 2, 4)

    (tmp_path / "two.yaml").write_text("tasks: [toy/bare@smoke]\nmethods: [plain]\nseeds: 3\ntracking: false\n")
    both = json.loads(go([*start[:5], "two.yaml", *start[5:]], tmp_path, "--claims", "--dry-run", "--json").stdout)
    assert (both["suite"], both["job_count"], both["to_run"]) == ("mine", 2, [])
    alone = go([*start[:4], "two.yaml", *start[5:]], tmp_path, "--claims")
    assert alone.returncode == 2
    assert "--claims: no claim of a card compares jobs of this suite" in alone.stderr


def test_failed_jobs_are_exit_code_1_with_the_commands_to_look_and_to_retry(command, tmp_path):
    done = go(command("bad", seeds=1, body="@hookimpl\ndef train(task, params):\n    return 1 / 0\n"), tmp_path)
    assert done.returncode == 1, done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "kdbench logs " in done.stdout
    assert "--retry-failed runs the failed jobs again" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--stale", "never"], "--stale: 'never' is neither"),
        (["--seeds", "many"], "--seeds: 'many' is neither"),
        (["--filter", "no-such-job"], "no-such-job"),
        (["--results", "mine.yaml"], "mine.yaml"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_message(command, tmp_path, more, words):
    done = go(command("plain"), tmp_path, *more)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def interrupted(start, tmp_path, *signals):
    """Start the run, send the signals once a job waits, and return the ended process with its output."""
    running = subprocess.Popen(
        start, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    logs = lambda: [path.read_text() for path in tmp_path.glob("results/running/*/log.txt")]  # noqa: E731
    wait_for(lambda: sum("waiting" in text for text in logs()) == 2 or running.poll() is not None)
    for number in signals:
        running.send_signal(number)
        time.sleep(0.02)
    out, err = running.communicate(timeout=60)
    return running, out, err


@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGINT,), 130), ((signal.SIGTERM,), 143), ((signal.SIGINT, signal.SIGINT), 130)],
)
def test_an_interruption_keeps_what_is_done_and_says_what_is_left(command, tmp_path, signals, code):
    start = command("waits", seeds=4, body=WAITS)
    running, out, err = interrupted([*start, "--workers", "2"], tmp_path, *signals)
    assert running.returncode == code, err
    assert "Traceback" not in err
    assert len(list(tmp_path.glob("results/jobs/*/outcome.json"))) == 1
    assert list(tmp_path.glob("results/running/*")) == []
    assert "1 ok, 3 left" in out
    assert "the same command runs the 3 jobs that are left" in out
    assert not processes_below(tmp_path)


def test_a_coordinator_that_is_killed_takes_its_jobs_with_it_and_loses_nothing(command, tmp_path):
    start = command("waits", seeds=3, body=WAITS)
    running, _, _ = interrupted([*start, "--workers", "2"], tmp_path, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    wait_for(lambda: not processes_below(tmp_path), 15)
    assert len(list(tmp_path.glob("results/jobs/*/outcome.json"))) == 1
    body = "@hookimpl\ndef train(task, params):\n    return task.student()\n"
    done = go(command("waits", seeds=3, body=body), tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("results/running/*")) == []


def processes_below(folder):
    """Processes that work in ``folder``, as jobs and their servers do."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(folder):
                found.append(int(pid))
        except OSError:
            continue
    return found


def test_the_end_of_a_run_shows_the_first_rows_of_a_board_and_how_to_see_the_rest(tmp_path, capsys):
    put(tmp_path, grid({f"m{number:02}": [0.9 - number / 100] * 3 for number in range(ROWS + 2)}))
    boards = duck.query(tmp_path, lambda con: load_boards(con, Selection()))
    print_boards(boards, at_most=ROWS, whole="kdbench leaderboard")
    cut = capsys.readouterr().out
    assert "and 2 more methods: kdbench leaderboard" in cut
    print_boards(boards, at_most=ROWS + 2)
    whole = capsys.readouterr().out
    assert "more method" not in whole
    assert re.findall(r"\bm\d\d\b", cut) == [f"m{number:02}" for number in range(ROWS)], "the best ones"
