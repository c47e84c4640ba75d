"""Distillation on pruned data: alpha, budgets, scores from runs of their own. Scores and ridge are tested apart."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench_methods.vision import data_pruning_kd as method

SHORT = {"runs": 2, "score_steps": 3}


def artifact(tmp_path, name):
    return tmp_path / "data_pruning_kd" / "artifacts" / name


def kept(tmp_path):
    return load_file(artifact(tmp_path, "kept.safetensors"))["rows"]


def test_alpha_falls_along_a_line():
    assert [method.auto_alpha(f) for f in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([1.0, 1.0, 0.75, 0.5])


def test_loss_mixes_labels_and_teacher():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 8, 5, generator=g)
    y = torch.randint(5, (8,), generator=g)
    assert set(method.student_loss(s, None, y, 0.0, 4.0)) == {"ce"}
    assert set(method.student_loss(s, t, y, 1.0, 4.0)) == {"kd"}
    terms = method.student_loss(s, t, y, 0.3, 4.0)
    assert terms["ce"].item() == pytest.approx(0.7 * cross_entropy(s, y).item())
    assert terms["kd"].item() == pytest.approx(0.3 * kd_kl(s, t, 4.0).item())


def test_the_linear_problem_matches_its_simulation():
    for keep in (0.1, 0.5, 1.0):
        report = method.ridge_report(np.random.default_rng(0), keep)
        assert report["ridge_simulation_gap"] < 0.1
        assert report["ridge_error"] <= report["ridge_error_without_teacher"] + 1e-12


def test_all_data_and_the_weight_of_kd_are_plain_distillation(smoke):
    outcome = smoke("data_pruning_kd", "prune", {"keep": 1.0, "alpha": 0.9})
    assert outcome.status == "ok", outcome.error
    assert outcome.metrics == smoke("kd", "prune").metrics


def test_steps_do_not_depend_on_the_fraction(smoke, tmp_path):
    outcome = smoke("data_pruning_kd", "prune-noisy", {"keep": 0.25})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert "aux_steps" not in outcome.cost
    assert len(kept(tmp_path)) == outcome.extra["kept_images"] == 30
    assert 0 <= outcome.extra["kept_wrong_labels"] <= 1


@pytest.mark.parametrize("score", ["grand", "forgetting", "memorization"])
def test_scores_come_from_short_runs_of_their_own(smoke, tmp_path, score):
    outcome = smoke("data_pruning_kd", "digits-gap", SHORT | {"score": score, "alpha": 0.0})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == 2 * 3
    assert "teacher_queries" not in outcome.cost  # neither scores nor labels alone ask the teacher
    saved = load_file(artifact(tmp_path, "kept.safetensors"))
    rest = torch.ones(80, dtype=torch.bool)
    rest[saved["rows"]] = False
    assert len(saved["rows"]) == 20
    assert saved["scores"][saved["rows"]].min() >= saved["scores"][rest].max()


def test_each_capacity_of_the_teacher_teaches_otherwise(smoke, tmp_path, monkeypatch):
    seen = []
    original = method.student_loss
    monkeypatch.setattr(
        method, "student_loss", lambda s, t, *rest: seen.append(float(t.square().sum())) or original(s, t, *rest)
    )
    for teacher in ("default", "equal", "small"):
        outcome = smoke("data_pruning_kd", "prune", {"teacher": teacher})
        assert outcome.status == "ok", outcome.error
        shutil.rmtree(tmp_path / "data_pruning_kd")
    assert len({seen[0], seen[6], seen[12]}) == 3


def test_an_unknown_teacher_is_named(smoke):
    outcome = smoke("data_pruning_kd", "prune", {"teacher": "smal"})
    assert outcome.status == "failed"
    assert "small" in outcome.error.message


def test_the_search_looks_at_validation_data_alone(smoke, tmp_path):
    outcome = smoke("data_pruning_kd", "prune", {"search": [1.0, 0.5]})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == 2 * 6
    tried = json.loads(artifact(tmp_path, "search.json").read_text())
    assert outcome.extra["alpha"] == max(sorted(map(float, tried)), key=lambda alpha: tried[f"{alpha}"])


def test_the_area_has_a_student_per_fraction(smoke, tmp_path):
    outcome = smoke("data_pruning_kd", "prune", {"keep": 0.5, "curve": [0.25, 1.0], "balanced": True})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == 2 * 6
    curve = json.loads(artifact(tmp_path, "curve.json").read_text())
    assert list(curve) == ["0.25", "0.5", "1"]
    assert min(curve.values()) <= outcome.extra["accuracy_area"] <= max(curve.values())
    assert curve["0.5"] == pytest.approx(outcome.metrics["top1"])


def test_fractions_outside_of_their_range_are_refused(smoke):
    outcome = smoke("data_pruning_kd", "prune", {"curve": [1.5]})
    assert outcome.status == "failed"
    assert "1.5" in outcome.error.message
