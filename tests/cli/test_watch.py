"""status, logs and cancel, as people type them in another terminal than that of the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.job import Place
from kdbench.schedule.requests import Requests
from kdbench.schedule.watch import Watch
from kdbench.store import runs, spool
from tests.helpers.outcomes import make_job, make_outcome, put
from tests.helpers.runs import make_run, wait_for
from tests.toytrack import EXTENSION, write_method

KDBENCH = [sys.executable, "-c", "from kdbench.cli import main; main()"]
JOBS = [make_job(seed=seed) for seed in range(4)]
ID = "20260102T030405-abcdef"


def call(results, *arguments):
    return CliRunner().invoke(make_app(), [*arguments, "--results", str(results)])


@pytest.fixture
def going(tmp_path):
    """A run of four jobs, one of which has failed and one runs."""
    run = make_run(tmp_path, JOBS, id=ID, suites={"mine": JOBS, "other": JOBS[:1]})
    with Watch(run, {JOBS[2].id: 90.0}, interval=0.01) as watch:
        watch.kdbench_run_started(run=run)
        failed = make_outcome(JOBS[0], None, status="oom")
        put(tmp_path, failed)
        watch.kdbench_job_finished(run=run, job=JOBS[0], outcome=failed)
        watch.kdbench_job_started(run=run, job=JOBS[1], place=Place(pid=1, devices=("0",), attempt=2))
        watch.kdbench_job_progress(run=run, job=JOBS[1], step=30, total=50, metrics={"loss": 1.0})
        watch.kdbench_job_usage(run=run, job=JOBS[1], usage={"rss_bytes": 2.0**30, "gpu_bytes": 2.0**31})
        wait_for(lambda: [worker.rss_bytes for worker in runs.seen(tmp_path, ID).state.workers] == [2.0**30])
        watch.exit_code = 1
        yield watch


def test_status_shows_suites_and_workers(tmp_path, going):
    done = call(tmp_path, "status")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"run {ID}: running for ")
    assert f"pid {os.getpid()} on " in lines[1]
    suites = {line.split()[0]: line for line in lines[3:6]}
    assert suites["mine"].split()[1:8] == ["4", "0", "1", "1", "0", "1", "3"]
    assert "about " in suites["mine"]
    assert suites["other"].split()[1:8] == ["1", "0", "1", "1", "0", "0", "0"]
    assert "about " not in suites["other"]
    assert suites["all,"].split()[4:11] == ["4", "0", "1", "1", "0", "1", "3"]
    (worker,) = lines[7:]
    assert worker.split()[:5] == [JOBS[1].id[:8], "(attempt", "2)", "vision/toy@cpu", "kd"]
    for cell in ("30/50", "GPU 0", "1.0 GiB", "2.0 GiB"):
        assert cell in worker


def test_status_for_programs(tmp_path, going):
    (run,) = json.loads(call(tmp_path, "status", "abc", "--json").stdout)
    assert (run["phase"], run["id"], run["total"]["left"]) == ("running", ID, 3)
    assert run["workers"][0]["job"] == JOBS[1].id
    assert run["workers"][0]["gpu_bytes"] == 2.0**31


def test_status_of_runs_that_have_ended(tmp_path, going):
    going.__exit__(None, None, None)
    done = call(tmp_path, "status", ID)
    assert done.exit_code == 0, done.output
    first, _, *rest = done.stdout.splitlines()
    assert "finished after" in first
    assert "with exit code 1" in first
    assert len(rest) == 4, "nothing runs any more"
    path = runs.run_folder(tmp_path, ID) / runs.STATE
    state = json.loads(path.read_text())
    for changes, words in [
        ({"exit_code": 130}, "interrupted after"),
        ({"exit_code": None, "error": "the disk\x1b is full"}, "the disk\\x1b is full; 3 jobs are left"),
        ({"finished": None}, "died after"),
    ]:
        path.write_text(json.dumps(state | changes))
        assert words in call(tmp_path, "status").stdout.splitlines()[0]


def test_status_is_repeated_until_the_run_has_ended(tmp_path, going, monkeypatch):
    looks = []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            going.__exit__(None, None, None)

    monkeypatch.setattr("kdbench.cli.watch.time.sleep", pause)
    shown = call(tmp_path, "status", "--watch", "--json").stdout.splitlines()
    assert [json.loads(line)[0]["phase"] for line in shown] == ["running", "running", "finished"]
    again = call(tmp_path, "status", "--watch").stdout
    assert again.count("finished after") == 1


def test_a_terminal_shows_it_in_place_until_the_run_has_ended(tmp_path, going):
    ours, theirs = os.openpty()
    command = [*KDBENCH, "status", "--watch", "--results", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    try:
        while b"30/50" not in shown:
            shown += os.read(ours, 1 << 16)
        going.__exit__(None, None, None)
        with contextlib.suppress(OSError):  # the end of what a terminal gives
            while data := os.read(ours, 1 << 16):
                shown += data
        assert process.wait(60) == 0
    finally:
        os.close(ours)
        process.kill()
        process.wait()
    assert b"finished after" in shown
    assert b"\x1b[2K" in shown, "what was shown before is replaced"


def test_teachers_that_are_being_made_can_be_followed(tmp_path, going):
    (tmp_path / spool.RUNNING).mkdir()
    with FileLock(tmp_path / spool.RUNNING / "teacher-12ab.lock"):
        assert "a teacher is being made: kdbench logs -f teacher-12ab" in call(tmp_path, "status").stdout


def test_cancel_asks_the_run(tmp_path, going):
    requests = Requests(tmp_path, ID)
    done = call(tmp_path, "cancel", JOBS[1].id[:6])
    assert done.exit_code == 0, done.output
    assert JOBS[1].id in done.stdout
    assert "vision/toy@cpu  kd  seed 1" in done.stdout
    assert requests.new() == [JOBS[1].id]
    assert call(tmp_path, "cancel", JOBS[3].id).exit_code == 0, "one that waits"
    assert requests.new() == [JOBS[3].id]
    done = call(tmp_path, "cancel", "abcdef")
    assert f"run {ID} is asked to stop" in done.stdout
    assert requests.new() == [None]


def test_a_job_of_two_runs_is_cancelled_where_it_runs_or_in_both(tmp_path, going):
    other = make_run(tmp_path, JOBS, id="20260102T030406-ffffff")
    with Watch(other) as watch:
        watch.kdbench_run_started(run=other)
        assert call(tmp_path, "cancel", JOBS[2].id).exit_code == 0
        assert [Requests(tmp_path, id).new() for id in (ID, other.id)] == [[JOBS[2].id]] * 2
        assert call(tmp_path, "cancel", JOBS[1].id).exit_code == 0, "the one that runs it is asked"
        assert [Requests(tmp_path, id).new()[1:] for id in (ID, other.id)] == [[JOBS[1].id], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cancel", JOBS[0].id], "ended already, as oom"),
        (["cancel", "nonsense"], "nothing that runs now has the id 'nonsense'"),
        (["cancel", ""], "cancel what?"),
        (["logs", "-f", "nonsense"], "no job has the id"),
        (["status", "nonsense"], "no run has the id"),
        (["logs", JOBS[3].id], "waits for its turn"),
        (["logs", JOBS[0].id], "wrote no log"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, going, arguments, message):
    done = call(tmp_path, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_several_things_could_mean_is_cancelled_nowhere(tmp_path, going):
    other = make_run(tmp_path, JOBS[:1], id="20260102T030405-fedcba")
    with Watch(other) as watch:
        watch.kdbench_run_started(run=other)
        done = call(tmp_path, "cancel", "2026")
        assert done.exit_code == 2
        assert ID in done.stderr
        assert other.id in done.stderr
    assert [Requests(tmp_path, id).new() for id in (ID, other.id)] == [[], []]


def test_who_stops_reading_a_log_is_no_mistake(tmp_path):
    put(tmp_path, make_outcome(JOBS[0]), log="line\n" * 100_000)
    for more in ([], ["-f"]):
        command = [*KDBENCH, "logs", *more, JOBS[0].id, "--results", str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141
        process.stderr.close()


def test_nothing_to_watch(tmp_path):
    assert "holds no runs yet" in call(tmp_path / "none", "status").stderr
    assert "nothing runs here now" in call(tmp_path / "none", "cancel", "x").stderr
    assert "holds no jobs yet" in call(tmp_path / "none", "logs", "-f", "x").stderr
    assert not (tmp_path / "none").exists()
    run = make_run(tmp_path, JOBS, id=ID)
    with Watch(run) as watch:
        watch.kdbench_run_started(run=run)
        watch.exit_code = 0
    done = call(tmp_path, "cancel", ID)
    assert done.exit_code == 2
    assert "does not go on any more: finished after" in done.stderr


def test_logs_follow_gives_the_log_and_notes_beside_it(tmp_path):
    put(tmp_path, make_outcome(JOBS[0]), log="one\ntwo\n")
    done = call(tmp_path, "logs", "-f", JOBS[0].id[:8], "-n", "1")
    assert (done.stdout, done.stderr) == ("two\n", "[kdbench] ended as ok after 1 min\n")


# --- beside a real run ------------------------------------------------------------------------------------------------

WAITS = """
import time
from pathlib import Path
@hookimpl
def train(task, params):
    print("seed", task.seed, "waits", flush=True)
    while not Path(f"go-{task.seed}").exists():
        time.sleep(0.02)
    print("seed", task.seed, "goes on", flush=True)
    return task.student()
"""


@pytest.fixture
def real(tmp_path):
    """``kdbench run`` of four jobs, two at a time, each of which ends when a file of its own appears."""
    write_method(tmp_path / "m", "waits", WAITS)
    (tmp_path / "mine.yaml").write_text("tasks: [toy/bare@smoke]\nmethods: [waits]\nseeds: 4\ntracking: false\n")
    command = [*KDBENCH, "run", "mine.yaml", "--plugin", str(EXTENSION), "--plugin", "m", "--workers", "2"]
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    try:
        results = tmp_path / "results"
        wait_for(lambda: running.poll() is not None or workers_with_memory(results) == 2)
        assert running.poll() is None, (tmp_path / "output").read_text()
        yield running, results
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()


def workers_with_memory(results):
    return sum(bool(worker.rss_bytes) for seen in runs.live(results) for worker in seen.state.workers)


def statuses(results):
    return sorted(outcome.status for outcome in spool.iter_outcomes(results))


def test_beside_a_run(real, tmp_path):
    """It is seen, a job that waits is followed to its end, one that runs is cancelled, and then the whole run."""
    running, results = real
    (state,) = [seen.state for seen in runs.live(results)]
    assert (state.pid, state.total.left, state.slots) == (running.pid, 4, 2)
    busy = {worker.job for worker in state.workers}
    waiting = runs.waiting(results).keys() - busy
    assert len(waiting) == 2

    followers = {id: tmp_path / f"followed-{id}" for id in waiting}
    processes = []
    for id, path in followers.items():
        with path.open("w") as output:
            command = [*KDBENCH, "logs", "-f", id, "--results", str(results)]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output))
    try:
        wait_for(lambda: all("it waits" in path.read_text() for path in followers.values()))
        assert call(results, "cancel", min(busy)).exit_code == 0
        wait_for(lambda: any("waits\n" in path.read_text() for path in followers.values()))
        assert statuses(results) == ["interrupted"], "a slot is free, and one of those that waited has it"
        (id,) = [id for id, path in followers.items() if "waits\n" in path.read_text()]
        seed = int(followers[id].read_text().split("seed")[1].split()[0])
        (tmp_path / f"go-{seed}").touch()
        wait_for(lambda: "ended as ok" in followers[id].read_text())
        lines = followers[id].read_text().splitlines()
        assert [line for line in lines if line.startswith("seed")] == [f"seed {seed} waits", f"seed {seed} goes on"]

        assert call(results, "cancel", state.id).exit_code == 0
        assert running.wait(60) == 130, "as after Ctrl-C"
        assert [process.wait(60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert statuses(results) == ["interrupted", "ok"]
    (other,) = followers.keys() - {id}
    assert "it was interrupted" in followers[other].read_text().splitlines()[-1]
    seen = runs.seen(results, state.id)
    total = seen.state.total
    assert (seen.phase, total.done, total.cancelled, total.left) == ("interrupted", 1, 1, 2)
    assert seen.state.workers == []
