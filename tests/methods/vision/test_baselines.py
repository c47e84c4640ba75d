"""Baselines: what distinguishes each from its neighbours."""

import pytest
import torch
import torch.nn.functional as F

from kdbench_methods.vision import fixmatch_lite


def test_the_teacher_scores_as_itself_and_costs_nothing(smoke):
    outcome = smoke("teacher", "digits-gap")
    assert outcome.metrics["agreement"] == 1
    assert outcome.metrics["kl_teacher"] == pytest.approx(0, abs=1e-6)
    assert outcome.cost.get("teacher_queries", 0) == 0


def test_without_its_divergence_distillation_is_no_distillation(smoke):
    assert smoke("kd", "digits-gap", {"weight": 0.0}).metrics == smoke("no_kd", "digits-gap").metrics


def test_without_smoothing_label_smoothing_is_no_distillation(smoke):
    assert smoke("label_smoothing", "digits-gap", {"eps": 0.0}).metrics == smoke("no_kd", "digits-gap").metrics


def test_no_distillation_uses_labelled_images_alone(smoke):
    outcome = smoke("no_kd", "digits-fewlabel")
    assert outcome.status == "ok"
    assert outcome.cost["samples"] == 6 * 20  # 2 labels of 10 classes: one batch of 20 per step


@pytest.mark.parametrize(("slug", "extra"), [("self_kd", 6), ("dml", 6)])
def test_auxiliary_networks_are_metered(smoke, slug, extra):
    outcome = smoke(slug, "digits-gap")
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == extra
    assert "teacher_queries" not in outcome.cost


def test_the_ensemble_asks_all_teachers(smoke):
    one = smoke("kd", "shapetex-large-teacher")
    three = smoke("ensemble_kd", "shapetex-large-teacher")
    assert three.status == "ok", three.error
    assert three.cost["teacher_queries"] == 3 * one.cost["teacher_queries"]


def test_an_ensemble_of_one_is_refused(smoke):
    outcome = smoke("ensemble_kd", "digits-gap")
    assert outcome.status == "failed"
    assert "two or more" in outcome.error.message


@pytest.mark.parametrize("slug", ["fitnet", "sp", "rkd"])
@pytest.mark.parametrize("task", ["digits-gap", "hetero-rn-vit", "hetero-vit-mixer", "hetero-mixer-rn"])
def test_feature_methods_cross_families(smoke, slug, task):
    assert smoke(slug, task).status == "ok"


def test_random_subset_sees_its_share(smoke):
    outcome = smoke("random_subset", "digits-gap", {"share": 0.25, "weight": 0.0})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["samples"] == 6 * 20  # a quarter of 80 images is less than a batch


def test_fixmatch_counts_confident_pseudo_labels_alone():
    params = fixmatch_lite.FixmatchLiteParams()
    one, two = torch.zeros(2, 1), torch.zeros(3, 1)
    batch = fixmatch_lite.Mixed(one, torch.tensor([0, 1]), two, two)
    labelled, strong = torch.randn(2, 4), torch.randn(3, 4)
    weak = torch.tensor([[9.0, 0, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 9.0]])
    terms = fixmatch_lite.fixmatch_loss(torch.cat([labelled, weak, strong]), batch, params)
    expected = F.cross_entropy(strong[[0, 2]], torch.tensor([0, 3]), reduction="sum") / 3
    assert terms["pseudo"].item() == pytest.approx(expected.item())
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(labelled, batch.y).item())


def test_fixmatch_needs_no_teacher(smoke):
    outcome = smoke("fixmatch_lite", "digits-fewlabel")
    assert outcome.status == "ok", outcome.error
    assert "teacher_queries" not in outcome.cost
