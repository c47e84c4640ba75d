"""Mixup and distillation: the loss, what the teacher sees, the cells of the table."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdbench.losses.logits import zscore
from kdbench.tracks.vision import metrics
from kdbench_methods.vision import logit_standardization
from kdbench_methods.vision import mixup_kd as method


def params(**values):
    return method.MixupKdParams(**values)


def logits(b=8, c=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(b, c, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t, F.softmax(torch.randn(b, c, generator=g, dtype=torch.float64), -1)


def test_the_loss_is_that_of_the_released_code():
    s, t, target = logits()
    log_q = F.log_softmax(s / s.std(-1, keepdim=True), -1)
    p = F.softmax(t / t.std(-1, keepdim=True), -1)
    terms = method.mixup_losses(s, t, target, params(gamma=0.3, alpha=0.6))
    assert terms["ce"].item() == pytest.approx(0.3 * -(target * log_q).sum().item() / len(s), rel=1e-6)
    assert terms["kd"].item() == pytest.approx(0.6 * F.kl_div(log_q, p, reduction="batchmean").item(), rel=1e-6)


def test_its_divergence_is_logit_standardization_at_tau_one():
    s, t, target = logits()
    own = logit_standardization.LogitStandardizationParams(tau=1.0, w_kd=0.9)
    other = logit_standardization.host_losses(s, t, target.argmax(-1), own)["kd"]
    assert method.mixup_losses(s, t, target, params())["kd"].item() == pytest.approx(other.item(), rel=1e-9)


def test_the_gradient_flows_through_the_students_deviation():
    # so that the range of its logits is free: the loss does not change along the centred logits
    s, t, target = logits()
    s.requires_grad_(True)
    (g,) = torch.autograd.grad(sum(method.mixup_losses(s, t, target, params()).values()), s)
    centred = (s - s.mean(-1, keepdim=True)).detach()
    assert ((g * centred).sum(-1).abs() / (g.norm(dim=-1) * centred.norm(dim=-1))).max() < 1e-6
    assert g.abs().max() > 1e-4


def test_a_fixed_temperature_is_ordinary_distillation():
    s, t, _ = logits()
    y = t.argmax(-1)
    terms = method.mixup_losses(s, t, F.one_hot(y, 6).double(), params(temperature=4.0))
    assert terms["ce"].item() == pytest.approx(0.1 * F.cross_entropy(s, y).item(), rel=1e-9)
    soft = F.kl_div(F.log_softmax(s / 4, -1), F.softmax(t / 4, -1), reduction="batchmean")
    assert terms["kd"].item() == pytest.approx(0.9 * 16 * soft.item(), rel=1e-9)


def test_dividing_by_the_deviation_changes_no_prediction():
    s, _, target = logits(b=200)
    assert metrics.accuracy(zscore(s), target.argmax(-1)) == metrics.accuracy(s, target.argmax(-1))


def test_without_mixing_and_with_a_fixed_temperature_it_is_kd(smoke):
    one, other = smoke("mixup_kd", "digits-gap", {"mixing": "none", "temperature": 4.0}), smoke("kd", "digits-gap")
    assert one.status == "ok", one.error
    assert one.metrics["nll"] == pytest.approx(other.metrics["nll"], rel=1e-4)
    assert one.extra["mixed_share"] == 0


def test_keeping_every_image_is_mixing_none(smoke):
    # a permutation within each batch is left, which changes sums in their last bits alone
    kept = smoke("mixup_kd", "digits-gap", {"fraction": 1.0, "replacement": False, "temperature": 4.0})
    assert kept.extra["mixed_share"] == 0
    assert kept.metrics["nll"] == pytest.approx(smoke("kd", "digits-gap").metrics["nll"], rel=1e-3)


def test_the_teacher_sees_the_mixed_images(smoke):
    outcome = smoke("mixup_kd", "digits-gap", {"fraction": 0.0})
    assert outcome.extra["mixed_share"] == 1
    assert outcome.cost["teacher_queries"] == outcome.cost["samples"]
    assert outcome.cost["flops"] > smoke("kd", "digits-gap").cost["flops"]  # which takes stored answers


@pytest.mark.parametrize("values", [{"mixing": "cutmix"}, {"teacher": "mixup10", "beta": 0.2}, {"teacher": "smoothed"}])
def test_cells_of_the_table(smoke, values):
    outcome = smoke("mixup_kd", "digits-mixup", values)
    assert outcome.status == "ok", outcome.error
    assert 0 < outcome.extra["teacher_entropy"] <= math.log(10) + 1e-6
    assert {"fgsm2_top1", "fgsm8_top1", "student_scatter_ratio", "ece_standardized"} <= set(outcome.extra)


def test_a_teacher_that_is_not_there_is_named(smoke):
    outcome = smoke("mixup_kd", "digits-gap", {"teacher": "mixup10"})
    assert outcome.status == "failed"
    assert "has no teacher 'mixup10'" in outcome.error.message
