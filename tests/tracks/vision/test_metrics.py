"""Metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, log_loss

from kdbench.tracks.vision import metrics


def sample(seed: int, n: int = 200, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, c, generator=generator), torch.randint(c, (n,), generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_against_scikit_learn(seed: int) -> None:
    logits, y = sample(seed)
    assert metrics.nll(logits, y) == pytest.approx(log_loss(y, logits.double().softmax(1), labels=range(5)), rel=1e-5)
    assert metrics.macro_accuracy(logits, y) == pytest.approx(balanced_accuracy_score(y, logits.argmax(1)))
    assert metrics.topk_accuracy(logits, y, 1) == metrics.accuracy(logits, y)
    assert metrics.topk_accuracy(logits, y, 5) == 1


def test_classes_without_samples_do_not_count() -> None:
    logits = torch.eye(3)[[0, 0, 1]]
    y = torch.tensor([0, 1, 1])
    assert metrics.class_accuracies(logits, y)[:2].tolist() == [1, 0.5]
    assert metrics.class_accuracies(logits, y)[2].isnan()
    assert metrics.macro_accuracy(logits, y) == 0.75


def test_brier_limits() -> None:
    y = torch.tensor([0, 1])
    assert metrics.brier(torch.eye(2), y) == 0
    assert metrics.brier(torch.eye(2).flip(0), y) == 2
    assert metrics.brier(torch.full((2, 2), 0.5), y) == 0.5


def test_ece_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    y = torch.tensor([0, 0, 0, 1])
    assert metrics.ece(probs, y) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert metrics.ece(torch.eye(2), torch.tensor([0, 1])) == 0
    assert metrics.ece(torch.eye(2), torch.tensor([1, 0])) == 1


@pytest.mark.parametrize("measure", [metrics.ece, metrics.adaptive_ece])
def test_calibrated_predictions_have_little_error(measure: object) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(50_000, 4, generator=generator).softmax(1)
    y = torch.multinomial(probs, 1, generator=generator)[:, 0]
    assert measure(probs, y) < 0.01
    sharp = (probs.log() * 3).softmax(1)  # over-confident
    assert measure(sharp, y) > 0.15


def test_adaptive_bins_hold_equally_many() -> None:
    probs, y = sample(0)[0].softmax(1), sample(0)[1]
    one_bin = abs(probs.max(1).values.double().mean() - (probs.argmax(1) == y).double().mean()).item()
    assert metrics.adaptive_ece(probs, y, bins=1) == pytest.approx(one_bin)
    assert metrics.ece(probs, y, bins=1) == pytest.approx(one_bin)
    share, _, _ = metrics.reliability(probs, y)
    assert share.sum() == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_kl_to_the_teacher(seed: int) -> None:
    a, b = sample(seed)[0], sample(seed + 1)[0]
    assert metrics.kl_teacher(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.kl_teacher(a + 3, b - 5) == pytest.approx(metrics.kl_teacher(a, b), rel=1e-4)
    p, q = b.double().softmax(1), a.double().softmax(1)
    assert metrics.kl_teacher(a, b) == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert metrics.agreement(a, 2 * a + 1) == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 300]))
def test_cka_invariances(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.normal(size=(60, width)))
    b = torch.from_numpy(rng.normal(size=(60, 5)))
    rotation = torch.from_numpy(np.linalg.qr(rng.normal(size=(width, width)))[0])
    value = metrics.linear_cka(a, b)
    assert 0 <= value <= 1
    assert metrics.linear_cka(3 * a @ rotation + 1, b) == pytest.approx(value)
    assert metrics.linear_cka(b, a) == pytest.approx(value)
    assert metrics.linear_cka(a, 2 * a @ rotation) == pytest.approx(1)
    assert metrics.linear_cka(torch.ones(60, 3), b) == 0


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_optimal_temperature_undoes_a_scaling(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = metrics.optimal_temperature(factor * logits, y)
    assert found == pytest.approx(factor, rel=0.05)
    assert metrics.nll(factor * logits / found, y) <= metrics.nll(logits, y) + 1e-6


def test_the_optimal_temperature_stays_in_its_range() -> None:
    assert metrics.optimal_temperature(torch.eye(3), torch.arange(3)) == pytest.approx(0.05, rel=0.01)
    assert metrics.optimal_temperature(torch.eye(3), (torch.arange(3) + 1) % 3) == pytest.approx(20, rel=0.01)


def test_entropy_limits() -> None:
    assert metrics.mean_entropy(torch.zeros(3, 8)) == pytest.approx(np.log(8))
    assert metrics.mean_entropy(100 * torch.eye(3)) == pytest.approx(0, abs=1e-6)


def test_scatter_within_and_between_add_up_to_the_covariance() -> None:
    features, y = sample(0)
    within, between = metrics.scatter(features, y)
    np.testing.assert_allclose((within + between).numpy(), np.cov(features.double().numpy().T, bias=True), atol=1e-12)
    assert metrics.scatter_ratio(3 * features + 1, y) == pytest.approx(metrics.scatter_ratio(features, y), rel=1e-5)


def test_collapsed_classes_have_no_variability() -> None:
    means, y = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.arange(5).repeat(20)
    assert metrics.class_variability(means[y], y) == pytest.approx(0, abs=1e-9)
    noise = torch.randn(100, 7, generator=torch.Generator().manual_seed(1))
    small, large = (metrics.class_variability(means[y] + scale * noise, y) for scale in (0.1, 0.2))
    assert 0 < small < large
    assert metrics.class_variability(5 * (means[y] + 0.1 * noise), y) == pytest.approx(small, rel=1e-4)


def test_spread_of_norms() -> None:
    assert metrics.norm_spread(torch.eye(4)) == pytest.approx(0)
    assert metrics.norm_spread(torch.diag(torch.tensor([1.0, 3.0]))) == pytest.approx(0.5)
