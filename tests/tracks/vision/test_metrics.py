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
