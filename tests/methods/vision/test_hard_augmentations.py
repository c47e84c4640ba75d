"""HARD: the augmentor's gradient through both networks, no labels in it, what its evaluation says."""

import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.losses.logits import kd_kl
from kdbench.tracks.vision.models import build
from kdbench.training.augmentors import AffineAugmentor
from kdbench_methods.vision import hard_augmentations as method


def setting(seed=0, start=0.3):
    torch.manual_seed(seed)
    student, teacher = (build("rn(2,1)", 4).eval().requires_grad_(False) for _ in range(2))
    return student, teacher, AffineAugmentor(start=start), torch.randn(8, 3, 16, 16)


def loss_of(student, teacher, augmentor, x, validity=0.0, seed=0):
    params = SimpleNamespace(validity=validity, temperature=2.0)
    return method.augmentor_loss(student, teacher, augmentor, x, torch.Generator().manual_seed(seed), params)


def test_the_divergence_has_gradients_in_both_networks():
    p, q = torch.randn(2, 5, 4, requires_grad=True)
    p, q = p.detach().requires_grad_(), q.detach().requires_grad_()
    value = method.directed_kl(p, q, 2.0)
    assert value.item() == pytest.approx(kd_kl(q, p, 2.0).item(), rel=1e-5)
    value.backward()
    assert p.grad.abs().max() > 0
    assert q.grad.abs().max() > 0


def test_the_gradient_flows_through_student_and_teacher():
    student, teacher, augmentor, x = setting()
    loss, _ = loss_of(student, teacher, augmentor, x)
    (full,) = torch.autograd.grad(loss, [augmentor.scale])

    def constant(network):
        return lambda images: network(images.detach())

    (only_student,) = torch.autograd.grad(loss_of(student, constant(teacher), augmentor, x)[0], [augmentor.scale])
    (only_teacher,) = torch.autograd.grad(loss_of(constant(student), teacher, augmentor, x)[0], [augmentor.scale])
    assert only_student.abs().max() > 0
    assert only_teacher.abs().max() > 0
    assert torch.allclose(full, only_student + only_teacher, atol=1e-5)


def test_steps_of_the_augmentor_raise_the_disagreement():
    student, teacher, augmentor, x = setting(start=0.05)
    optimizer = torch.optim.Adam(augmentor.parameters(), lr=0.05)
    before = float(loss_of(student, teacher, augmentor, x)[1])
    for _ in range(15):
        optimizer.zero_grad()
        loss_of(student, teacher, augmentor, x)[0].backward()
        optimizer.step()
    assert float(loss_of(student, teacher, augmentor, x)[1]) > before
    assert all(parameter.grad is None for parameter in (*student.parameters(), *teacher.parameters()))


def test_the_validity_term_keeps_the_teachers_belief():
    student, teacher, augmentor, x = setting()
    plain, disagreement = loss_of(student, teacher, augmentor, x)
    kept, same = loss_of(student, teacher, augmentor, x, validity=3.0)
    assert plain.item() == pytest.approx(-disagreement.item())
    assert same.item() == pytest.approx(disagreement.item())
    moved = augmentor(x, torch.Generator().manual_seed(0))
    assert (kept - plain).item() == pytest.approx(3 * kd_kl(teacher(moved), teacher(x), 1.0).item(), rel=1e-4)


def test_the_part_of_the_steps_to_a_share_of_the_last_value():
    assert method.share_of_steps([0.1, 0.5, 0.9, 1.0]) == 0.75
    assert method.share_of_steps([]) == 1.0


@pytest.mark.parametrize("augmentor", ["affine", "vae", "random-shift", "randaugment", "none"])
def test_every_augmentor_trains(smoke, tmp_path, augmentor):
    params = {"augmentor": augmentor, "low": 90.0, "high": 99.0, "turn": 2}
    outcome = smoke("hard_augmentations", "digits-shifted", params)
    assert outcome.status == "ok", outcome.error
    found = json.loads((tmp_path / "hard_augmentations" / "artifacts" / "augmentor.json").read_text())
    assert len(found["disagreement"]) == 6
    assert 0 <= outcome.extra["centred_top1"] <= 1
    learned = augmentor in ("affine", "vae")
    assert outcome.extra["augmentor_steps"] == (12 + 6 * (augmentor == "vae") if learned else 0)
    assert ("range_ratio" in outcome.extra) == (augmentor == "affine")
    assert ("vae_mse" in outcome.extra) == (augmentor == "vae")


def test_above_the_threshold_the_student_trains_alone(smoke):
    outcome = smoke("hard_augmentations", "digits-gap", {"low": 0.0, "high": 1e-6})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["augmentor_steps"] == 0
    assert outcome.cost.get("aux_steps", 0) == 0


def test_thresholds_in_the_wrong_order_are_refused(smoke):
    outcome = smoke("hard_augmentations", "digits-gap", {"low": 2.0, "high": 1.0})
    assert outcome.status == "failed"
    assert "low and high" in outcome.error.message
