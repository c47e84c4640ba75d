"""Fine-tuning of the teacher for conditional mutual information, few-shot and zero-shot data, distillers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from kdbench.losses.centroids import class_centroids, conditional_mutual_information
from kdbench_methods.vision import mcmi as method

SHORT = {"finetune_steps": 4}


def sample():
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(60, 6, generator=g), torch.randint(6, (60,), generator=g)


@pytest.mark.parametrize("teacher", ["mcmi", "continued"])
def test_descent_spreads_the_outputs_of_a_class(teacher):
    logits, y = sample()
    params = method.McmiParams(teacher=teacher, cmi_weight=2.0)
    z, start = logits.clone().requires_grad_(), conditional_mutual_information(logits, y)
    q = class_centroids(F.softmax(logits, -1), y)
    terms = method.finetune_loss(z, y, q, params)
    sum(terms.values()).backward()
    alone = logits.clone().requires_grad_()
    F.cross_entropy(alone, y).backward()
    with_term = conditional_mutual_information(logits - 0.1 * z.grad, y)
    without = conditional_mutual_information(logits - 0.1 * alone.grad, y)
    if teacher == "mcmi":
        assert with_term > without
        assert with_term > start
        assert terms["cmi"].item() == pytest.approx(-2 * start.item(), rel=1e-5)
    else:
        assert torch.equal(z.grad, alone.grad)


def test_teachers_compared_with():
    logits, y = sample()
    smooth = method.finetune_loss(logits, y, None, method.McmiParams(teacher="label-smoothing"))
    assert smooth["ce"].item() == pytest.approx(F.cross_entropy(logits, y, label_smoothing=0.1).item())
    flat = method.finetune_loss(logits, y, None, method.McmiParams(teacher="entropy"))
    assert flat["entropy"] < 0
    assert method.finetune_loss(0 * logits, y, None, method.McmiParams(teacher="entropy"))["entropy"] < flat["entropy"]


def test_posterior_of_noisy_labels():
    p = method.posterior(torch.tensor([2, 0]), 4, 0.3)
    assert torch.allclose(p.sum(1), torch.ones(2, dtype=torch.float64))
    assert p[0].tolist() == pytest.approx([0.1, 0.1, 0.7, 0.1])


def test_omitted_classes_are_in_the_teacher_alone(smoke, tmp_path, monkeypatch):
    seen, taught = set(), set()
    original, finetune = method.logit_terms, method.finetune_loss

    def watch(logits, teacher, labels, params):
        seen.update(labels.tolist())
        return original(logits, teacher, labels, params)

    def watch_teacher(logits, labels, centroids, params):
        taught.update(labels.tolist())
        return finetune(logits, labels, centroids, params)

    monkeypatch.setattr(method, "logit_terms", watch)
    monkeypatch.setattr(method, "finetune_loss", watch_teacher)
    outcome = smoke("mcmi", "shapetex-fewclass", SHORT)
    assert outcome.status == "ok", outcome.error
    assert not {7, 19} & seen
    assert {7, 19} <= taught
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 4
    assert 0 <= outcome.metrics["omitted_top1"] <= 1
    assert 0 < outcome.extra["teacher_omitted_mass_after"] < 1
    assert outcome.extra["teacher_cmi_after"] >= 0
    made = json.loads((tmp_path / "mcmi" / "artifacts" / "teacher.json").read_text())
    assert made["step"] in range(5)


def test_without_early_stopping_the_last_weights_teach(smoke, tmp_path):
    outcome = smoke("mcmi", "shapetex", SHORT | {"early_stop": False, "centroid_update": "ema", "share": 0.5})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["teacher_step"] == 4
    weights = load_file(tmp_path / "mcmi" / "artifacts" / "teacher.safetensors")
    assert int(weights["stem.1.num_batches_tracked"]) == 12  # 8 of its own training; centroid passes do not count
    assert outcome.extra["teacher_ce_after"] != outcome.extra["teacher_ce_before"]


def test_the_plain_teacher_costs_no_training(smoke):
    outcome = smoke("mcmi", "noisy", {"teacher": "mll"})
    assert outcome.status == "ok", outcome.error
    assert "aux_steps" not in outcome.cost
    assert outcome.extra["teacher_bayes_kl_before"] > 0
    assert not [name for name in outcome.extra if name.endswith("_after")]


@pytest.mark.parametrize("distiller", ["dist", "fitnet"])
def test_any_distiller_uses_the_new_teacher(smoke, distiller):
    outcome = smoke("mcmi", "digits-gap", SHORT | {"distiller": distiller, "centroid_update": "epoch"})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["teacher_queries"] >= 6 * 16


def test_where_there_is_no_original_data_no_teacher_can_be_tuned(smoke):
    outcome = smoke("mcmi", "webly", SHORT)
    assert outcome.status == "failed"
    assert "no original data" in outcome.error.message
