"""Weights of sources: identities of the power, what a probe may see, and which sources there are."""

import json
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.vision.models import build
from kdbench_methods.vision import distill_weighted as method

SIMILARITIES = np.array([0.3, 0.05, method.FLOOR, 0.31])


def test_power_zero_is_uniform_and_a_large_power_is_the_nearest_source():
    assert method.source_weights(SIMILARITIES, 0.0) == pytest.approx(np.full(4, 0.25))
    nearest = np.eye(4)[3]
    assert method.source_weights(SIMILARITIES, np.inf) == pytest.approx(nearest)
    assert method.source_weights(SIMILARITIES, 1000.0) == pytest.approx(nearest, abs=1e-12)


def test_weights_are_powers_of_the_similarities():
    weights = method.source_weights(SIMILARITIES, 9.0)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] / weights[3] == pytest.approx((0.3 / 0.31) ** 9)
    assert method.source_weights(2 * SIMILARITIES, 9.0) == pytest.approx(weights)


def test_no_similarity_is_below_the_floor():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 6)
    opposed = np.eye(5)[(labels + 1 + np.tile(np.arange(6), 5) % 4) % 5] + 0.01 * rng.normal(size=(30, 5))
    for kind in ("parc", "leep", "cka", "h-score"):
        assert method.similarity_of(kind, opposed, np.full((30, 3), 1 / 3), labels) >= method.FLOOR
    assert method.similarity_of("parc", opposed, opposed, labels) == method.FLOOR


@pytest.mark.parametrize("kind", ["parc", "leep", "cka", "h-score"])
def test_every_measure_prefers_the_source_that_knows_the_labels(kind):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 8)
    good, bad = np.eye(5)[labels], np.eye(5)[rng.integers(5, size=40)]
    near, far = ((each + 0.05 * rng.random((40, 5))) for each in (good, bad))
    near, far = near / near.sum(1, keepdims=True), far / far.sum(1, keepdims=True)
    assert method.similarity_of(kind, near, near, labels) > method.similarity_of(kind, far, far, labels)


def test_all_sources_teach_and_irrelevant_ones_are_among_them(smoke, tmp_path):
    outcome = smoke("distill_weighted", "related", {"singles": 0.34})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 6 * 2
    table = json.loads((tmp_path / "distill_weighted" / "artifacts" / "sources.json").read_text())
    assert set(table["sources"]) == {"shape", "texture", "hue", "quadrant", "digits", "rotated"}
    assert sum(table["weight"]) == pytest.approx(1)
    assert len(table["single_top1"]) == 6
    assert outcome.extra["nearest_regret"] >= 0
    assert 1 <= outcome.extra["sources_in_use"] <= 6
    # each source looks at each training image once
    assert outcome.cost["teacher_queries"] == 6 * (30 * 2 + 60)


def test_choices_of_one_source_have_one_weight():
    task = SimpleNamespace(rng=lambda purpose: np.random.default_rng(0))
    nearest = method.DistillWeightedParams(choice="nearest")
    assert method.chosen_weights(task, nearest, SIMILARITIES).tolist() == [0, 0, 0, 1]
    drawn = method.chosen_weights(task, method.DistillWeightedParams(choice="random"), SIMILARITIES)
    assert sorted(drawn) == [0, 0, 0, 1]
    for params in (method.DistillWeightedParams(power=0.0), nearest):
        assert method.chosen_weights(task, params, SIMILARITIES[:1]).tolist() == [1]


def test_a_trained_start_gives_all_weights_but_the_classifier():
    student, trained = build("rn(4,1)", 30), build("rn(4,1)", 5)
    task = SimpleNamespace(student=lambda: deepcopy(student), teacher=lambda name: trained)
    made = method.start(task, method.DistillWeightedParams(init="small")).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(made.taps(x).penult, trained.eval().taps(x).penult)
    assert torch.equal(made.head().weight, student.head().weight)
    plain = method.start(task, method.DistillWeightedParams())
    assert torch.equal(plain.stem[0].weight, student.stem[0].weight)


def test_a_start_of_another_architecture_is_refused():
    task = SimpleNamespace(student=lambda: build("rn(4,1)", 30), teacher=lambda name: build("rn(6,1)", 30))
    with pytest.raises(UsageError, match=r"'small' is rn\(6,1\), but the student is rn\(4,1\)"):
        method.start(task, method.DistillWeightedParams(init="small"))


def test_labels_alone_from_a_trained_start_is_fine_tuning(smoke):
    outcome = smoke("distill_weighted", "related", {"supervised": 1.0, "init": "small", "singles": 0})
    assert outcome.status == "ok", outcome.error


def test_an_unknown_source_is_refused(smoke):
    outcome = smoke("distill_weighted", "related", {"sources": ["shapes"], "singles": 0})
    assert outcome.status == "failed"
    assert "no source 'shapes'" in outcome.error.message
