"""Sharpness of quadratics is known; measuring leaves the parameters as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.training.normalization import running_statistics_kept
from kdbench.training.sharpness import loss_increase, top_eigenvalue


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def quadratic(eigenvalues: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator(), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T, q


@pytest.mark.parametrize("eigenvalues", [[5.0, 1.0, 0.5, 0.1], [2.0, -7.0, 1.0, 0.0]])
def test_the_top_eigenvalue_is_the_largest_not_the_largest_in_size(eigenvalues: list[float]) -> None:
    h, _ = quadratic(eigenvalues)
    a, b = torch.randn(1, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64).requires_grad_()

    def loss() -> torch.Tensor:
        theta = torch.cat([a, b])
        return 0.5 * theta @ h @ theta

    assert top_eigenvalue(loss, [a, b], generator(), 1e-4) == pytest.approx(max(eigenvalues), rel=1e-3)


def test_the_hessian_of_a_network_agrees_with_the_full_one() -> None:
    x, y = torch.randn(20, 3, generator=generator()), torch.arange(20) % 2
    weight = torch.randn(2, 3, generator=generator()).requires_grad_()
    idle = torch.randn(4).requires_grad_()  # the loss does not depend on it

    def loss(w: torch.Tensor = weight) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(x @ w.T, y)

    full = torch.autograd.functional.hessian(loss, weight).reshape(6, 6)
    expected = np.linalg.eigvalsh(full.detach().numpy()).max()
    assert top_eigenvalue(loss, [weight, idle], generator()) == pytest.approx(expected, rel=2e-2)


def test_random_changes_of_a_bowl_raise_the_loss_by_their_squared_length() -> None:
    theta = torch.zeros(50)
    theta[0] = 3.0
    before = theta.clone()

    def loss() -> torch.Tensor:
        return (theta - before).square().sum()

    increase = loss_increase(loss, [theta], generator(), radius=0.1, draws=3)
    assert increase == pytest.approx(0.3**2, rel=1e-3)
    assert torch.equal(theta, before)


def test_running_statistics_are_kept_while_the_batch_normalises() -> None:
    norm = torch.nn.BatchNorm1d(3).train()
    x = 5 + torch.randn(8, 3)
    with running_statistics_kept(norm):
        assert norm(x).mean().abs() < 1e-5
    assert norm.running_mean.abs().max() == 0
    assert norm.momentum == 0.1
    norm(x)
    assert norm.running_mean.abs().max() > 0
