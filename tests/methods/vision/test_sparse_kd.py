"""Sparse distillation: the path of temperatures and steps, masks that hold, what is seen of a teacher."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdbench.losses.logits import kd_kl
from kdbench.training import simplex
from kdbench.training.pruning import Masks
from kdbench_methods.vision import sparse_kd as method

Params = method.SparseKdParams
SHORT = {"dense_steps": 0.5, "resamples": 0, "resample_steps": 0.4}


def test_temperatures_fall_to_the_final_one():
    params = Params(temperature=4.0, final_temperature=1.0)
    assert method.temperatures(params, 3) == pytest.approx([3.0, 2.0, 1.0])
    assert method.temperatures(params, 1) == [1.0]
    assert method.temperatures(Params(temperature=2.0, final_temperature=2.0), 4) == [2.0] * 4


def test_stages_share_the_steps():
    assert method.shares(10, 3) == [3, 3, 4]
    assert sum(method.shares(480, 7)) == 480
    assert method.shares(5, 5) == [1] * 5


def test_what_is_seen_of_a_teacher_is_a_distribution():
    p = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    g = torch.Generator().manual_seed(0)
    for access in ("full", "top-k", "decision", "noisy"):
        torch.testing.assert_close(method.seen(p, Params(access=access), g).sum(-1), torch.ones(6))
    assert torch.equal(method.seen(p, Params(), g), p)
    assert torch.equal(method.seen(p, Params(access="decision"), g).argmax(-1), p.argmax(-1))


def test_without_weight_the_loss_is_that_of_the_labels():
    logits, target = torch.randn(4, 3), torch.full((4, 3), 1 / 3)
    parts = method.soft_loss(logits, target, torch.tensor([0, 1, 2, 0]), 0.0)
    assert parts["kd"] == 0
    own = method.soft_loss(logits, logits.softmax(-1), torch.tensor([0, 1, 2, 0]), 1.0)
    assert own["kd"].item() == pytest.approx(0, abs=1e-6)
    assert own["ce"] == 0


@pytest.mark.parametrize("operator", sorted(simplex.SOFTENING))
def test_the_stage_before_is_a_fixed_point_where_both_sides_are_softened(operator):
    """Softening the teacher alone has its fixed point at softer probabilities, which the next stage softens again."""
    generator, soften = torch.Generator().manual_seed(0), simplex.SOFTENING[operator]
    logits = torch.randn(8, 5, generator=generator, requires_grad=True)
    labels, target = torch.zeros(8, dtype=torch.long), soften(logits.detach().softmax(-1), 3.0)
    both = method.soft_loss(logits, target, labels, 1.0, soften, 3.0)["kd"]
    (gradient,) = torch.autograd.grad(both, logits)
    assert both.item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() < 1e-5
    assert method.soft_loss(logits, target, labels, 1.0)["kd"].item() > 1e-3


def test_softened_logits_of_both_sides_are_ordinary_distillation():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    target = simplex.power(teacher.softmax(-1), 4.0)
    parts = method.soft_loss(student, target, torch.zeros(6, dtype=torch.long), 1.0, simplex.power, 4.0)
    torch.testing.assert_close(parts["kd"], kd_kl(student, teacher, 4.0))


@pytest.mark.parametrize("stages", [1, 3])
def test_the_result_is_sparse_and_steps_are_the_tasks(smoke, tmp_path, stages):
    outcome = smoke("sparse_kd", "digits-gap", {**SHORT, "stages": stages, "sparsity": 0.9})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 3
    assert outcome.extra["axioms_held"] == 1
    assert outcome.extra["violators_found"] == 1
    assert outcome.extra["equivalence_error"] < 1e-4
    lost = outcome.extra["dense_top1"] - outcome.metrics["top1"]
    assert outcome.extra["lost_top1"] == pytest.approx(lost)


def test_masks_hold_after_every_step(smoke, monkeypatch):
    seen = []
    real = Masks.apply_to

    def apply_to(self, model):
        real(self, model)
        seen.append(self.sparsity(model))

    monkeypatch.setattr(Masks, "apply_to", apply_to)
    assert smoke("sparse_kd", "digits-gap", {**SHORT, "stages": 2, "sparsity": 0.9}).status == "ok"
    assert len(seen) == 2 + 6  # once when pruned, and after each step
    assert seen[-1] == pytest.approx(0.9, abs=0.01)
    assert seen[0] == pytest.approx(1 - 0.1**0.5, abs=0.02)


@pytest.mark.parametrize("operator", ["power", "uniform", "log1p"])
def test_every_operator_and_teacher(smoke, operator):
    teacher = {"power": "task", "uniform": "dense", "log1p": "previous"}[operator]
    access = {"power": "noisy", "uniform": "top-k", "log1p": "decision"}[operator]
    params = {**SHORT, "operator": operator, "teacher": teacher, "access": access, "match_entropy": True}
    outcome = smoke("sparse_kd", "digits-gap", {**params, "stages": 2, "first_and_last": False})
    assert outcome.status == "ok", outcome.error


def test_resampled_networks_split_the_risk(smoke, tmp_path):
    outcome = smoke("sparse_kd", "digits-gap", {**SHORT, "resamples": 3, "stages": 2})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == 3 + 3 * 2 * 2
    assert outcome.extra["brier_error"] < 1e-10
    both_sides = outcome.extra["variance_drop"] - outcome.extra["bias2_rise"]
    assert outcome.extra["resampled_risk_drop"] == pytest.approx(both_sides, abs=1e-10)
    folder = tmp_path / "sparse_kd" / "artifacts"
    assert json.loads((folder / "bias_variance.json").read_text())["sparse"]["noise"] == 0
    networks = load_file(folder / "networks.safetensors")
    assert not torch.equal(networks["dense0/stem.0.weight"], networks["dense1/stem.0.weight"])
