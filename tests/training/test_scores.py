"""Pruning scores against their definitions, the choice by them, and ridge regression on a part of the data."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.training.pruned_ridge import PrunedRidge, ridge_operator
from kdbench.training.scores import Forgetting, el2n, grand, memorization, prune


def test_el2n_is_the_norm_of_the_error():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    values = el2n(probs, torch.tensor([0, 0, 0]))
    assert values.tolist() == pytest.approx([0, math.sqrt(2), math.sqrt(0.25 + 2 * 0.0625)])


def test_grand_is_the_norm_of_the_gradient_of_the_last_layer():
    g = torch.Generator().manual_seed(0)
    layer, features, y = nn.Linear(6, 4), torch.randn(9, 6, generator=g), torch.randint(4, (9,), generator=g)
    expected = []
    for i in range(9):
        layer.zero_grad()
        F.cross_entropy(layer(features[i : i + 1]), y[i : i + 1]).backward()
        expected.append(float((layer.weight.grad.square().sum() + layer.bias.grad.square().sum()).sqrt()))
    with torch.no_grad():
        values = grand(F.softmax(layer(features), 1), y, features)
    assert values.tolist() == pytest.approx(expected, rel=1e-5)


def test_forgetting_counts_falls_and_puts_the_never_learned_last():
    seen = Forgetting(3)
    for answers in ([1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]):
        seen.see(torch.arange(3), torch.tensor(answers, dtype=torch.bool))
    assert seen.scores().tolist() == [2, 3, 0]
    again = Forgetting(3)
    again.load_state_dict(seen.state_dict())
    again.see(torch.tensor([2]), torch.tensor([False]))
    assert again.scores().tolist() == [2, 3, 1]


def test_memorization_compares_networks_with_and_without_a_sample():
    included = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    right = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    assert memorization(right, included).tolist() == pytest.approx([1, 0, 0, 0])


def test_what_is_kept():
    scores = torch.arange(10.0)
    assert prune(scores, 0.3).tolist() == [7, 8, 9]
    assert prune(scores, 0.3, "easiest").tolist() == [0, 1, 2]
    assert prune(scores, 0.2, "moderate").tolist() == [4, 5]
    assert prune(scores, 1.0).tolist() == list(range(10))
    assert len(prune(scores, 0.001)) == 1


def test_balanced_pruning_keeps_the_same_share_of_each_class():
    g = torch.Generator().manual_seed(0)
    labels, scores = torch.arange(60) % 3, torch.rand(60, generator=g)
    scores[labels == 1] += 5  # all the hard ones are of one class
    assert set(labels[prune(scores, 0.3)].tolist()) == {1}
    kept = prune(scores, 0.3, labels=labels)
    assert torch.bincount(labels[kept]).tolist() == [6, 6, 6]
    rest = torch.ones(60, dtype=torch.bool)
    rest[kept] = False
    for c in range(3):
        assert scores[kept][labels[kept] == c].min() > scores[rest & (labels == c)].max()


# --- ridge regression -------------------------------------------------------------------------------------------------


def problem(n=80, d=10):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(n, d)), rng.normal(size=d)
    return rng, x, w / np.linalg.norm(w)


def test_the_student_is_ridge_regression_on_mixed_targets():
    rng, x, w = problem()
    y = x @ w + rng.normal(size=80)
    rows, lam, alpha = np.arange(20), 0.7, 0.3
    teacher = np.linalg.solve(x.T @ x + lam * np.eye(10), x.T @ y)
    targets = (1 - alpha) * y[rows] + alpha * x[rows] @ teacher
    student = np.linalg.solve(x[rows].T @ x[rows] + lam * np.eye(10), x[rows].T @ targets)
    made = PrunedRidge.of(x, rows, np.arange(80), lam)
    assert made.operator(alpha) @ y == pytest.approx(student, abs=1e-12)
    assert made.operator(0.0) == pytest.approx(ridge_operator(x, rows, lam))


def test_the_expected_error_is_that_of_simulation():
    rng, x, w = problem()
    made = PrunedRidge.of(x, np.arange(20), np.arange(80), 0.7)
    noise = 1.5 * rng.normal(size=(80, 20000))
    simulated = np.square(made.operator(0.4) @ (x @ w)[:, None] + made.operator(0.4) @ noise - w[:, None]).sum(0)
    assert made.error(0.4, w, 1.5) == pytest.approx(simulated.mean(), rel=0.03)


def test_the_best_weight_is_the_minimum_of_the_error():
    _, x, w = problem()
    for sigma in (0.1, 1.0, 3.0):
        made = PrunedRidge.of(x, np.arange(20), np.arange(80), 0.7)
        grid = np.linspace(0, 1, 501)
        best = grid[np.argmin([made.error(alpha, w, sigma) for alpha in grid])]
        assert made.best_alpha(w, sigma) == pytest.approx(best, abs=0.002)


def test_a_teacher_of_all_data_helps_a_student_of_few_noisy_ones():
    _, x, w = problem()
    rows = np.arange(15)
    full, same = (PrunedRidge.of(x, rows, teacher, 0.1) for teacher in (np.arange(80), rows))
    best = full.error(full.best_alpha(w, 1.0), w, 1.0)
    assert best < 0.7 * full.error(0.0, w, 1.0)
    assert best < same.error(same.best_alpha(w, 1.0), w, 1.0)
    with pytest.raises(ValueError, match="positive"):
        PrunedRidge.of(x, rows, rows, 0.0)


def test_the_weight_of_the_teacher_falls_with_the_fraction():
    _, x, w = problem(400, 40)
    alphas = [PrunedRidge.of(x, np.arange(k), np.arange(400), 1.0).best_alpha(w, 2.0) for k in (40, 100, 200, 400)]
    assert alphas == sorted(alphas, reverse=True)
