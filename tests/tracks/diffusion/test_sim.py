"""Score implicit matching against closed forms."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.diffusion.blocks.sid import sid_loss
from kdbench.tracks.diffusion.blocks.sim import distance, sim_loss, slope
from tests.helpers.line import TEACHER, THETA, finite_differences, generator_at, points, samples

C = 1.0


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("s", [0.6, 1.0, 2.5])
def test_two_gaussians_apart_have_the_gradient_of_the_closed_form_at_every_sample(s):
    """Teacher N(0, 1), generator N(mu, 1): 2 mu / (1 + s^2)^2 for the squared norm."""
    mu = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = mu + normal(50, 1)
    noised = x + s * normal(50, 1, seed=1)
    real, fake = noised / (1 + s**2), (noised + s**2 * mu.detach()) / (1 + s**2)
    for row in sim_loss(x, real, fake, "l2", scale=s**-2):
        (found,) = torch.autograd.grad(row, mu, retain_graph=True)
        assert found.item() == pytest.approx(2 * mu.item() / (1 + s**2) ** 2, rel=1e-12)


@pytest.mark.parametrize("s", [0.6, 1.0, 2.5])
def test_and_of_the_pseudo_huber_distance(s):
    mu = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = mu + normal(50, 1)
    noised = x + s * normal(50, 1, seed=1)
    real, fake = noised / (1 + s**2), (noised + s**2 * mu.detach()) / (1 + s**2)
    y = mu.item() / (1 + s**2)
    for row in sim_loss(x, real, fake, "huber", c=C, scale=s**-2):
        (found,) = torch.autograd.grad(row, mu, retain_graph=True)
        assert found.item() == pytest.approx(y / (y**2 + C**2) ** 0.5 / (1 + s**2), rel=1e-12)


def gradient_of_the_loss(kind: str, s: float, scale: float, *, detach: str = "") -> torch.Tensor:
    theta = THETA.clone().requires_grad_()
    x, noise, weight = samples(theta)
    noised = x + s * noise
    real, fake = TEACHER.denoise(noised, 1.0, s), generator_at(theta).denoise(noised, 1.0, s)
    parts = {"x": x, "real": real, "fake": fake}
    if detach:
        parts[detach] = parts[detach].detach()
    loss = (weight * sim_loss(*parts.values(), kind, c=C, scale=scale)).sum()
    return torch.autograd.grad(loss, theta)[0]


def divergence(theta: torch.Tensor, kind: str, s: float, units: float) -> torch.Tensor:
    """E d(units (s_p - s_q)) at the points where theta was THETA."""
    x, weight = points(generator_at(THETA), s)
    gap = generator_at(theta).score(x, 1.0, s) - TEACHER.score(x, 1.0, s)
    return (weight * distance(units * gap, kind, C)).sum()


@pytest.mark.parametrize("kind", ["l2", "huber"])
@pytest.mark.parametrize("s", [0.6, 1.0, 2.5])
def test_the_gradient_is_that_of_the_divergence_with_points_that_stand_still(kind, s):
    wanted = finite_differences(lambda theta: divergence(theta, kind, s, 1.0), THETA)
    assert torch.allclose(gradient_of_the_loss(kind, s, s**-2), wanted, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_without_scale_the_distance_is_between_denoisers(kind):
    wanted = finite_differences(lambda theta: divergence(theta, kind, 0.8, 0.8**2), THETA)
    assert torch.allclose(gradient_of_the_loss(kind, 0.8, 1.0), wanted, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("detach", ["x", "real", "fake"])
def test_it_is_not_when_a_part_stops_the_gradient(detach):
    wanted = finite_differences(lambda theta: divergence(theta, "huber", 0.6, 1.0), THETA)
    assert not torch.allclose(gradient_of_the_loss("huber", 0.6, 0.6**-2, detach=detach), wanted, rtol=0.02)


def test_the_squared_norm_gives_score_identity_distillation():
    x, real, fake = (normal(5, 2, 3, seed=seed).requires_grad_() for seed in range(3))
    s = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    found = sim_loss(x, real, fake, "l2", scale=s**-2)
    wanted = 2 * s**-4 * sid_loss(x, real, fake, 1.0, normalize=False)
    assert torch.allclose(found, wanted, rtol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found.sum(), (x, real, fake)),
        torch.autograd.grad(wanted.sum(), (x, real, fake)),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_the_slope_is_the_gradient_of_the_distance_over_a_whole_sample(kind):
    y = normal(6, 2, 3).requires_grad_()
    (wanted,) = torch.autograd.grad(distance(y, kind, C).sum(), y)
    assert torch.allclose(slope(y.detach(), kind, C), wanted, rtol=1e-12)


def test_the_pseudo_huber_slope_gives_every_sample_a_vote_of_at_most_one():
    y = torch.cat([1e-3 * normal(3, 4, 4), 1e3 * normal(3, 4, 4, seed=1)])
    length = slope(y, "huber", C).flatten(1).norm(dim=1)
    assert (length <= 1).all()
    assert torch.allclose(length[3:], torch.ones(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(slope(y, "huber", C)[:3], y[:3] / C, rtol=1e-3)
    assert distance(torch.zeros(2, 5), "huber", C).tolist() == [0.0, 0.0]
