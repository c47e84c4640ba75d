"""MLflow: fed once per outcome by another process; a broken server costs a line in a log."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdbench.job import Outcome, Run
from kdbench.paths import default_tracking_uri
from kdbench.store import membership, mlflow, spool
from kdbench.store.cursor import Cursor, Sent, content_digest
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


def test_cursor_remembers_and_finds_what_is_new(tmp_path: Path) -> None:
    first, second = put(tmp_path, grid({"kd": [0.5, 0.6]}))
    membership.add(tmp_path, "toy", [first.id, second.id, "unfinished"], "u")
    cursor = Cursor.of(tmp_path, "u")
    assert set(cursor.pending(tmp_path, "u")) == {first.id, second.id}
    stamps = spool.stamps(tmp_path)
    folder = spool.job_folder(tmp_path, first.id)
    cursor.begin(first.id, "token")
    assert Cursor.of(tmp_path, "u").dangling == {first.id: "token"}
    cursor.done(first.id, Sent(content_digest(folder), spool.stamp_text(stamps[first.id]), "run1"))
    again = Cursor.of(tmp_path, "u")
    assert again.pending(tmp_path, "u") == [second.id]
    assert again.dangling == {}
    assert set(Cursor.of(tmp_path, "other").pending(tmp_path, "other")) == set()
    # touched or copied is not new, other content is
    (folder / spool.OUTCOME).touch()
    assert again.pending(tmp_path, "u") == [second.id]
    put(tmp_path, make_outcome(first.job, 0.9))
    assert set(again.pending(tmp_path, "u")) == {first.id, second.id}


def test_cursor_survives_a_cut_line(tmp_path: Path) -> None:
    cursor = Cursor.of(tmp_path, "u")
    cursor.done("a", Sent("c", "s", "r"))
    with cursor.path.open("a") as file:
        file.write('{"state": "done", "id": "b", "con')
    again = Cursor.of(tmp_path, "u")
    assert set(again.sent) == {"a"}
    again.done("c", Sent("c", "s", "r"))
    assert set(Cursor.of(tmp_path, "u").sent) == {"a", "c"}


def test_nothing_to_do_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = put(tmp_path, grid({"kd": [0.5]}))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    hooks = mlflow.MlflowReporter()
    for run in (run_of(tmp_path, outcomes, None), run_of(tmp_path, [], "sqlite:///x", todo=False)):
        hooks.kdbench_run_started(run)
        hooks.kdbench_run_finished(run, outcomes)
    stamp = spool.stamps(tmp_path)[outcomes[0].id]
    content = content_digest(spool.job_folder(tmp_path, outcomes[0].id))
    Cursor.of(tmp_path, "u").done(outcomes[0].id, Sent(content, spool.stamp_text(stamp), "r"))
    run = run_of(tmp_path, outcomes, "u", todo=False)
    hooks.kdbench_run_started(run)
    hooks.kdbench_run_finished(run, outcomes)


def test_importing_the_hooks_does_not_import_mlflow() -> None:
    code = (
        "import sys, kdbench.store.mlflow, kdbench.store.duck; print({'mlflow', 'duckdb', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_an_unreachable_server_is_one_line_and_costs_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcomes = put(tmp_path, grid({"kd": [0.5, 0.6]}))
    hooks = mlflow.MlflowReporter(patience=60)
    run = run_of(tmp_path, outcomes, "http://user:secret@127.0.0.1:9")
    started = time.monotonic()
    hooks.kdbench_run_started(run)
    assert time.monotonic() - started < 1
    hooks.kdbench_run_finished(run, outcomes)
    said = capsys.readouterr().err
    assert "0 runs logged, 2 will be sent with the next run" in said
    lines = (tmp_path / mlflow.LOG).read_text().splitlines()
    assert len(lines) == 1
    assert "cannot log to http://127.0.0.1:9" in lines[0]
    assert "secret" not in lines[0]


def test_runs_are_logged_once_and_replaced_with_their_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = [{"step": step, "loss": 1 / (step + 1)} for step in range(30)]
    ok = make_outcome(make_job("kd", 1, params={"alpha": 0.5}, label="kd(alpha=0.5)"), 0.75, extra={"odd@name": 0.1})
    failed = make_outcome(make_job("kd", 2), status="oom")
    put(tmp_path, [ok, failed], curve=curve, log="hello\n")
    uri = default_tracking_uri(tmp_path)
    run = run_of(tmp_path, [ok, failed], uri)
    hooks = mlflow.MlflowReporter(patience=120)
    hooks.kdbench_run_started(run)
    hooks.kdbench_run_finished(run, [ok, failed])
    assert "2 runs logged" in capsys.readouterr().err, (tmp_path / mlflow.LOG).read_text()

    from kdbench.store.reporter import Reporter

    reporter = Reporter(tmp_path, uri)
    assert reporter.send_pending() == 0
    client = reporter.client
    (experiment,) = [e for e in client.search_experiments() if e.name == "toy"]

    def runs() -> dict[str, Any]:
        return {found.data.tags["seed"]: found for found in client.search_runs([experiment.experiment_id])}

    found = runs()
    assert len(found) == 2
    good = found["1"]
    assert good.info.run_name == "kd(alpha=0.5) seed 1"
    assert good.info.status == "FINISHED"
    assert good.data.params == {"alpha": "0.5"}
    assert good.data.metrics["top1"] == 0.75
    assert good.data.metrics["odd_name"] == 0.1
    assert len(client.get_metric_history(good.info.run_id, "curve/loss")) == 30
    wanted = {"method": "vision/kd", "task": "vision/toy", "status": "ok", "kdbench.job": ok.id}
    assert wanted.items() <= good.data.tags.items()
    assert good.data.tags["mlflow.source.git.commit"] == "abc123"
    assert {item.path for item in client.list_artifacts(good.info.run_id)} == {"outcome.json", "log.txt"}
    assert (tmp_path / "mlartifacts").is_dir()
    assert found["2"].info.status == "FAILED"

    # the failed job ran again: its run is replaced; a sending that was cut leaves no second run
    put(tmp_path, make_outcome(failed.job, 0.6))
    reporter.cursor.begin(failed.id, "cut")
    client.create_run(experiment.experiment_id, tags={"kdbench.token": "cut", "seed": "2"})
    assert Reporter(tmp_path, uri).send_pending() == 1
    assert {seed: run.info.status for seed, run in runs().items()} == {"1": "FINISHED", "2": "FINISHED"}
    assert len(client.search_runs([experiment.experiment_id])) == 2
