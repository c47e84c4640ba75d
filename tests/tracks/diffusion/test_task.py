"""What methods of the track receive: data, draws, networks that start as the teacher, and a score that is the same."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from PIL import Image

from kdbench.cache import Cache
from kdbench.errors import ArtifactError, JobError, TestDataError
from kdbench.registry import discover
from kdbench.spec import Metric
from kdbench.tracks.diffusion import gate
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser
from kdbench.tracks.diffusion.samplers.fewstep import FewStep, one_step
from kdbench.tracks.diffusion.spec import DiffusionSpec
from kdbench.tracks.diffusion.task import DiffusionTask


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make(shared, tmp_path):
    def task(name: str, seed: int = 0, method: str = "m", **changes) -> DiffusionTask:
        spec = discover().task(f"diffusion/{name}", "smoke").model_copy(update=changes)
        return DiffusionTask(spec, seed=seed, method=method, folder=tmp_path, cache=shared)

    return task


def equal(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_networks_start_as_the_teacher(make):
    task = make("ring")
    assert isinstance(task.teacher(), ExactDenoiser)
    fitted = task.score_network()
    assert equal(fitted, task.student())
    assert not equal(fitted, task.fresh_student())
    assert all(parameter.requires_grad for parameter in fitted.parameters())
    with pytest.raises(JobError, match="score_network"):
        task.teacher(trainable=True)


def test_a_trained_teacher_is_copied_and_a_small_student_is_not(make):
    task = make("ring-net")
    assert equal(task.score_network(), task.teacher())
    assert equal(task.student(), task.fresh_student())
    assert equal(task.student(), make("ring-net", method="other").student())
    assert not equal(task.student(), make("ring-net", seed=1).student())


def test_teacher_is_found_again_and_was_trained(make):
    task = make("ring-net")
    assert equal(task.teacher(), make("ring-net").teacher())
    assert not equal(task.teacher(), task.build_teacher())


def test_real_images_and_queries_are_metered(make):
    task = make("ring")
    batches = list(islice(task.train_loader(16), 3))
    assert task.budget.spent["real_images"] == 48
    task.teacher()(batches[0].x, 1.0, batches[0].cond)
    assert task.budget.spent["teacher_queries"] == 16
    next(iter(task.draws(16)))
    assert task.budget.spent["real_images"] == 48
    task.validate(one_step(task.teacher(), task.sigma_init))
    assert task.budget.spent["teacher_queries"] == 16, "looking at samples costs nothing"


def test_test_data_are_out_of_reach(make):
    task = make("ring")
    for ask in (lambda: task.split("test"), lambda: task.samples(one_step(task.teacher(), 2.5), split="test")):
        with pytest.raises(TestDataError):
            ask()


def test_evaluation_is_the_same_for_all_seeds(make):
    scores = []
    for seed in (0, 1):
        task = make("ring", seed=seed)
        task.phase = "evaluate"
        scores.append(task.score(task.official_teacher()))
    assert scores[0] == scores[1]
    assert set(scores[0]) == {metric.name for metric in make("ring").spec.all_metrics()}


def test_pictures_are_left_for_the_page(make, tmp_path):
    task = make("ring")
    task.phase = "evaluate"
    task.score(FewStep(task.teacher(), [2.5, 0.5]))
    for name in ("samples.png", "trajectory.png"):
        with Image.open(tmp_path / "artifacts" / name) as picture:
            assert picture.width > 50


def test_metrics_that_are_not_measured_are_named(make):
    task = make("ring", metrics=(Metric(name="beauty"),))
    task.phase = "evaluate"
    with pytest.raises(JobError, match=r"not measured: beauty \(there: .*sw2"):
        task.score(one_step(task.teacher(), 2.5))


def test_official_teacher_has_two_orders(make):
    task = make("ring")
    assert task.official_teacher().method == "heun"
    assert task.official_teacher(4).method == "euler"
    assert len(task.official_teacher(4).times) == 5


@pytest.mark.parametrize("name", ["ring", "ring-net"])
def test_samplers_are_saved_and_read(make, tmp_path, name):
    task = make(name)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    cond = task.split("val").cond[:8]
    experts = [task.score_network(), task.fresh_student()]
    for number, sampler in enumerate(
        (task.official_teacher(), one_step(task.student(), 2.5), FewStep(experts, [2.5, 0.4], "cps", eta=0.5))
    ):
        task.save(sampler, tmp_path / str(number))
        again = task.load(tmp_path / str(number))
        wanted, found = (one.sample(noise, cond, torch.Generator().manual_seed(0)) for one in (sampler, again))
        assert torch.equal(found.x, wanted.x)
        assert found.nfe == wanted.nfe
    with pytest.raises(ArtifactError, match="Sampler"):
        task.save(task.student(), tmp_path / "network")


def test_gate_says_what_does_not_matter():
    spec = discover().task("diffusion/ring-net", "cpu")
    assert isinstance(spec, DiffusionSpec)
    good = {"teacher": 0.1, "teacher_1": 1.0, "teacher_2": 0.5, "teacher_4": 0.2, "naive": 1.0, "small": 0.2}
    assert gate.problems(good, spec) == []
    found = gate.problems({**good, "teacher_4": 0.12, "small": 0.1}, spec)
    assert found == [
        "sw2 of the teacher at 4 steps is 0.12, that of the teacher 0.1: not 1.5 times as good",
        "sw2 of a student that is trained as a denoiser is 0.1, that of the teacher 0.1: not 1.1 times as good",
    ]
    best = spec.model_copy(update={"headline": Metric(name="psnr", direction="max")})
    assert gate.problems({**dict.fromkeys(good, 10.0), "teacher": 40.0}, best) == []
    assert len(gate.problems(dict.fromkeys(good, 10.0), best)) == 5


def test_gate_is_measured_once(make, shared):
    task = make("ring-net", gate=discover().task("diffusion/ring-net", "cpu").gate)
    values = gate.measured(task)
    assert set(values) == {"teacher", "teacher_1", "teacher_2", "teacher_4", "naive", "small"}
    assert gate.measured(make("ring-net", gate=task.spec.gate)) == values
