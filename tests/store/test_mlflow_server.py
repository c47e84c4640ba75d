"""MLflow on a real server: every outcome once, found by what people look for, whatever was cut or deleted."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.job import Outcome
from kdbench.store import membership, mlflow, reporter
from kdbench.store.cursor import Cursor
from kdbench.store.resend import resend
from kdbench.store.sender import Sender
from tests.helpers.outcomes import grid, make_job, make_outcome, put
from tests.store.test_mlflow import run_of

ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes less
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server with a database of its own."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait_for(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise AssertionError(f"no server after three minutes: {log.read_text()}")


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> str:
    """An experiment of the test's own: the server is shared."""
    return f"{request.node.name} / ünï 'quoted'"


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """To ask what is there; on a busy machine the server takes its time."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    from mlflow.tracking import MlflowClient

    return MlflowClient(server)


def runs_of(client: Any, suite: str, query: str = "") -> list[Any]:
    found = client.get_experiment_by_name(suite)
    return [] if found is None else list(client.search_runs([found.experiment_id], query))


def jobs_of(client: Any, suite: str, query: str = "") -> list[str]:
    return sorted(run.data.tags["kdbench.job"] for run in runs_of(client, suite, query))


def spooled(results: Path, suite: str, uri: str | None, outcomes: list[Outcome], **files: Any) -> list[Outcome]:
    put(results, outcomes, **files)
    membership.add(results, suite, [outcome.id for outcome in outcomes], uri)
    return outcomes


def sync(*arguments: str | Path) -> Any:
    return CliRunner().invoke(make_app(), ["sync", "mlflow", *map(str, arguments)])


def test_runs_are_found_by_method_task_seed_scale_and_status(
    server: str, client: Any, suite: str, tmp_path: Path
) -> None:
    curve = [{"step": step, "loss": 1 / (step + 1)} for step in range(1100)]
    good = [
        make_outcome(make_job(method, seed, params={"alpha": 0.5}), 0.5 + seed / 10, extra={"odd": float("inf")})
        for method in ("kd", "dist")
        for seed in (0, 1)
    ]
    failed = make_outcome(make_job("kd", 2), status="oom")
    spooled(tmp_path, suite, server, [*good, failed], curve=curve, log="hello\n")
    report = resend(tmp_path, server, [suite])
    assert (report.sent, report.left, report.trouble) == (5, 0, "")

    for words in ("tags", "params"):
        query = f"{words}.`kdbench.method` = 'vision/kd' and {words}.`kdbench.task` = 'vision/toy'"
        assert len(runs_of(client, suite, query)) == 3
        query += f" and {words}.`kdbench.seed` = '1' and {words}.`kdbench.scale` = 'cpu'"
        assert jobs_of(client, suite, query) == [good[1].id]
    assert jobs_of(client, suite, "tags.`kdbench.status` = 'oom'") == [failed.id]
    assert jobs_of(client, suite, "attributes.status = 'FAILED'") == [failed.id]
    assert jobs_of(client, suite, "metrics.top1 > 0.55 and tags.`kdbench.method` = 'vision/dist'") == [good[3].id]
    assert len(runs_of(client, suite, "params.alpha = '0.5' and metrics.`cost/steps` = 100")) == 4

    (run,) = runs_of(client, suite, f"tags.`kdbench.job` = '{good[1].id}'")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["headline"] == run.data.metrics["top1"] == 0.6
    assert run.data.tags["kdbench.not_finite"] == "odd=inf"
    history = client.get_metric_history(run.info.run_id, "curve/loss")
    assert {(point.step, point.value) for point in history} == {(row["step"], row["loss"]) for row in curve}
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"outcome.json", "log.txt"}
    (run,) = runs_of(client, suite, "attributes.status = 'FAILED'")
    assert run.data.tags["kdbench.error"] == "RuntimeError: planted"
    assert "File x, line 1" in run.data.tags["mlflow.note.content"]


def test_a_job_of_two_suites_is_a_run_in_both_experiments_and_a_repeated_one_is_replaced(
    server: str, client: Any, suite: str, tmp_path: Path
) -> None:
    other = f"{suite} too"
    both, failed = spooled(tmp_path, suite, server, grid({"kd": [0.5, None]}))
    membership.add(tmp_path, other, [both.id], server)
    assert resend(tmp_path, server, [suite, other]).sent == 3
    assert (jobs_of(client, suite), jobs_of(client, other)) == (sorted([both.id, failed.id]), [both.id])

    put(tmp_path, make_outcome(failed.job, 0.7))
    report = resend(tmp_path, server, [suite, other])
    assert (report.sent, report.there) == (1, 2)
    assert len(runs_of(client, suite)) == 2
    assert len(runs_of(client, suite, "tags.`kdbench.status` = 'ok' and attributes.status = 'FINISHED'")) == 2


def test_every_outcome_is_there_once_wherever_the_sender_is_killed(
    server: str, client: Any, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender that dies after each of its requests in turn, and once more while it cleans up."""
    import requests

    first, second = spooled(tmp_path, suite, server, grid({"kd": [0.5, None]}), log="hello\n")
    whole = requests.Session.request

    def dying_after(number: int) -> Callable[..., Any]:
        left = number

        def request(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            answer = whole(*args, **kwargs)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt  # nothing catches it, as nothing catches SIGKILL
            return answer

        return request

    def once_after(number: int) -> bool:
        """Whether the sending was cut."""
        with monkeypatch.context() as patch:
            patch.setattr(requests.Session, "request", dying_after(number))
            try:
                assert resend(tmp_path, server, [suite]).trouble == ""
            except KeyboardInterrupt:
                return True
        return False

    cuts = 0
    while once_after(cuts + 1):
        cuts += 1
    assert cuts > 6
    assert jobs_of(client, suite) == sorted([first.id, second.id])
    assert {run.info.status for run in runs_of(client, suite)} == {"FINISHED", "FAILED"}

    cuts = 0
    put(tmp_path, make_outcome(second.job, 0.9))
    while once_after(cuts + 1):
        cuts += 1
    assert cuts > 4
    assert jobs_of(client, suite, "tags.`kdbench.status` = 'ok'") == sorted([first.id, second.id])
    assert len(runs_of(client, suite)) == 2


def test_a_lost_cursor_or_another_copy_of_the_results_makes_no_second_runs(
    server: str, client: Any, suite: str, tmp_path: Path
) -> None:
    spooled(tmp_path, suite, server, grid({"kd": [0.5, 0.6, None]}))
    assert resend(tmp_path, server, [suite]).sent == 3
    Cursor.of(tmp_path, server).path.unlink()
    # as the process beside a run does it, and as the command
    assert reporter.Reporter(tmp_path, server).attempt()
    assert Cursor.of(tmp_path, server).count == 0
    Cursor.of(tmp_path, server).path.unlink()
    report = resend(tmp_path, server, [suite])
    assert (report.sent, report.there, report.left) == (0, 3, 0)
    assert len(runs_of(client, suite)) == 3


def test_what_people_delete_stays_deleted_until_they_ask_or_there_is_something_new(
    server: str, client: Any, suite: str, tmp_path: Path
) -> None:
    first, second = spooled(tmp_path, suite, server, grid({"kd": [0.5, 0.6]}))
    where = ["--results", tmp_path, "--suite", suite]
    assert "2 sent, 0 there before" in sync(*where).output

    (run,) = runs_of(client, suite, "tags.`kdbench.seed` = '0'")
    client.delete_run(run.info.run_id)
    done = sync(*where)
    assert done.exit_code == 0
    assert "0 sent, 1 there before" in done.output
    assert "1 run was deleted there" in done.output
    assert jobs_of(client, suite) == [second.id]
    assert "0 sent, 2 there before" in sync(*where, "--deleted").output
    assert jobs_of(client, suite) == sorted([first.id, second.id])

    experiment = client.get_experiment_by_name(suite).experiment_id
    client.delete_experiment(experiment)
    done = sync(*where)
    assert f"the experiment {suite!r} was deleted there" in done.output
    assert client.get_experiment(experiment).lifecycle_stage == "deleted"
    put(tmp_path, make_outcome(second.job, 0.9))
    assert "it is back" in sync(*where).output
    # a replaced run comes back with its experiment and goes again
    assert jobs_of(client, suite) == sorted([first.id, second.id])
    assert len(runs_of(client, suite, "metrics.top1 = 0.9")) == 1

    # gone for good, with a new experiment of the same name in its place
    client.rename_experiment(experiment, f"{suite} gone")
    assert "2 sent, 0 there before" in sync(*where).output
    assert jobs_of(client, suite) == sorted([first.id, second.id])


def test_an_outcome_that_is_refused_does_not_hold_up_the_others(
    server: str, client: Any, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    bad, good = spooled(tmp_path, suite, server, grid({"kd": [0.5, 0.6]}))
    whole = Sender._make

    def picky(self: Sender, experiment: str, data: Any, folder: Path) -> str:
        id = whole(self, experiment, data, folder)
        if data.tags["kdbench.job"] == bad.id:
            raise MlflowException("no such thing", INVALID_PARAMETER_VALUE)
        return id

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "_make", picky)
        done = sync("--results", tmp_path, "--suite", suite)
    assert done.exit_code == 1
    assert "1 sent, 0 there before, 1 left" in done.output
    assert f"{bad.id} ({suite}) was refused: MlflowException: " in done.output
    assert "no such thing" in done.output
    assert jobs_of(client, suite) == [good.id]  # and nothing half-made
    assert sync("--results", tmp_path).exit_code == 0
    assert jobs_of(client, suite) == sorted([bad.id, good.id])


class _Guarded(BaseHTTPRequestHandler):
    """Passes to the server behind it what comes with the right password."""

    behind = ""
    wanted = "Basic " + b64encode(b"reader:p@ss").decode()

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.wanted:
            self._answer(401, b"who are you?")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Authorization")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        self._answer(answer.status, answer.read())
        connection.close()

    do_POST = do_PUT = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def test_passwords_come_from_mlflow_s_variables_and_stay_out_of_every_file(
    server: str, client: Any, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = type("Guarded", (_Guarded,), {"behind": server.removeprefix("http://")})
    guard = ThreadingHTTPServer(("127.0.0.1", 0), guarded)
    Thread(target=guard.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{guard.server_address[1]}"
    try:
        outcomes = spooled(tmp_path, suite, f"http://{address}", grid({"kd": [0.5]}))
        refused = sync("--results", tmp_path)
        assert refused.exit_code == 1
        assert "access refused (MLflow reads MLFLOW_TRACKING_USERNAME" in refused.output
        # in the address, through the process beside a run
        run = run_of(tmp_path, outcomes, f"http://reader:p%40ss@{address}")
        hooks = mlflow.MlflowReporter(patience=120, stall=120)
        hooks.kdbench_run_started(run)
        hooks.kdbench_run_finished(run, outcomes)
        assert jobs_of(client, "toy") == [outcomes[0].id], (tmp_path / mlflow.LOG).read_text()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ss")
        done = sync("--results", tmp_path)
        assert done.exit_code == 0, done.output
        assert jobs_of(client, suite) == [outcomes[0].id]
    finally:
        guard.shutdown()
        guard.server_close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / mlflow.LOG in written
    for path in written:
        content = path.read_bytes()
        assert not any(secret in content for secret in (b"p%40ss", b"p@ss", b"reader", _Guarded.wanted.encode())), path


def test_a_server_that_comes_back_is_fed_by_the_same_reporter(
    server: str, client: Any, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled(tmp_path, suite, server, grid({"kd": [0.5, 0.6]}))
    (_, bad), (_, good) = Cursor.of(tmp_path, server).pending()
    beside, whole = reporter.Reporter(tmp_path, server), Sender._make

    def failing(self: Sender, experiment: str, data: Any, folder: Path) -> str:
        if data.tags["kdbench.job"] == bad:
            raise ConnectionResetError(104, "reset")
        return whole(self, experiment, data, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "_make", failing)
        assert not beside.attempt()
        assert jobs_of(client, suite) == []
        assert not beside.attempt()
        assert jobs_of(client, suite) == [good]  # what a server fails at does not keep the others from it
    assert beside.pause == 2 * reporter.AGAIN
    assert beside.cursor.trouble() == "reset"
    assert beside.attempt()
    assert beside.failures == 0
    assert beside.cursor.trouble() == ""
    assert jobs_of(client, suite) == sorted([bad, good])
