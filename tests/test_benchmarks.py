"""The benchmark scripts run: the measurements on a few jobs, the table and the limits on planted numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    return measure


@pytest.fixture
def scheduler(measure: ModuleType) -> ModuleType:
    import scheduler

    return scheduler


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("jobs", [1, 7, 10, 400, 1000])
def test_a_workload_has_no_more_jobs_than_it_is_asked_for_and_says_how_many(measure, tmp_path: Path, jobs: int):
    from kdbench.plan import make_plan
    from kdbench.registry import discover
    from kdbench.suite import load_suite

    load = measure.workload(tmp_path, jobs, executor="instant")
    assert 0.9 * jobs <= load.jobs <= jobs
    assert len(make_plan(load_suite(load.path), discover(measure.PLUGINS), tmp_path / "results").jobs) == load.jobs


def test_a_run_is_measured_from_its_first_job_to_its_last(measure, tmp_path: Path):
    load = measure.workload(tmp_path, 4, executor="local", seconds=0.2)
    done = measure.run_suite(load, tmp_path / "results")
    assert done.jobs == 4
    assert done.wall > done.last.seconds > done.first.seconds > 0
    assert 0.2 <= done.per_job < done.wall
    assert 0 < done.share < 1
    assert done.finished.peak_rss >= done.first.peak_rss > 20e6
    resumed = measure.on_terminal(measure.kdbench("run", str(load.path), tmp_path / "results"))
    assert resumed < done.wall


def test_a_run_whose_jobs_fail_is_no_measurement(measure, tmp_path: Path):
    load = measure.workload(tmp_path, 1, executor="nowhere")
    with pytest.raises(measure.Failed, match="there is no executor 'nowhere'"):
        measure.run_suite(load, tmp_path / "results")


@pytest.fixture
def planted(measure: ModuleType, scheduler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Runs that take 0.05 s a job, of which the coordinator computes a hundredth, and 1 kB of memory a job."""
    values = {"job": 0.05, "resumed": 2.0, "planned": 1.0}

    def run_suite(load, results, *, workers=1):
        seconds = values["job"] * load.jobs
        first = measure.Mark(1.0, 1.0, 8e7)
        last = measure.Mark(1.0 + seconds, 1.0 + seconds / 100, 8e7 + 1000.0 * load.jobs)
        return measure.Measured(load.jobs, 2.0 + seconds, first, last, last)

    monkeypatch.setattr(measure, "run_suite", run_suite)
    monkeypatch.setattr(measure, "on_terminal", lambda command: values["resumed"])
    monkeypatch.setattr(measure, "quietly", lambda command: values["planned"])
    monkeypatch.setattr(
        measure, "benchopt", lambda folder, runs: {"startup_seconds": 1, "run_seconds": 0.1, "again_seconds": 0.01}
    )
    monkeypatch.setattr(
        measure, "ray", lambda tasks, isolated: {"startup_seconds": 3, "shared_seconds": 0.001, "isolated_seconds": 2}
    )
    return values


def rows_of(scheduler: ModuleType, capsys: pytest.CaptureFixture[str], **options: bool) -> dict[str, dict]:
    scheduler.main(as_json=True, **options)
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}


def test_the_rows_hold_what_was_measured_beside_the_others(scheduler, planted, capsys):
    rows = rows_of(scheduler, capsys)
    isolated, reused = (
        rows["overhead of a job in a process of its own"],
        rows["overhead of a job in a persistent worker"],
    )
    assert (isolated["value"], isolated["ray"], isolated["benchopt"]) == (pytest.approx(50), 2000, None)
    assert (reused["value"], reused["ray"], reused["benchopt"]) == (pytest.approx(50), 1, 100)
    assert (isolated["met"], reused["met"]) == (True, False)
    assert rows["memory of the coordinator per job"]["value"] == pytest.approx(1)
    assert rows["coordinator while jobs run"]["value"] == pytest.approx(1)
    assert rows["resuming a finished suite"]["benchopt"] == pytest.approx(100)
    assert all(row["met"] for name, row in rows.items() if "persistent" not in name)


def test_a_missed_limit_is_an_error_where_it_is_checked(scheduler, planted, capsys):
    import typer

    planted["job"] = 0.01
    scheduler.main(check=True)
    assert "overhead of a job" in capsys.readouterr().out
    planted["resumed"] = 3.5
    with pytest.raises(typer.Exit) as stopped:
        scheduler.main(check=True)
    assert stopped.value.exit_code == 1


def test_without_a_gpu_the_packing_benchmark_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = script("gpu_packing.py")
    assert done.returncode == 2
    assert "there is no GPU here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is no GPU here"),
        (("--size", "huge"), "there is no network 'huge'"),
        (("--device", "gpu"), "neither cpu nor cuda"),
        (("--steps", "8", "8"), "the second number must be larger"),
    ],
)
def test_score_distillation_is_not_measured_on_what_is_not_there(monkeypatch: pytest.MonkeyPatch, arguments, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = script("score_distillation.py", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.full
def test_steps_of_score_distillation_are_measured():
    sizes = ("--size", "tiny", "--device", "cpu", "--batch", "4", "--precision", "float32", "--steps", "2", "12")
    done = script("score_distillation.py", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["step_seconds"] > 0
    assert row["pictures_per_second"] == pytest.approx(4 / row["step_seconds"])
    assert row["gpu_bytes"] == 0 < row["cpu_bytes"]


@pytest.mark.full
def test_the_site_of_a_few_results_is_measured():
    done = script("report.py", "--methods", "3", "--tasks", "2", "--seeds", "2", "--json", "--check")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert 0 < rows["building the site"]["value"] < rows["building the site"]["limit"] == 30
    assert 0 < rows["largest page"]["value"] < rows["largest page"]["limit"] == 300


def test_a_command_that_fails_is_no_measurement(measure):
    import compare

    with pytest.raises(measure.Failed, match="exit code 3"):
        compare.spent([sys.executable, "-c", "raise SystemExit(3)"])
    spent = compare.spent([sys.executable, "-c", "sum(range(10**6))"])
    assert 0 < spent.cpu < spent.wall + 1
    assert spent.peak > 1e6


@pytest.mark.full
def test_the_whole_benchmark_runs():
    missing = [name for name in ("benchopt", "ray") if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    sizes = ("--jobs", "20", "--large", "100", "--seconds", "0.2", "--isolated", "1")
    done = script("scheduler.py", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert all(row["value"] > 0 for name, row in rows.items() if not name.startswith("memory"))
    assert rows["overhead of a job in a persistent worker"]["benchopt"] > 0
    assert rows["overhead of a job in a process of its own"]["ray"] > 0
