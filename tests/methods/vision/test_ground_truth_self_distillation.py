"""Self-distillation with ground truth: losses, budget, and the exact part. The recursion is tested with the kernels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdbench_methods.vision import ground_truth_self_distillation as method


def sample(b=8, c=5):
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, c, generator=g), torch.randn(b, c, generator=g), torch.randint(c, (b,), generator=g)


def test_generation_loss_mixes_labels_and_the_previous_outputs():
    s, previous, y = sample()
    truth = F.mse_loss(F.softmax(s, -1), F.one_hot(y, 5).float())
    teacher = F.mse_loss(F.softmax(s, -1), F.softmax(previous, -1))
    assert method.generation_loss(s, y, None, 1.0).item() == pytest.approx(truth.item())
    assert method.generation_loss(s, y, previous, 1.0).item() == pytest.approx(truth.item())
    assert method.generation_loss(s, y, previous, 0.0).item() == pytest.approx(teacher.item())
    mixed = 0.3 * truth + 0.7 * teacher
    assert method.generation_loss(s, y, previous, 0.3).item() == pytest.approx(mixed.item(), rel=1e-6)


def test_unlabelled_samples_follow_the_teacher_alone():
    s, previous, y = sample()
    assert method.generation_loss(s, torch.full_like(y, -1), previous, 1.0) == 0
    assert method.generation_loss(s, torch.full_like(y, -1), previous, 0.5) > 0


def test_the_penalty_is_a_sum_of_unsquared_norms():
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
        model.bias.fill_(-2.0)
    assert method.norm_penalty(model).item() == pytest.approx(5 + 2)


def test_nothing_but_the_penalty_pulls_at_the_weights():
    # The task's recipe decays weights for cross-entropy; beside averaged squared errors that would dominate.
    calls = []
    task = SimpleNamespace(
        student=lambda: torch.nn.Linear(2, 1),
        budget=SimpleNamespace(steps=lambda: 3),
        fit=lambda model, loss, **options: calls.append(options),
    )
    method.fit_generation(task, method.GroundTruthSelfDistillationParams(), "1", None, 1.0, final=True)
    assert calls[0]["weight_decay"] == 0
    assert (calls[0]["optimizer"], calls[0]["spend"], calls[0]["steps"]) == ("adam", "steps", 3)


def test_toy_is_exact_and_labels_keep_the_fit_from_vanishing():
    noise = np.random.default_rng(0).normal(0, 0.5, 11)
    train, truth = method.sinusoid(noise)
    values, _ = method.kernel_report(train, truth, truth, gamma=80.0, lam=0.2, alpha=0.25, steps=5)
    assert values["limit_error"] < 1e-8
    assert values["shrinkage_error"] < 1e-10
    assert values["grid_gap"] <= 1e-12
    assert values["norm_increase_without_labels"] == 0
    assert 0 < values["norm_left_without_labels"] < 1
    assert 0 <= values["alpha_star"] <= 1


def test_noise_free_labels_want_the_ground_truth():
    train, truth = method.sinusoid(np.zeros(11))
    values, _ = method.kernel_report(train, truth, truth, gamma=80.0, lam=0.2, alpha=0.25, steps=5)
    assert values["alpha_star"] == 1
    assert values["mse_step1"] < values["mse_step5"] < values["mse_without_labels"]


def test_only_the_last_generation_spends_steps(smoke):
    outcome = smoke("ground_truth_self_distillation", "digits-selfdistill", {"generations": 3})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 2 * 6
    assert "teacher_queries" not in outcome.cost
    assert outcome.extra["kernel_limit_error"] < 1e-8
    assert outcome.extra["toy_limit_error"] < 1e-8


def test_the_estimate_trains_two_more_networks_per_generation(smoke, tmp_path):
    outcome = smoke("ground_truth_self_distillation", "digits-selfdistill", {"generations": 2, "alpha": None})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] == (1 + 2) * 6
    curve = (tmp_path / "ground_truth_self_distillation" / "curve.jsonl").read_text()
    assert '"alpha"' in curve


def test_generations_start_from_different_networks(smoke, monkeypatch):
    starts = []
    original = method.norm_penalty
    monkeypatch.setattr(method, "norm_penalty", lambda model: starts.append(model) or original(model))
    assert smoke("ground_truth_self_distillation", "digits-selfdistill", {"generations": 3}).status == "ok"
    assert len({id(model) for model in starts}) == 3
