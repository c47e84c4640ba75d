"""CV-DD: priors that are measured, members that take turns, votes of two temperatures, labels by batch statistics."""

from __future__ import annotations

import pytest

from kdbench.tracks.dataset_distillation.blocks.committee import voting_weights
from kdbench_methods.dataset_distillation import cv_dd


def test_priors_are_measured_and_weigh_both_stages(make):
    task, params = make(), cv_dd.CvDdParams(prior_ipc=1)
    made = cv_dd.train(task, params)
    priors = [made.facts["prior_0"], made.facts["prior_1"]]
    assert all(0 <= prior <= 100 for prior in priors)
    assert made.labelling.weights == pytest.approx(voting_weights(priors, 10.0))
    assert made.labelling.statistics == "batch"
    assert made.labelling.parts == 2
    assert made.labelling.temperature == 20
    assert not made.labelling.squared
    per_index = task.budget.steps() // task.ipc
    assert task.budget.spent["steps"] == per_index * task.ipc
    assert task.budget.spent["aux_steps"] == 2 * (per_index + task.spec.evaluation.updates)
    task.check(made)


def test_equal_votes_need_no_priors(make):
    task = make()
    made = cv_dd.train(task, cv_dd.CvDdParams(voting="equal"))
    assert made.labelling.weights == pytest.approx((0.5, 0.5))
    assert "aux_steps" not in task.budget.spent


def test_single_members_are_those_of_the_seeds(make):
    members = [cv_dd.train(make(seed=seed), cv_dd.CvDdParams(voting="single")).labelling.members for seed in (0, 1)]
    assert members == [(0,), (1,)]


def test_the_best_member_works_alone(make, monkeypatch):
    monkeypatch.setattr(cv_dd, "measured_priors", lambda task, params: [10.0, 30.0])
    monkeypatch.setattr(cv_dd, "distil", lambda task, params, start, *rest: start)
    made = cv_dd.train(make(), cv_dd.CvDdParams(voting="best"))
    assert made.labelling.members == (1,)
    assert made.labelling.weights == (1.0,)


def test_random_votes_are_the_priors_of_others(make, monkeypatch):
    monkeypatch.setattr(cv_dd, "measured_priors", lambda task, params: [10.0, 30.0])
    monkeypatch.setattr(cv_dd, "distil", lambda task, params, start, *rest: start)
    found = [cv_dd.train(make(seed=seed), cv_dd.CvDdParams(voting="random")).labelling.weights[0] for seed in range(6)]
    assert len({round(weight, 6) for weight in found}) == 2


def test_the_outcome_tells_priors_and_the_gap(run):
    outcome = run("dataset_distillation/cv_dd", "digits", prior_ipc=1).outcome
    assert {"prior_0", "prior_1", "train_test_gap"} <= set(outcome.extra)
    assert outcome.metrics["label_floats"] > 0
