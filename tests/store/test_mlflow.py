"""MLflow: fed once per outcome by another process; a broken server costs a line in a log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.job import Outcome, Run
from kdbench.paths import default_tracking_uri
from kdbench.store import fresh, membership, mlflow, reporter, spool
from kdbench.store.cursor import Cursor, Sent, content_digest
from kdbench.store.mlflowrun import describe
from tests.helpers.outcomes import grid, make_job, make_outcome, put


def run_of(results: Path, outcomes: list[Outcome], uri: str | None, *, todo: bool = True) -> Run:
    jobs = [outcome.job for outcome in outcomes]
    return Run(
        id="r",
        suites={"toy": [job.id for job in jobs]},
        results=results,
        jobs=jobs,
        todo=[job.id for job in jobs] * todo,
        tracking=uri,
    )


def sent(results: Path, id: str, run: str = "r") -> Sent:
    return Sent(content_digest(spool.job_folder(results, id)), spool.stamp_text(spool.stamps(results)[id]), run)


def test_cursor_remembers_and_finds_what_is_new(tmp_path: Path) -> None:
    first, second = put(tmp_path, grid({"kd": [0.5, 0.6]}))
    membership.add(tmp_path, "toy", [first.id, second.id, "unfinished"], "u")
    one, two = ("toy", first.id), ("toy", second.id)
    cursor = Cursor.of(tmp_path, "u")
    assert set(cursor.pending()) == {one, two}
    cursor.begin(one, "token")
    assert Cursor.of(tmp_path, "u").dangling == {one: "token"}
    cursor.done(one, sent(tmp_path, first.id, "run1"))
    again = Cursor.of(tmp_path, "u")
    assert again.pending() == [two]
    assert (again.dangling, again.tokens, again.count) == ({}, {"token"}, 1)
    # a second suite has the job, too; another server has nothing of either
    membership.add(tmp_path, "other", [first.id], "u")
    assert set(again.pending()) == {two, ("other", first.id)}
    assert again.pending(["toy"]) == [two]
    assert Cursor.of(tmp_path, "v").pending() == []
    assert len(Cursor.of(tmp_path, "v").pending(["toy"])) == 2
    # touched or copied is not new, other content is
    (spool.job_folder(tmp_path, first.id) / spool.OUTCOME).touch()
    assert again.pending(["toy"]) == [two]
    put(tmp_path, make_outcome(first.job, 0.9))
    assert set(again.pending(["toy"])) == {one, two}
    # what replaces a run leaves the old one to be deleted, until it is
    again.done(one, sent(tmp_path, first.id, "run2"))
    assert Cursor.of(tmp_path, "u").leftover == {"run1"}
    again.deleted("run1")
    again.forget(one)
    assert Cursor.of(tmp_path, "u").leftover == set()
    assert set(Cursor.of(tmp_path, "u").pending(["toy"])) == {one, two}


def test_another_experiment_has_nothing_of_its_suite(tmp_path: Path) -> None:
    cursor = Cursor.of(tmp_path, "u")
    cursor.belongs("toy", "1@5")
    cursor.done(("toy", "a"), Sent("c", "s", "r"))
    cursor.done(("other", "a"), Sent("c", "s", "r2"))
    cursor.belongs("toy", "1@5")
    assert len(Cursor.of(tmp_path, "u").sent) == 2
    cursor.belongs("toy", "1@7")  # the same number in another database
    assert set(Cursor.of(tmp_path, "u").sent) == {("other", "a")}


def test_cursor_survives_cut_lines_and_takes_in_what_others_write(tmp_path: Path) -> None:
    cursor = Cursor.of(tmp_path, "u")
    cursor.done(("toy", "a"), Sent("c", "s", "r"))
    with cursor.path.open("a") as file:
        file.write('{"state": "done", "suite": "toy", "id": "b", "con')
    again = Cursor.of(tmp_path, "u")
    assert set(again.sent) == {("toy", "a")}
    again.done(("toy", "c"), Sent("c", "s", "r"))
    assert set(Cursor.of(tmp_path, "u").sent) == {("toy", "a"), ("toy", "c")}
    cursor.refresh()
    assert cursor.sent == again.sent


def test_runs_of_a_journal_without_suites_are_replaced(tmp_path: Path) -> None:
    cursor = Cursor.of(tmp_path, "u")
    cursor.path.parent.mkdir(parents=True)
    cursor.path.write_text('{"state": "done", "id": "a", "content": "c", "stamp": "s", "run": "old"}\n')
    cursor.refresh()
    assert (cursor.sent, cursor.leftover) == ({}, {"old"})


def test_nothing_to_do_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = put(tmp_path, grid({"kd": [0.5]}))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    hooks = mlflow.MlflowReporter()

    def go(uri: str | None, jobs: list[Outcome]) -> str:
        run = run_of(tmp_path, jobs, uri, todo=uri is None)
        hooks.kdbench_run_started(run)
        hooks.kdbench_run_finished(run, jobs)
        return capsys.readouterr().err

    assert go(None, outcomes) == go("sqlite:///x", []) == ""
    cursor = Cursor.of(tmp_path, "http://u")
    # the last attempt failed and nothing runs that could hide another one
    cursor.note_trouble("Connection refused")
    said = go("http://me:secret@u", outcomes)
    assert said == (
        "MLflow: 0 runs logged, 1 not yet: http://u: Connection refused; "
        f"kdbench sync mlflow --results {tmp_path} --uri URI sends what is missing\n"
    )
    cursor.done(("toy", outcomes[0].id), sent(tmp_path, outcomes[0].id))
    assert go("http://u", outcomes) == ""


def test_a_finished_suite_reads_no_journal_while_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (outcome,) = put(tmp_path, grid({"kd": [0.5]}))
    membership.add(tmp_path, "toy", [outcome.id], "http://u")
    for folder in (spool.jobs_folder(tmp_path), membership.folder_of(tmp_path)):
        os.utime(folder, (0, 0))
    monkeypatch.setattr(fresh, "RACY", -(10**18))  # times of change cannot be set
    cursor = Cursor.of(tmp_path, "http://u")
    cursor.done(("toy", outcome.id), sent(tmp_path, outcome.id))
    looks = []
    whole = Cursor.pending
    monkeypatch.setattr(Cursor, "pending", lambda self, *args: looks.append(1) or whole(self, *args))

    def finish() -> int:
        looks.clear()
        mlflow.MlflowReporter().kdbench_run_finished(run_of(tmp_path, [outcome], "http://u", todo=False), [outcome])
        return len(looks)

    assert [finish(), finish(), finish()] == [1, 0, 0]
    cursor.forget(("toy", outcome.id))
    cursor.note_trouble("Connection refused")
    assert [finish(), finish()] == [1, 1]
    assert "1 not yet" in capsys.readouterr().err
    cursor.done(("toy", outcome.id), sent(tmp_path, outcome.id))
    put(tmp_path, make_outcome(outcome.job, 0.9))
    assert finish() == 1
    assert "1 not yet" in capsys.readouterr().err


def test_a_reporter_looks_again_when_something_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (outcome,) = put(tmp_path, grid({"kd": [0.5]}))
    monkeypatch.setattr(fresh, "RACY", -(10**18))
    beside, attempts = reporter.Reporter(tmp_path, "http://u"), []
    monkeypatch.setattr(beside, "attempt", lambda: attempts.append(1))

    def look() -> int:
        attempts.clear()
        beside.look()
        return len(attempts)

    assert [look(), look()] == [1, 0]
    membership.add(tmp_path, "toy", [outcome.id], "http://u")
    assert [look(), look()] == [1, 0]
    put(tmp_path, make_outcome(outcome.job, 0.9))
    assert [look(), look()] == [1, 0]
    beside.failures = 1
    assert [look(), look()] == [1, 1]
    monkeypatch.setattr(fresh, "RACY", 10**18)  # as right after a change
    beside.failures = 0
    assert [look(), look(), look()] == [0, 0, 0]
    membership.add(tmp_path, "more", [outcome.id], "http://u")
    assert [look(), look(), look()] == [1, 1, 1]


def test_a_run_has_what_people_filter_by(tmp_path: Path) -> None:
    job = make_job("kd", 3, params={"alpha": 0.5, "on": True, "long": "x" * 9000}, label="kd(alpha=0.5)")
    outcome = make_outcome(job, 0.75, extra={"a@b": 1.0, "a#b": 2.0, "../up//x": 3.0, "bad": float("nan"), "": 4.0})
    curve = [{"step": 0.0, "loss": 1.0, "l@ss": None}, {"step": 5.0, "loss": float("inf"), "l@ss": 2.0}]
    data = describe(outcome, curve, suite="s", content="c", token="t")
    assert data.name == "kd(alpha=0.5) seed 3, vision/toy@cpu"
    assert data.params["alpha"] == "0.5"
    assert data.params["on"] == "true"
    assert len(data.params["long"]) == 5000
    assert data.params["long"].endswith("x…")
    same = {"kdbench.method": "vision/kd", "kdbench.task": "vision/toy", "kdbench.seed": "3", "kdbench.scale": "cpu"}
    assert same.items() <= data.params.items()
    assert same.items() <= data.tags.items()
    assert data.params["kdbench.limit.steps"] == "100"
    assert data.tags["kdbench.headline"] == "top1 (max)"
    assert data.tags["kdbench.not_finite"] == "bad=nan, curve/loss=inf"
    assert data.tags["mlflow.source.git.commit"] == "abc123"
    assert "kdbench.error" not in data.tags
    assert data.metrics[:3] == [("headline", 0.75, 0), ("top1", 0.75, 0), ("nll", 0.25, 0)]
    names = {name for name, _, _ in data.metrics}
    assert {"a_b", "a_b_2", "up/x", "_", "cost/steps", "curve/loss", "curve/l_ss"} <= names
    assert [point for point in data.metrics if point[0].startswith("curve/")] == [
        ("curve/loss", 1.0, 0),
        ("curve/l_ss", 2.0, 5),
    ]
    assert data.state == "FINISHED"
    assert data.ended - data.started == 60_000


@pytest.mark.parametrize(("status", "state"), [("oom", "FAILED"), ("timeout", "FAILED"), ("interrupted", "KILLED")])
def test_a_failure_says_what_it_was(status: Any, state: str) -> None:
    outcome = make_outcome(make_job("kd", 3), status=status)
    data = describe(outcome, [], suite="s", content="c", token="t")
    assert (data.state, data.tags["kdbench.status"]) == (state, status)
    assert data.tags["kdbench.error"] == "RuntimeError: planted"
    assert data.tags["mlflow.note.content"].endswith("\n\n    File x, line 1")
    assert "headline" not in {name for name, _, _ in data.metrics}


def test_importing_the_hooks_does_not_import_mlflow() -> None:
    code = (
        "import sys, kdbench.store.mlflow, kdbench.store.duck; print({'mlflow', 'duckdb', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def broken() -> Iterator[str]:
    """A server that answers everything with 500."""

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.fixture
def refusing() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("refusing", "Connection refused"),
        ("black_hole", "no answer within 1 s"),
        ("broken", "it answers with an error 500"),
    ],
)
def test_a_server_that_cannot_be_used_costs_a_line_and_no_time(
    kind: str,
    why: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = request.getfixturevalue(kind)
    outcomes = put(tmp_path, grid({"kd": [0.5, 0.6]}))
    hooks = mlflow.MlflowReporter()
    run = run_of(tmp_path, outcomes, address.replace("//", "//user:secret@"))
    started = time.monotonic()
    hooks.kdbench_run_started(run)
    assert time.monotonic() - started < mlflow.STALL
    process, cursor = hooks._running[run.id].process, Cursor.of(tmp_path, address)
    deadline = time.monotonic() + 120
    while not cursor.trouble():  # as a run of a few seconds gives the reporter the time to find out
        assert time.monotonic() < deadline, (tmp_path / mlflow.LOG).read_text()
        time.sleep(0.1)
    started = time.monotonic()
    hooks.kdbench_run_finished(run, outcomes)
    assert time.monotonic() - started < mlflow.STALL
    assert capsys.readouterr().err == (
        f"MLflow: 0 runs logged, 2 not yet: {address}: {why}; "
        f"kdbench sync mlflow --results {tmp_path} --uri URI sends what is missing\n"
    )
    assert process.wait(60) == reporter.UNREACHABLE
    (line,) = (tmp_path / mlflow.LOG).read_text().splitlines()
    assert f"cannot log to {address}: {why}; what is missing is sent later" in line
    done = CliRunner().invoke(make_app(), ["sync", "mlflow", "--results", str(tmp_path)])
    assert done.exit_code == 1
    assert f"error: {address}: cannot be used: {why} (the same command sends the 2 outcomes" in done.output
    assert f"{address} (toy): 0 sent, 0 there before, 2 left" in done.output


def test_the_end_of_a_run_waits_for_a_silent_server_for_seconds_at_most(
    tmp_path: Path, black_hole: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    outcomes = put(tmp_path, grid({"kd": [0.5]}))
    hooks = mlflow.MlflowReporter(stall=0.5)
    run = run_of(tmp_path, outcomes, black_hole)
    hooks.kdbench_run_started(run)
    process = hooks._running[run.id].process
    started = time.monotonic()
    hooks.kdbench_run_finished(run, outcomes)
    assert 0.5 < time.monotonic() - started < 10
    assert "0 runs logged so far, 1 more in the background" in capsys.readouterr().err
    assert process.poll() is None
    process.kill()
    process.wait()


def test_runs_are_logged_beside_a_run_in_a_database_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = put(tmp_path, grid({"kd": [0.75, None]}), log="hello\n")
    uri = default_tracking_uri(tmp_path)
    run = run_of(tmp_path, outcomes, uri)
    hooks = mlflow.MlflowReporter(patience=120)
    hooks.kdbench_run_started(run)
    hooks.kdbench_run_finished(run, outcomes)
    assert capsys.readouterr().err == "MLflow: 2 runs logged\n", (tmp_path / mlflow.LOG).read_text()
    done = CliRunner().invoke(make_app(), ["sync", "mlflow", "--results", str(tmp_path), "--json"])
    (report,) = json.loads(done.stdout)
    assert (report["sent"], report["there"], report["ok"]) == (0, 2, True)

    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy").experiment_id
    runs = {found.data.tags["kdbench.seed"]: found for found in client.search_runs([experiment])}
    assert {seed: found.info.status for seed, found in runs.items()} == {"0": "FINISHED", "1": "FAILED"}
    artifacts = client.list_artifacts(runs["0"].info.run_id)
    assert {item.path for item in artifacts} == {"outcome.json", "log.txt"}
    assert (tmp_path / "mlartifacts").is_dir()


def test_sync_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    def error(*arguments: str) -> str:
        done = CliRunner().invoke(make_app(), ["sync", "mlflow", "--results", str(tmp_path), *arguments])
        assert done.exit_code == 2
        return done.output

    assert "holds no results yet" in error()
    (outcome,) = put(tmp_path, grid({"kd": [0.5]}))
    assert "no suite here is tracked in MLflow (say where to send it: --uri URI)" in error()
    membership.add(tmp_path, "toy", [outcome.id], None)
    assert "suite 'toy' is tracked" not in error()
    assert "suite 'toy' is tracked in MLflow" in error("--suite", "toy")
    assert "--suite: no suite 'tyo' has run here (did you mean 'toy'?)" in error("--suite", "tyo")
    assert "--uri: 'runs' is a folder, and MLflow no longer keeps runs in folders" in error("--uri", "runs")
    gone = f"sqlite:///{tmp_path}/gone/mlflow.db"
    assert f"{gone}: the folder of this database does not exist" in error("--uri", gone)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:p@ss@host:5000/x@y", "http://host:5000/x@y"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("https://host", "https://host"),
    ],
)
def test_addresses_are_shown_without_passwords(uri: str, shown: str) -> None:
    assert membership.public(uri) == shown
