"""LELP: soft labels over pseudo-subclasses, what each target is and costs, and what evaluation says of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench_methods.llm.lelp import LelpParams, soft_labels


def same(first, second) -> bool:
    return first.outcome.metrics == second.outcome.metrics


@pytest.mark.parametrize(("temperature", "tau"), [(1.0, 1.0), (4.0, 0.5)])
def test_soft_labels_are_the_class_probability_times_the_share_of_the_signed_coordinate(temperature, tau):
    g = torch.Generator().manual_seed(0)
    logits, u = 3 * torch.randn(5, 2, generator=g), torch.randn(5, 2, 3, generator=g)
    params = LelpParams(temperature=temperature, tau_sub=tau)
    labels = soft_labels(logits, torch.cat([u, -u], -1), params)
    p = F.softmax(labels / temperature, -1).reshape(5, 2, 6)
    expected = F.softmax(logits / temperature, -1)
    torch.testing.assert_close(p.sum(-1), expected)
    up, down = torch.exp(u / tau), torch.exp(-u / tau)
    total = (up + down).sum(-1, keepdim=True)
    torch.testing.assert_close(p[..., :3], expected[..., None] * up / total)
    torch.testing.assert_close(p[..., 3:], expected[..., None] * down / total)


def test_without_subclasses_it_is_plain_distillation(run):
    assert same(run("lelp", "classify-reviews", target="classes"), run("kd_fkl", "classify-reviews"))


@pytest.mark.parametrize("task", ["classify-reviews", "classify-docstrings"])
def test_both_identities_hold_on_test_data(run, task):
    extra = run("lelp", task, temperature=2.0).outcome.extra
    assert extra["marginal_error"] < 1e-6
    assert extra["null_space_error"] < 1e-6
    assert 0 < extra["explained"] <= 1
    assert 0 <= extra["subclass_agreement"] <= 1
    assert ("topic_nmi_student" in extra) == (task == "classify-reviews")


def test_targets_teach_differently_and_are_metered(run):
    runs = {
        name: run("lelp", "classify-reviews", target=name, directions=2).outcome
        for name in ("pca", "random", "kmeans", "trained", "features", "classes")
    }
    assert len({outcome.metrics["nll"] for outcome in runs.values()}) == 6
    for name, outcome in runs.items():
        assert outcome.cost["steps"] == 4
        assert outcome.cost.get("aux_steps", 0) == (4 if name == "trained" else 0)
        with_subclasses = name not in ("features", "classes")
        assert ("topic_nmi_teacher" in outcome.extra) == with_subclasses
        if with_subclasses:  # one forward of the teacher for each row, once
            assert outcome.cost["teacher_queries"] == 64


def test_a_smaller_budget_of_data_is_all_that_the_teacher_is_asked_about(run):
    half = run("lelp", "classify-reviews", share=0.5).outcome
    assert half.cost["teacher_queries"] == pytest.approx(32, abs=1)
    assert half.extra["marginal_error"] < 1e-6


def test_hard_labels_train_the_summed_probabilities(run):
    hard, mixed = (run("lelp", "classify-reviews", kd_ratio=ratio) for ratio in (0.0, 0.5))
    assert set(hard.curve[0]) & {"kd", "ce"} == {"ce"}
    assert set(mixed.curve[0]) & {"kd", "ce"} == {"kd", "ce"}
    assert not same(hard, mixed)


def test_rotation_changes_the_directions_but_not_what_they_explain(run):
    turned, plain = (run("lelp", "classify-reviews", rotate=value).outcome for value in (True, False))
    assert turned.extra["explained"] == pytest.approx(plain.extra["explained"], rel=1e-6)
    assert turned.metrics != plain.metrics
