"""What this machine can never give to the jobs of a suite, with its place, and how many jobs it runs at once."""

from __future__ import annotations

import os
from functools import partial

import pytest

from kdbench import plan, preflight
from kdbench.job import Resources
from kdbench.plan import make_plan
from kdbench.registry import Registry
from kdbench.suite import load_suite
from tests.helpers import nvml
from tests.helpers.nvml import GIB, Board
from tests.helpers.suites import planner, registry_of, toy_registry
from tests.toytrack import write_method


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return toy_registry(tmp_path_factory.mktemp("methods"))


@pytest.fixture
def planned(registry, tmp_path):
    return planner(registry, tmp_path)


# --- this machine -----------------------------------------------------------------------------------------------------


def machine_problems(found: plan.Plan) -> list[str]:
    return [str(problem) for problem in found.problems]


def test_a_suite_that_fits_has_no_problems(planned):
    assert planned().problems == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"executor": "lokal"}, "there is no executor 'lokal' (did you mean 'local'?)"),
        ({"resources": {"cpus": 1000}}, "each job asks for 1000 CPU cores, but this machine has"),
        ({"resources": {"memory": "900 TB"}}, "each job may take 818.5 TiB of memory, but this machine has"),
        ({"tracking": "runs"}, "'runs' is a folder, and MLflow no longer keeps runs in folders"),
        ({"tracking": "file:///runs"}, "MLflow no longer keeps runs in folders"),
        ({"tracking": "htp://host"}, "'htp://host' is no tracking URI: MLflow does not know the scheme 'htp'"),
        (
            {"tasks": [{"task": "line@smoke", "override": {"requires": ["no_such_module"]}}]},
            "toy/line needs the package 'no_such_module' (pip install no-such-module)",
        ),
        (
            {"tasks": [{"task": "line@smoke", "override": {"requires": ["json"]}}], "executor": "none"},
            "there is no executor 'none'",
        ),
    ],
)
def test_what_this_machine_does_not_have(planned, data, expected):
    (problem,) = machine_problems(planned(data))
    assert expected in problem


@pytest.fixture
def gpus(monkeypatch):
    """Gives the machine the GPUs that it is called with."""
    return partial(nvml.install, monkeypatch)


@pytest.fixture
def torch_for_gpus(monkeypatch):
    monkeypatch.setattr(preflight.machine, "torch_has_gpus", lambda: True)


@pytest.mark.usefixtures("torch_for_gpus")
@pytest.mark.parametrize(("there", "visible", "count"), [(2, None, 2), (2, "1", 1), (4, "0,2,-1,3", 2), (2, "", 0)])
def test_gpus_are_counted_without_torch(planned, gpus, monkeypatch, there, visible, count):
    gpus([Board(f"GPU-{number}") for number in range(there)])
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fits = planned({"resources": {"gpus": 0.25}})
    assert bool(fits.problems) == (count == 0)
    (problem,) = machine_problems(planned({"resources": {"gpus": 9}}))
    assert ("each job asks for 9 GPUs, but this machine has" in problem) == (count > 0)


@pytest.mark.usefixtures("torch_for_gpus")
@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"gpu_memory": "100GiB"}, "asks for 100.0 GiB of GPU memory, but the largest GPU has 80.0 GiB"),
        ({"gpus": 2, "gpu_memory": "50GiB"}, "asks for 50.0 GiB of GPU memory, but 2 GPUs have at most 40.0 GiB"),
        ({"gpus": 0.5, "gpu_memory": "80GiB"}, None),
        ({"gpus": 2, "gpu_memory": "40GiB"}, None),
        ({"gpus": 3}, "asks for 3 GPUs, but this machine has 2"),
    ],
)
def test_gpu_memory_that_no_device_has(planned, gpus, resources, expected):
    gpus([Board("GPU-a", total=80 * GIB, used=79 * GIB), Board("GPU-b", total=40 * GIB)])
    found = machine_problems(planned({"resources": resources}))
    assert [expected in problem for problem in found] == ([True] if expected else [])


@pytest.mark.usefixtures("torch_for_gpus")
def test_a_process_can_use_one_mig_instance_only(planned, gpus):
    gpus([Board("GPU-a", instances=[Board("MIG-x", total=GIB), Board("MIG-y", total=GIB)])])
    assert planned({"resources": {"gpus": 0.5}}).problems == []
    (problem,) = machine_problems(planned({"resources": {"gpus": 2}}))
    assert "of GPUs that are split up (MIG) a process can use only one part" in problem


def test_a_torch_without_gpus_is_a_problem_where_there_are_gpus(planned, gpus, monkeypatch):
    gpus([Board("GPU-a")])
    monkeypatch.setattr(preflight.machine, "torch_has_gpus", lambda: False)
    (problem,) = machine_problems(planned({"resources": {"gpus": 1}}))
    assert "each job asks for 1 GPU, but the installed torch is built without support for them" in problem


def test_a_method_s_missing_package_is_named(planned, tmp_path):
    folder = tmp_path / "needy"
    path = write_method(folder, "needy")
    path.write_text("import no_such_module\n" + path.read_text())
    (problem,) = machine_problems(planned({"methods": ["needy"]}, registry=registry_of(folder)))
    assert "toy/needy imports 'no_such_module', which is not installed (pip install no-such-module)" in problem


def test_extras_of_kdbench_are_named_as_such():
    assert preflight.install_hint("mlxtend") == "pip install 'kdbench[data]'"


def test_results_must_be_a_folder_that_can_be_written(planned, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for results in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert f"{tmp_path}/file: is not a folder" in str(preflight._results(results)[0])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "the results folder cannot be written" in str(planned(results=tmp_path / "new" / "results").problems[0])


# --- resources --------------------------------------------------------------------------------------------------------


def test_resources_of_a_method_win_over_its_task_s_and_those_over_the_suite_s_field_by_field(planned):
    data = {
        "tasks": ["line@smoke", {"task": "bare@smoke", "resources": {"cpus": 0.5, "memory": "1GiB"}}],
        "methods": ["plain", {"method": "tuned", "resources": {"memory": "2GiB"}}],
        "resources": {"memory": "3GiB"},
    }
    plain = planned({"tasks": data["tasks"], "methods": ["plain", "tuned"]}).jobs
    jobs = planned(data).jobs
    got = [(job.task, job.label, job.resources.cpus, job.resources.memory) for job in jobs]
    assert got == [
        ("toy/line", "plain", 1, 3 * GIB),
        ("toy/line", "tuned", 1, 2 * GIB),
        ("toy/bare", "plain", 0.5, GIB),
        ("toy/bare", "tuned", 0.5, 2 * GIB),
    ]
    assert [job.id for job in jobs] == [job.id for job in plain], "resources are no part of a job's identity"


def test_a_method_that_wants_no_gpu_gets_none(planned):
    data = {"resources": {"gpu_memory": "1GiB"}, "methods": [{"method": "plain", "resources": {"gpus": 0}}]}
    (job,) = planned(data).jobs
    assert not job.resources.on_gpu
    data["methods"][0]["resources"] = {"gpu_memory": None, "memory": None}
    (job,) = planned({**data, "resources": {"gpu_memory": "1GiB", "memory": "1GiB"}}).jobs
    assert job.resources == Resources()


def test_resources_that_can_never_be_given_are_placed_where_they_are_asked_for(registry, tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text(
        "tasks:\n"
        "- line@smoke\n"
        "- {task: bare@smoke, resources: {cpus: 1000}}\n"
        "methods:\n"
        "- plain\n"
        "- {method: tuned, resources: {memory: 900TB}}\n"
        "seeds: 1\n"
    )
    suite = load_suite(path)
    found = [str(problem).replace(f"{tmp_path}/", "") for problem in make_plan(suite, registry, tmp_path).problems]
    assert [problem.partition(", but")[0] for problem in found] == [
        "large.yaml:3:40: each job asks for 1000 CPU cores",
        "large.yaml:6:39: each job may take 818.5 TiB of memory",
    ]
    left = make_plan(suite, registry, tmp_path, filter=["line", "plain"])
    assert left.problems == [], "what is filtered out is not asked for"
    path.write_text(path.read_text() + "executor: other\n")
    problems = [str(problem) for problem in make_plan(load_suite(path), registry, tmp_path).problems]
    assert len(problems) == 1, "another executor has other machines"
    assert "there is no executor 'other'" in problems[0]


@pytest.mark.usefixtures("torch_for_gpus")
@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        ({}, 16),
        ({"cpus": 2}, 8),
        ({"memory": "10GiB"}, 3),
        ({"gpus": 0.25}, 8),
        ({"gpus": 1}, 2),
        ({"gpu_memory": "30GiB"}, 3),
        ({"gpus": 0.1, "gpu_memory": "30GiB"}, 3),
    ],
)
def test_jobs_at_once_follow_from_what_they_ask_for(planned, gpus, monkeypatch, resources, slots):
    gpus([Board("GPU-a", total=80 * GIB), Board("GPU-b", total=40 * GIB)])
    monkeypatch.setattr(preflight.machine, "cores", lambda: 16)
    monkeypatch.setattr(preflight.machine, "memory", lambda: 32 * GIB)
    found = planned({"resources": resources})
    assert (found.problems, found.slots) == ([], slots)
