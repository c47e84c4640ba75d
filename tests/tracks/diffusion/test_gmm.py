"""Mixtures against autograd, quadrature and the three processes."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.errors import JobError, UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp

PROCESSES = [Edm(), Flow(), Vp()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(dim: int = 2, seed: int = 0) -> Mixture:
    """Five components of unequal widths and weights in two classes."""
    g = generator(seed)
    means = 1.5 * torch.randn(5, dim, generator=g, dtype=torch.float64)
    stds = 0.2 + torch.rand(5, generator=g, dtype=torch.float64)
    return Mixture(means, stds, 0.2 + torch.rand(5, generator=g, dtype=torch.float64), [1, 2, 1, 1, 2])


def points(count: int, dim: int = 2, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(count, dim, generator=generator(seed), dtype=torch.float64)


def plane(low: float = -9.0, high: float = 9.0, count: int = 181) -> tuple[torch.Tensor, float]:
    """Points of an even grid (M, 2) and the area of a cell."""
    axis = torch.linspace(low, high, count, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("tokens", [None, [0, 1, 2, 1, 2, 0]])
def test_score_is_the_gradient_of_the_log_density(tokens):
    mixture, x = some(3), points(6, 3).requires_grad_()
    alpha, sigma = torch.rand(6, generator=generator(2)) + 0.1, torch.rand(6, generator=generator(3))
    tokens = None if tokens is None else torch.tensor(tokens)
    (wanted,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma, tokens).sum(), x)
    torch.testing.assert_close(mixture.score(x, alpha, sigma, tokens), wanted, rtol=0, atol=1e-8)


def test_density_and_posterior_mean_are_integrals_over_clean_points():
    mixture, x, (alpha, sigma) = some(), points(4), (0.7, 0.6)
    clean, cell = plane()
    for tokens in (None, torch.tensor([1, 2, 2, 1])):
        for row in range(len(x)):
            token = None if tokens is None else tokens[row].expand(len(clean))
            noise = -0.5 * ((x[row] - alpha * clean) / sigma).square().sum(1) - math.log(2 * math.pi * sigma**2)
            joint = (mixture.log_density(clean, tokens=token) + noise).exp() * cell
            given = None if tokens is None else tokens[row : row + 1]
            density = mixture.log_density(x[row : row + 1], alpha, sigma, given).exp()
            mean = mixture.denoise(x[row : row + 1], alpha, sigma, given)[0]
            assert float(density) == pytest.approx(float(joint.sum()), rel=1e-6)
            torch.testing.assert_close(mean, joint @ clean / joint.sum(), rtol=1e-6, atol=1e-6)


def test_denoiser_is_the_same_in_all_processes():
    mixture, level = some(), torch.tensor([0.05, 0.4, 1.0, 3.0, 12.0], dtype=torch.float64)
    y, cond = points(5), Condition.of_tokens(torch.tensor([0, 1, 2, 1, 2]))
    wanted = mixture.denoise(y, 1.0, level, cond.tokens[:, 0])
    for process in PROCESSES:
        t = process.time(level)
        x = process.alpha(t)[:, None] * y
        found = ExactDenoiser(mixture, process)(x, t, cond)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
        tweedie = process.score_from_x0(x, found, t)
        score = mixture.score(x, process.alpha(t), process.sigma(t), cond.tokens[:, 0])
        torch.testing.assert_close(tweedie, score, rtol=1e-8, atol=1e-8)


def test_ends_of_the_process():
    mixture, x = some(), points(4)
    of_class = mixture.of_class(2)
    everywhere = ExactDenoiser(mixture, Flow())(x, 1.0, Condition.of_tokens(torch.full((4,), 2)))
    torch.testing.assert_close(everywhere, of_class.mean.expand(4, 2))  # pure noise says nothing
    torch.testing.assert_close(mixture.denoise(x, 0.5, 0.0), x / 0.5)  # no noise: nothing to remove
    torch.testing.assert_close(mixture.at(0.3, 0.8).log_density(x), mixture.log_density(x, 0.3, 0.8))
    single = mixture.denoise(x.float(), 0.3, 0.8)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, mixture.denoise(x, 0.3, 0.8).float(), rtol=1e-4, atol=1e-5)


def test_a_class_is_the_mixture_of_its_components():
    mixture, x = some(), points(7)
    tokens = torch.tensor([1, 2, 1, 2, 0, 0, 1])
    alone = torch.stack([mixture.of_class(int(c)).log_density(x[n : n + 1])[0] for n, c in enumerate(tokens)])
    torch.testing.assert_close(mixture.log_density(x, tokens=tokens), alone)
    shares = mixture.class_log_probabilities(x, 0.6, 0.3).exp()
    torch.testing.assert_close(shares.sum(1), torch.ones(7).double())
    rest = mixture.responsibilities(x, 0.6, 0.3)[:, [1, 4]].sum(1)
    torch.testing.assert_close(shares[:, 1], rest)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_guidance_follows_the_tilted_density(w):
    mixture, x, tokens = some(), points(6).requires_grad_(), torch.tensor([1, 2, 1, 2, 1, 2])
    alpha, sigma = 0.8, 0.5
    density = mixture.guided_log_density(x, tokens, w, alpha, sigma)
    (gradient,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(mixture.guided_score(x, tokens, w, alpha, sigma), gradient, rtol=0, atol=1e-8)
    # The classifier's view: p(x) p(c|x)^w / p(c)^w.
    rows = torch.arange(6)
    given = mixture.class_log_probabilities(x, alpha, sigma)[rows, tokens - 1]
    classifier = mixture.log_density(x, alpha, sigma) + w * (given - mixture.class_weights.log()[tokens - 1])
    torch.testing.assert_close(density, classifier, rtol=0, atol=1e-9)
    process = Vp()
    t = process.time(sigma / alpha)
    x = (process.alpha(t) / alpha * x).detach()
    found = guided(ExactDenoiser(mixture, process), x, t, Condition.of_tokens(tokens), w)
    torch.testing.assert_close(found, mixture.guided_denoise(x, tokens, w, process.alpha(t), process.sigma(t)))


def test_tilted_mixture_is_the_normalised_product():
    mixture, direction, beta = some(), torch.tensor([1.2, -0.7], dtype=torch.float64), 0.8
    tilted, (x, cell) = mixture.tilted(direction, beta), plane(-14, 14, 281)
    raw = mixture.log_density(x) + x @ direction / beta
    total = (raw.exp() * cell).sum()
    assert float(mixture.log_partition(direction, beta)) == pytest.approx(float(total.log()), abs=1e-7)
    torch.testing.assert_close(tilted.log_density(x).exp(), raw.exp() / total, rtol=0, atol=1e-9)
    token = torch.full((len(x),), 2)
    raw = mixture.log_density(x, tokens=token) + x @ direction / beta
    torch.testing.assert_close(
        tilted.log_density(x, tokens=token).exp(), raw.exp() / (raw.exp() * cell).sum(), rtol=0, atol=1e-9
    )


def test_samples_have_the_moments_and_classes_asked_for():
    mixture, count = some(), 40_000
    x, chosen = mixture.sample(count, generator(), dtype=torch.float64)
    shares = torch.bincount(chosen, minlength=5) / count
    torch.testing.assert_close(shares.double(), mixture.weights, rtol=0, atol=0.01)
    torch.testing.assert_close(x.mean(0), mixture.mean, rtol=0, atol=0.04)
    assert math.sqrt(float(x.var(0).mean())) == pytest.approx(mixture.std, rel=0.02)
    tokens = torch.arange(count) % 2 + 1
    of_class, chosen = mixture.sample(count, generator(), tokens)
    assert (mixture.labels[chosen] == tokens).all()
    torch.testing.assert_close(of_class[1::2].double().mean(0), mixture.of_class(2).mean, rtol=0, atol=0.04)
    again, _ = mixture.sample(count, generator(), tokens)
    assert of_class.dtype == torch.float32
    assert torch.equal(of_class, again)


def test_gradients_reach_the_points_through_a_frozen_denoiser():
    model = ExactDenoiser(some(), Edm()).requires_grad_(False)
    x = points(3).requires_grad_()
    model(x, torch.tensor([0.2, 1.0, 4.0])).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()
    assert not list(model.parameters())


def test_wrong_mixtures_are_refused():
    with pytest.raises(UsageError, match="above 0"):
        Mixture([[0.0]], 0.0)
    with pytest.raises(UsageError, match="without gaps"):
        Mixture([[0.0], [1.0]], 1.0, labels=[1, 3])
    with pytest.raises(UsageError, match="as many weights"):
        Mixture([[0.0], [1.0]], 1.0, weights=[1.0])
    with pytest.raises(UsageError, match="shape"):
        some().score(points(3, 3))
    with pytest.raises(UsageError, match="coefficients"):
        some().tilted(torch.ones(3))
    with pytest.raises(UsageError, match="classes 1 to 2"):
        some().of_class(3)
    with pytest.raises(JobError, match="score_network"):
        ExactDenoiser(some(), Edm())(points(2), 1.0, features=True)
