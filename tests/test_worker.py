"""One job in this process: order, checks, and no trace in the process's own state."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from kdbench.job import Job, Outcome
from kdbench.registry import discover
from kdbench.worker import make_task, prepare, run_job
from tests.toytrack import EXTENSION, PLAIN, write_method


@pytest.fixture
def job_of(tmp_path):
    """Makes a job of a method with this body, and runs it in this process."""

    def make(body=PLAIN, task="toy/line", *, seed=0, slug="m", go=True, folder="job", **changes):
        path = write_method(tmp_path, slug, body)
        registry = discover([EXTENSION, path])
        assert not [b for b in registry.broken if b.place.startswith(str(tmp_path))], registry.broken
        method, spec = registry.method(f"toy/{slug}"), registry.task(task, "smoke")
        job = Job(
            method=method.key,
            method_digest=method.digest,
            params=method.canonical({}),
            task=spec.name,
            spec=spec.identity(),
            seed=seed,
            track_version=1,
            method_file=method.path,
            module=method.module,
            **changes,
        )
        return run_job(job, tmp_path / folder, registry=registry) if go else (job, registry)

    return make


def test_an_outcome_is_written_as_it_is_returned(job_of, tmp_path):
    outcome = job_of(keep=("model",))
    assert outcome.status == "ok", outcome.error
    folder = tmp_path / "job"
    assert Outcome.model_validate_json((folder / "outcome.json").read_text()) == outcome
    assert outcome.artifacts == ["curve.jsonl", "examples.npz", "model/model.safetensors"]
    assert np.load(folder / "examples.npz")["mse"].mean() == pytest.approx(outcome.metrics["mse"], rel=1e-5)
    assert outcome.attempts == 1
    assert outcome.cost["samples"] == 4 * 16
    assert outcome.cost["flops"] > 0


def test_why_a_task_refuses_a_board_is_recorded_with_its_results(job_of, tmp_path):
    assert "gate" not in job_of(folder="plain").provenance
    job, registry = job_of(go=False)
    job = job.model_copy(update={"spec": {**job.spec, "refuses": ["the teacher is no better"]}})
    outcome = run_job(job, tmp_path / "refused", registry=registry)
    assert outcome.status == "ok"
    assert outcome.provenance["gate"] == ["the teacher is no better"]


def test_one_seed_gives_one_result(job_of):
    first, again, other = job_of(folder="a"), job_of(folder="b"), job_of(folder="c", seed=1)
    assert first.metrics == again.metrics
    assert first.metrics != other.metrics


def test_global_state_is_as_before(job_of):
    body = """
        import random
        import numpy, torch
        @hookimpl
        def train(task, params):
            assert torch.get_num_threads() == 1
            assert torch.are_deterministic_algorithms_enabled()
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(False)
            torch.rand(3), numpy.random.rand(3), random.random()
            return task.student().float()
        """
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    torch.set_num_threads(2)
    try:
        assert job_of(body).status == "ok"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


@pytest.mark.parametrize(
    "harm",
    [
        "torch.no_grad()(teacher.weight.mul_)(0)",
        "teacher.weight.requires_grad_(True)",
        "teacher.bias = torch.nn.Parameter(torch.zeros(1))",
        "teacher.add_module('more', torch.nn.Linear(1, 1))",
    ],
)
def test_a_method_that_changes_the_teacher_fails(job_of, harm):
    lines = ["import torch", "@hookimpl", "def train(task, params):", "    teacher = task.teacher()", f"    {harm}"]
    body = "\n".join([*lines, "    return task.student()"])
    outcome = job_of(body)
    assert outcome.status == "failed"
    assert outcome.error.type == "ContractError"
    assert "trainable=True" in outcome.error.message


def test_a_private_teacher_may_be_trained(job_of):
    body = """
        @hookimpl
        def train(task, params):
            task.teacher()(task.train_loader()[0].x)
            teacher = task.teacher(trainable=True)
            task.fit(teacher, lambda model, batch: (model(batch.x) - batch.y).pow(2).mean(), spend="aux_steps", steps=3)
            return task.student()
        """
    outcome = job_of(body)
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == 3
    assert outcome.cost["teacher_queries"] == 16


def test_evaluate_may_add_and_must_not_lose_metrics(job_of):
    evaluate = "\n@hookimpl\ndef evaluate(task, model):\n    scores = task.score(model)\n    {}\n"
    good = job_of(PLAIN + evaluate.format("return {**scores, 'norm': model.weight.norm()}"), folder="a")
    assert set(good.metrics) == {"mse", "mae"}
    assert set(good.extra) == {"norm"}
    for wrong, words in (
        ("return {'mse': scores['mse']}", "left out the official metrics ['mae']"),
        ("return {**scores, 'mae': 0.5}", "changed the official metric 'mae'"),
        ("return [1.0]", "returned a list"),
        ("return {**scores, 'word': 'high'}", "'word' is not a number"),
    ):
        bad = job_of(PLAIN + evaluate.format(wrong), folder=wrong[:12])
        assert (bad.status, bad.error.type) == ("failed", "ContractError")
        assert words in bad.error.message


def test_parameters_reach_the_hook_validated(job_of):
    body = '''
        class Knobs(Params):
            """Knobs."""

            alpha: float = Field(0.25, ge=0, le=1, description="A share.")

        @hookimpl
        def train(task, params):
            task.log(0, alpha=params.alpha)
            return task.student()
        '''
    assert job_of(body, folder="a").status == "ok"
    job, registry = job_of(body, go=False)
    outcome = run_job(
        job.model_copy(update={"params": {"alpha": 7.0}}), job.method_file.parent / "b", registry=registry
    )
    assert outcome.status == "failed"
    assert outcome.error.type == "ValidationError"


def test_what_was_spent_and_logged_before_a_failure_is_kept(job_of, tmp_path):
    body = PLAIN.replace("return student", "raise RuntimeError('after training')")
    outcome = job_of(body)
    assert outcome.status == "failed"
    assert outcome.cost["steps"] == 4
    assert (tmp_path / "job" / "curve.jsonl").read_text().count("\n") == 4


def test_an_unknown_track_is_a_recorded_failure(job_of, tmp_path):
    job, _ = job_of(go=False)
    outcome = run_job(job, tmp_path / "job", registry=discover())
    assert outcome.status == "failed"
    assert "'toy/line' is not installed" in outcome.error.message


def test_ctrl_c_is_no_outcome(job_of, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        job_of("@hookimpl\ndef train(task, params):\n    raise KeyboardInterrupt\n")
    assert not (tmp_path / "job" / "outcome.json").exists()


def test_prepare_fills_the_cache_and_raises_what_stops_it(job_of, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    job, registry = job_of(go=False)
    prepare(job, tmp_path / "p", registry=registry)
    task = make_task(job, tmp_path / "p", registry=registry)
    kind, key, _ = task.spec.teacher_needs()[0]
    assert task.cache.find(kind, key) is not None
    teacher = {**job.spec["teacher"], "fault": "raise"}
    with pytest.raises(ValueError, match="cannot be trained"):
        prepare(job.model_copy(update={"spec": {**job.spec, "teacher": teacher}}), tmp_path / "p", registry=registry)
