"""Score identity distillation against closed forms."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.diffusion.blocks.sid import omega, sid_loss
from tests.helpers.line import TEACHER, THETA, finite_differences, generator_at, points, samples

LEVELS = (0.6, 1.0, 2.5)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_of_the_loss(s: float, *, detach_real: bool = False, detach_fake: bool = False) -> torch.Tensor:
    theta = THETA.clone().requires_grad_()
    x, noise, weight = samples(theta)
    noised = x + s * noise
    real, fake = TEACHER.denoise(noised, 1.0, s), generator_at(theta).denoise(noised, 1.0, s)
    real, fake = real.detach() if detach_real else real, fake.detach() if detach_fake else fake
    loss = (weight * sid_loss(x, real, fake, normalize=False)).sum()
    return torch.autograd.grad(loss, theta)[0]


def squared_distance_of_scores(theta: torch.Tensor, s: float) -> torch.Tensor:
    """E ||s_p - s_q||^2 at the points where theta was THETA."""
    x, weight = points(generator_at(THETA), s)
    return (weight * (generator_at(theta).score(x, 1.0, s) - TEACHER.score(x, 1.0, s))[:, 0] ** 2).sum()


@pytest.mark.parametrize("s", LEVELS)
def test_the_gradient_is_that_of_the_squared_distance_of_scores_at_points_that_stand_still(s):
    wanted = finite_differences(lambda theta: squared_distance_of_scores(theta, s), THETA) * s**4 / 2
    assert torch.allclose(gradient_of_the_loss(s), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wrong", [{"detach_real": True}, {"detach_fake": True}])
def test_it_is_not_when_a_network_stops_the_gradient(wrong):
    wanted = finite_differences(lambda theta: squared_distance_of_scores(theta, 0.6), THETA) * 0.6**4 / 2
    assert not torch.allclose(gradient_of_the_loss(0.6, **wrong), wanted, rtol=0.02)


@pytest.mark.parametrize("s", LEVELS)
def test_two_gaussians_apart_have_the_gradient_of_the_closed_form_at_every_sample(s):
    mu = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = mu + normal(50, 1)
    noised = x + s * normal(50, 1, seed=1)
    real, fake = noised / (1 + s**2), (noised + s**2 * mu.detach()) / (1 + s**2)
    for row in 2 * s**-4 * sid_loss(x, real, fake, normalize=False):
        (found,) = torch.autograd.grad(row, mu, retain_graph=True)
        assert found.item() == pytest.approx(2 * mu.item() / (1 + s**2) ** 2, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_alpha_subtracts_the_squared_gap(alpha):
    x, real, fake = (normal(5, 2, 3, seed=seed) for seed in range(3))
    found = sid_loss(x, real, fake, alpha, normalize=False)
    wanted = sid_loss(x, real, fake, normalize=False) - (alpha - 1) * ((real - fake) ** 2).sum((1, 2))
    assert torch.allclose(found, wanted, atol=1e-12)
    inner = ((real - x) - alpha * (real - fake)) * (real - fake)
    assert torch.allclose(found, inner.sum((1, 2)), atol=1e-12)


def test_omega_is_the_mean_distance_to_the_teacher_and_has_no_gradient():
    x, real, fake = (normal(4, 6, seed=seed).requires_grad_() for seed in range(3))
    found = omega(x, real)
    assert not found.requires_grad
    assert torch.allclose(found, (x - real).abs().mean(1))
    assert torch.allclose(sid_loss(x, real, fake) * found, sid_loss(x, real, fake, normalize=False))
    same = omega(x.detach(), x.detach())
    assert torch.allclose(same, torch.full_like(same, 1e-5))
