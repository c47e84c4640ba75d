"""What outcomes of the past say: time, memory, and which code they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench import history, preflight
from kdbench.history import Expectation, module_digest
from kdbench.registry import Registry
from tests.helpers import nvml, outcomes
from tests.helpers.nvml import GIB, Board
from tests.helpers.reference import come_with, ship
from tests.helpers.suites import planner, toy_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return toy_registry(tmp_path_factory.mktemp("methods"))


@pytest.fixture
def planned(registry, tmp_path):
    return planner(registry, tmp_path)


def test_time_is_estimated_from_the_most_alike_outcomes(planned, tmp_path):
    data = {
        "tasks": ["line@smoke", "bare@smoke"],
        "methods": ["plain", "tuned"],
        "executor": {"name": "local", "workers": 1},
    }
    jobs = planned(data).jobs
    assert (planned(data).estimate_seconds, planned(data).unknown) == (None, 4)
    outcomes.put(tmp_path, outcomes.make_outcome(jobs[0], 0.5, minutes=2))
    found = planned(data)
    assert (found.estimate_seconds, found.unknown) == (120, 2)  # tuned on line as plain on line; bare unknown
    outcomes.put(tmp_path, outcomes.make_outcome(planned(data, seeds=[9]).jobs[1], 0.5, minutes=5))
    assert planned(data).estimate_seconds == 300  # another seed of the very method
    outcomes.put(tmp_path, [outcomes.make_outcome(job) for job in jobs])
    assert planned(data).estimate_seconds == 0


def test_reference_results_lend_their_times_where_nothing_here_says_any(planned, tmp_path, monkeypatch):
    folder = come_with(monkeypatch, tmp_path / "reference")
    data = {"tasks": ["line@smoke", "bare@smoke"], "methods": ["plain"]}
    line, bare = planned(data).jobs
    lent = [outcomes.make_outcome(line, 0.5, minutes=2), outcomes.make_outcome(bare, status="failed", minutes=50)]
    lent[0].cost["peak_rss_bytes"] = 2.0**30
    ship(folder, "toy", lent)
    found = planned(data)
    assert (found.estimate_seconds, found.unknown, found.lent) == (120, 1, 1)
    assert found.expected[line.id] == Expectation(seconds=120), "the memory of another machine is not this one's"
    assert found.expected[bare.id] == Expectation()
    outcomes.put(tmp_path, outcomes.make_outcome(planned(data, seeds=[9]).jobs[0], 0.5, minutes=5))
    found = planned(data)
    assert (found.estimate_seconds, found.unknown, found.lent) == (300, 1, 0), "what is known here comes first"
    assert found.notes == []


def test_damaged_reference_results_are_noted_and_lend_nothing(planned, tmp_path, monkeypatch):
    folder = come_with(monkeypatch, tmp_path / "reference")
    data = {"tasks": ["line@smoke"]}
    ship(folder, "toy", [outcomes.make_outcome(job) for job in planned(data).jobs])
    (folder / "toy" / "jobs.parquet").write_bytes(b"PAR1")
    found = planned(data)
    assert (found.estimate_seconds, found.unknown) == (None, 1)
    (note,) = found.notes
    assert note.place == str(folder / "toy" / "jobs.parquet")
    assert "cannot be read" in note.message


def test_the_estimate_counts_what_each_job_takes_of_the_machine(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.machine, "cores", lambda: 4)
    methods = ["plain", {"method": "tuned", "resources": {"cpus": 4}}]
    first = planned({"methods": methods})
    assert first.slots == 1
    outcomes.put(tmp_path, [outcomes.make_outcome(job, 0.5, minutes=1) for job in first.jobs])
    later = planned({"methods": methods}, seeds=[1, 2, 3, 4])
    assert later.estimate_seconds == pytest.approx(4 * 60 / 4 + 4 * 60)
    assert later.slots == 1


def test_time_and_memory_are_expected_from_the_most_alike_outcomes(planned, tmp_path):
    data = {"methods": ["plain", "tuned", {"method": "tuned", "params": {"alpha": 0.25}}]}
    jobs = planned(data, seeds=3).jobs
    assert set(planned(data).expected.values()) == {Expectation()}

    def put(job, minutes, rss, **more):
        made = outcomes.make_outcome(job, 0.5, minutes=minutes)
        outcomes.put(tmp_path, made.model_copy(update={"cost": {"peak_rss_bytes": rss}, **more}))

    put(jobs[0], 1, 500)
    put(jobs[1], 3, 700.0)
    put(jobs[3], 8, 900)
    found = planned(data, seeds=4)
    by_label = {job.label: found.expected[job.id] for job in found.jobs}
    assert by_label == {
        "plain": Expectation(120, 700),
        "tuned": Expectation(480, 900),
        "tuned(alpha=0.25)": Expectation(480, 900),
    }
    assert len({id(each) for each in found.expected.values()}) <= 3, "equal expectations are one object"
    assert len(found.expected) == len(found.jobs) == 12


def test_what_ran_out_of_memory_tells_how_much_is_too_little_and_what_failed_tells_nothing(planned, tmp_path):
    jobs = planned(seeds=3).jobs
    for job, status, rss in zip(jobs, ("ok", "oom", "failed"), (100, 300, 900), strict=True):
        made = outcomes.make_outcome(job, 0.5 if status == "ok" else None, status=status, minutes=rss)
        outcomes.put(
            tmp_path, made.model_copy(update={"cost": {"peak_rss_bytes": rss, "peak_gpu_bytes": float("nan")}})
        )
    assert planned(seeds=[7]).expected[planned(seeds=[7]).jobs[0].id] == Expectation(6000, 300, None)


def test_what_ran_on_a_cpu_says_nothing_of_a_gpu(planned, monkeypatch, tmp_path):
    nvml.install(monkeypatch, [Board("GPU-a")])
    outcomes.put(tmp_path, outcomes.make_outcome(planned(seeds=[1]).jobs[0], 0.5, minutes=9))
    on_gpu = {"resources": {"gpus": 1}}
    made = outcomes.make_outcome(planned(on_gpu, seeds=[2]).jobs[0], 0.5, minutes=1)
    outcomes.put(tmp_path, made.model_copy(update={"cost": {"peak_gpu_bytes": 5 * GIB}}))
    (cpu,), (gpu,) = (planned(data, seeds=[3]).expected.values() for data in ({}, on_gpu))
    assert (cpu.seconds, cpu.gpu_memory, gpu.seconds, gpu.gpu_memory) == (540, None, 60, 5 * GIB)


def test_the_digest_of_a_module_is_of_its_file_and_imports_nothing():
    assert module_digest("kdbench.job") == history.file_digest(Path(history.__file__).with_name("job.py"))[:16]
    assert module_digest("kdbench.schedule") is not None
    assert module_digest("kdbench.none") is None
    assert module_digest("no_such_package.x") is None
