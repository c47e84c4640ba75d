"""Adapted weights: limits that are plain distillation, update modes, and what the weights are compared with."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench_methods.vision import kd_aif as method

SHORT = {"pilot_steps": 3, "teacher_steps": 3}
AS_KD = {"temperature": 4.0, "alpha": 0.9}


def sample(b=12, c=5):
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, c, generator=g), torch.randn(b, c, generator=g), torch.randint(c, (b,), generator=g)


def saved(tmp_path):
    return load_file(tmp_path / "kd_aif" / "artifacts" / "weights.safetensors")


def test_unit_weights_give_plain_distillation():
    s, t, y = sample()
    terms = method.weighted_loss(s, t, y, torch.ones(12), method.KdAifParams(**AS_KD))
    assert terms["kd"].item() == pytest.approx(0.9 * kd_kl(s, t, 4.0).item(), rel=1e-6)
    assert terms["ce"].item() == pytest.approx(0.1 * cross_entropy(s, y).item(), rel=1e-6)


def test_the_example_code_has_the_soft_loss_alone_without_t2():
    s, t, y = sample()
    terms = method.weighted_loss(s, t, y, torch.ones(12), method.KdAifParams(scale_t2=False))
    assert set(terms) == {"kd"}
    assert terms["kd"].item() == pytest.approx(kd_kl(s, t, 7.0).item() / 49, rel=1e-5)


def test_weights_scale_each_sample():
    s, t, y = sample()
    params, weights = method.KdAifParams(alpha=0.5), torch.linspace(0, 2, 12)
    total = sum(method.weighted_loss(s, t, y, weights, params).values())
    alone = [
        sum(method.weighted_loss(s[i : i + 1], t[i : i + 1], y[i : i + 1], torch.ones(1), params).values())
        for i in range(12)
    ]
    assert total.item() == pytest.approx((weights * torch.stack(alone)).mean().item(), rel=1e-5)


def test_kinds_of_weights():
    harm, labelled = torch.linspace(-1, 1, 100, dtype=torch.float64), torch.ones(100, dtype=torch.bool)

    def made(weighting):
        params = method.KdAifParams(weighting=weighting)
        return method.sample_weights(harm, labelled, params, torch.Generator().manual_seed(0))[0]

    own, random, removed = made("influence"), made("random"), made("remove")
    assert bool((own.diff() <= 0).all())
    assert torch.equal(own.sort().values, random.sort().values)
    assert not torch.equal(own, random)
    assert removed.tolist() == [1.0] * 80 + [0.0] * 20


def test_the_lowest_unlabelled_samples_are_dropped():
    harm, labelled = torch.linspace(-1, 1, 50, dtype=torch.float64), torch.arange(50) % 2 == 0
    weights, _ = method.sample_weights(harm, labelled, method.KdAifParams(drop=0.2), torch.Generator())
    assert (weights == 0).nonzero().flatten().tolist() == [41, 43, 45, 47, 49]


def test_equal_influences_are_plain_distillation_to_the_last_bit(smoke, monkeypatch):
    monkeypatch.setattr(method, "influences", lambda model, train, val, **more: torch.full((len(train[0]),), 0.25))
    weighted = smoke("kd_aif", "shapetex", SHORT | AS_KD)
    assert weighted.status == "ok", weighted.error
    assert weighted.metrics == smoke("kd", "shapetex").metrics
    assert weighted.cost["aux_steps"] == 3


def test_uniform_weights_cost_nothing_beside_distillation(smoke):
    outcome = smoke("kd_aif", "digits-gap", {"weighting": "uniform"})
    assert outcome.status == "ok", outcome.error
    assert "aux_steps" not in outcome.cost
    assert outcome.cost["teacher_queries"] == smoke("kd", "digits-gap").cost["teacher_queries"]


def test_wrong_labels_are_looked_for(smoke, tmp_path):
    outcome = smoke("kd_aif", "noisy", SHORT)
    assert outcome.status == "ok", outcome.error
    assert {"flip_auroc", "flipped_weight_ratio", "leave_out_correlation", "class_top1_min"} <= set(outcome.extra)
    assert outcome.extra["leave_out_correlation"] > 0.8
    weights = saved(tmp_path)["weights"]
    assert len(weights) == 90
    assert weights.std() > 0
    assert json.loads((tmp_path / "kd_aif" / "artifacts" / "weights.json").read_text())["updates"] == 1


def test_weights_come_again_and_again_from_the_student(smoke, tmp_path):
    params = {"update": "periodic", "period": 2, "solver": "lissa", "iterations": 2, "curvature": 20}
    outcome = smoke("kd_aif", "digits-gap", params)
    assert outcome.status == "ok", outcome.error
    assert "aux_steps" not in outcome.cost
    about = json.loads((tmp_path / "kd_aif" / "artifacts" / "weights.json").read_text())
    assert about["updates"] == 2  # after steps 2 and 4 of 6


@pytest.mark.parametrize(("weigh", "steps"), [("teacher", 3), ("both", 6)])
def test_the_teacher_can_be_weighted_too(smoke, weigh, steps):
    outcome = smoke("kd_aif", "digits-gap", SHORT | {"weigh": weigh})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == steps
    assert ("weight_std" in outcome.extra) == (weigh == "both")


def test_unlabelled_images_have_the_teachers_label(smoke, tmp_path):
    outcome = smoke("kd_aif", "digits-fewlabel", SHORT | {"alpha": 0.5})
    assert outcome.status == "ok", outcome.error
    weights = saved(tmp_path)["weights"]
    assert int((weights == 0).sum()) == int(0.2 * 60)
