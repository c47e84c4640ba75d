"""Weights and pseudo-labels from similarities, staged admission, and the variants it is compared with."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kdbench_methods.vision import weight_aware_distillation as method


def features(n, seed, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 0, 1, 1, 1, 2])


def test_similarity_is_the_largest_cosine_not_the_mean():
    u, labelled = features(4, 0), features(6, 1)
    made = method.class_similarity(u, labelled, LABELS, 4)
    by_hand = F.normalize(u, dim=1) @ F.normalize(labelled, dim=1).T
    for c, rows in enumerate(([0, 1], [2, 3, 4], [5])):
        assert torch.allclose(made[:, c], by_hand[:, rows].max(1).values, atol=1e-6)
    assert (made[:, 3] == -1).all()
    assert not torch.allclose(made[:, 1], by_hand[:, [2, 3, 4]].mean(1))


def test_the_weight_is_the_ratio_form_wherever_that_is_defined():
    similarity = method.class_similarity(features(50, 2), features(6, 1), LABELS, 3)
    pseudo, weight = method.margins(similarity)
    first, second = similarity.sort(1, descending=True).values[:, :2].T
    assert torch.allclose(weight, first * (1 - second / first), atol=1e-6)
    assert torch.equal(pseudo, similarity.argmax(1))
    assert weight.min() >= 0
    assert weight.max() <= 2
    assert method.margins(torch.tensor([[0.0, -0.5]]))[1].item() == 0.5  # the ratio would be undefined


def test_images_between_two_classes_weigh_nothing():
    labelled = torch.eye(2)
    u = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    _, weight = method.margins(method.class_similarity(u, labelled, torch.tensor([0, 1]), 2))
    assert weight.tolist() == pytest.approx([1.0, 0.0, 1.0], abs=1e-6)


def test_admission_decays_to_nothing():
    counts = [method.admitted_count(0.1, r, 5, 1000) for r in range(1, 6)]
    assert counts == [64, 36, 16, 4, 0]
    assert method.admitted_count(1.0, 3, 3, 1000) == 0


def artifacts(tmp_path):
    return load_file(tmp_path / "weight_aware_distillation" / "artifacts" / "knowledge.safetensors")


def test_rounds_share_the_steps_and_unknown_classes_are_among_the_unlabelled(smoke, tmp_path):
    outcome = smoke("weight_aware_distillation", "mismatch", {"alpha": 0.5})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 4
    assert "teacher_queries" not in outcome.cost
    assert outcome.extra["known_share"] == pytest.approx(0.4)
    assert 0 <= outcome.extra["weight_auroc"] <= 1
    made = artifacts(tmp_path)
    # 60 unlabelled images: 0.5 (2/3)^2 of 60, then 0.5 (1/3)^2 of the 47 that are left
    assert len(made["admitted"]) == 13 + 2
    assert len(made["admitted"].unique()) == 15
    assert (made["labels"] >= 0).sum() == 6 * 4 + 15


def test_pseudo_labels_of_the_classifier_need_no_encoder(smoke, tmp_path):
    outcome = smoke("weight_aware_distillation", "mismatch", {"pseudo": "classifier", "weighting": "none"})
    assert outcome.status == "ok", outcome.error
    assert "aux_steps" not in outcome.cost
    assert "weight_auroc" not in outcome.extra
    assert (artifacts(tmp_path)["weight"] == 0).all()  # the first round has labels alone


def test_almost_everything_can_be_admitted(smoke):
    outcome = smoke(
        "weight_aware_distillation",
        "mismatch",
        {"alpha": 1.0, "rounds": 10, "smallest_crop": 0.6, "flip": True, "weighting": "none"},
        {"limits": {"steps": 10}},
    )
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["admitted"] == 48 + 7 + 2 + 1


def test_without_unlabelled_images_there_is_nothing_to_weigh(smoke):
    outcome = smoke("weight_aware_distillation", "digits-gap")
    assert outcome.status == "failed"
    assert "no unlabelled images" in outcome.error.message
