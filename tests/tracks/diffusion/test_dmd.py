"""Distribution matching: its sign, its size, and that it is the gradient of a divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.tracks.diffusion.blocks.dmd import (
    dmd_gradient,
    gradient_norm,
    kl_gradient,
    normalizer,
    predictions,
    pulled,
)
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp
from tests.helpers.denoisers import GaussianDenoiser, SmallDenoiser


def gaussian(mean, std=1.0, process=None):
    size = len(mean)
    return GaussianDenoiser(torch.tensor(mean).double(), std * torch.eye(size, dtype=torch.float64), process or Edm())


class Ring(Denoiser):
    """Four Gaussians on a circle, with unequal weights; the denoiser comes from the gradient of the log density."""

    def __init__(self, process):
        super().__init__()
        self.process, self.shape, self.channels = process, (2,), {}
        angles = torch.arange(4).double() * math.pi / 2 + 0.3
        self.means = 1.5 * torch.stack([angles.cos(), angles.sin()], dim=1)
        self.log_weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().log()

    def log_density(self, x, t):
        a, b = self.process.alpha(t).double(), self.process.sigma(t).double()
        variance = (a * 0.8) ** 2 + b**2
        distances = ((x[:, None] - a * self.means) ** 2).sum(-1) / (2 * variance)
        return (self.log_weights - distances).logsumexp(1) - math.log(2 * math.pi) - variance.log()

    def denoise(self, x, t, cond, features):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (score,) = torch.autograd.grad(self.log_density(x, t[0]).sum(), x)
        a, b = self.process.alpha(t[0]), self.process.sigma(t[0])
        return (x + b**2 * score).detach() / a


def quadrature(points: int, dims: int):
    """Nodes (points^dims, dims) and weights of a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    grid = torch.cartesian_prod(*[torch.from_numpy(nodes)] * dims)
    return grid, torch.cartesian_prod(*[torch.from_numpy(weights)] * dims).prod(1)


def test_x_moves_towards_the_teacher():
    """One Gaussian: generator N(3, 1), teacher N(0, 1), level s: D_fake - D_real = s^2 3 / (1 + s^2), and x falls."""
    teacher, critic = gaussian([0.0]), gaussian([3.0])
    x = torch.tensor([[2.5], [4.0]], dtype=torch.float64, requires_grad=True)
    t = torch.full((2,), 2.0).double()
    pair = predictions(teacher, critic, x, Condition.none(2), t, torch.randn(2, 1).double())
    gradient = dmd_gradient(x, pair.real, pair.fake, normalize=False)
    torch.testing.assert_close(gradient, torch.full((2, 1), 4 * 3 / 5).double())
    pulled(x, gradient).backward()
    torch.testing.assert_close(x.grad, gradient / 2)  # a mean over two entries
    moved = x.detach() - 0.1 * x.grad
    assert (moved < x.detach()).all()


@pytest.mark.parametrize(("process", "t"), [(Edm(), 0.8), (Flow(), 0.4), (Vp(), 0.35)])
def test_it_is_the_gradient_of_the_reverse_kl(process, t):
    """d KL(p_t || q_t) / d theta for a linear generator and four Gaussians, by quadrature on both ways.

    On one side the divergence itself, whose entropy is known, by automatic differentiation; on the other the gradient
    on the samples, with the exact critic, through the generator.
    """
    time = torch.tensor(t).double()
    a, b = process.alpha(time), process.sigma(time)
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([[0.9, 0.0], [0.35, 0.7]], dtype=torch.float64, requires_grad=True)
    ring = Ring(process)

    covariance = a**2 * factor @ factor.T + b**2 * torch.eye(2)
    z, weights = quadrature(60, 2)
    points = a * mean + z @ torch.linalg.cholesky(covariance).T
    divergence = -0.5 * torch.logdet(covariance) - (weights * ring.log_density(points, time)).sum()
    wanted = torch.autograd.grad(divergence, (mean, factor))

    nodes, weights = quadrature(20, 4)
    x = mean + nodes[:, :2] @ factor.T
    times = time.expand(len(x))
    critic = GaussianDenoiser(mean.detach(), factor.detach(), process)
    pair = predictions(ring, critic, x, Condition.none(len(x)), times, nodes[:, 2:])
    gradient = kl_gradient(process, pair.real, pair.fake, times)
    found = torch.autograd.grad((weights[:, None] * gradient * x).sum(), (mean, factor))
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)
    direction = dmd_gradient(x, pair.real, pair.fake, normalize=False)
    torch.testing.assert_close(gradient, (a / b) ** 2 * direction)


def test_descent_on_it_reaches_the_teacher():
    teacher, mean = gaussian([1.0, -1.0], 0.5), torch.tensor([3.0, 2.0], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([mean], lr=0.5)
    for _ in range(60):
        x = mean + 0.5 * torch.randn(64, 2, generator=generator, dtype=torch.float64)
        critic = GaussianDenoiser(mean.detach(), 0.5 * torch.eye(2, dtype=torch.float64), Edm())
        noise = torch.randn(64, 2, generator=generator, dtype=torch.float64)
        pair = predictions(teacher, critic, x, Condition.none(64), torch.ones(64).double(), noise)
        optimizer.zero_grad()
        pulled(x, dmd_gradient(x, pair.real, pair.fake, normalize=False)).backward()
        optimizer.step()
    torch.testing.assert_close(mean.detach(), torch.tensor([1.0, -1.0]).double(), atol=1e-3, rtol=0)


def test_the_normalizer_is_one_number_per_sample():
    x, real = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    fake = torch.randn(3, 1, 2, 2)
    factor = normalizer(x, real)
    assert factor.shape == (3, 1, 1, 1)
    torch.testing.assert_close(factor[1, 0, 0, 0], (x[1] - real[1]).abs().mean())
    gradient = dmd_gradient(x, real, fake)
    torch.testing.assert_close(gradient, (fake - real) / factor)
    far = dmd_gradient(10 * x, 10 * real, 10 * fake)
    torch.testing.assert_close(far, gradient)  # free of the scale
    assert torch.isfinite(dmd_gradient(x, x, fake)).all()
    weighted = dmd_gradient(x, real, fake, weight=torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(weighted, torch.tensor([0.0, 1.0, 2.0])[:, None, None, None] * gradient)


def test_the_loss_has_the_gradient_as_its_gradient():
    x, gradient = torch.randn(4, 3).double().requires_grad_(True), torch.randn(4, 3).double()
    loss = pulled(x, gradient)
    torch.testing.assert_close(loss, 0.5 * (gradient**2).mean())
    loss.backward()
    torch.testing.assert_close(x.grad, gradient / 12)
    torch.testing.assert_close(gradient_norm(gradient), gradient.norm(dim=1).mean())


def test_predictions_have_no_graph_and_only_the_teacher_is_guided():
    teacher, critic = SmallDenoiser(), SmallDenoiser(seed=1)
    cond = Condition.of_tokens(torch.tensor([1, 2, 3]))
    x = torch.randn(3, 2, requires_grad=True)
    t, noise = torch.tensor([0.5, 1.0, 2.0]), torch.randn(3, 2)
    pair = predictions(teacher, critic, x, cond, t, noise, guidance=2.0)
    assert not any(part.requires_grad for part in (pair.real, pair.fake, pair.noised))
    noised = x.detach() + t[:, None] * noise
    torch.testing.assert_close(pair.real, guided(teacher, noised, t, cond, 2.0).detach())
    torch.testing.assert_close(pair.fake, critic(noised, t, cond).detach())
    other = Condition.of_tokens(torch.tensor([3, 3, 3]))
    swapped = predictions(teacher, critic, x, cond, t, noise, real_cond=other)
    torch.testing.assert_close(swapped.real, teacher(noised, t, other).detach())
    torch.testing.assert_close(swapped.fake, pair.fake)
