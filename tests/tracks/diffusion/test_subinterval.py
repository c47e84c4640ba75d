"""Score matching inside a part of the noise levels: exact on mixtures, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.tracks.diffusion.blocks.subinterval import (
    corrected_x0,
    empirical_x0,
    factors,
    importance_weight,
    mixed_noise,
    naive_bias,
    naive_x0,
    subinterval_loss,
    target_weight,
)
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp, spread

PLACES = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
"""Clean samples of the toy, with equal chances."""
CASES = [(Flow(), 0.5, 0.8), (Edm(), 0.6, 2.0), (Vp(), 0.2, 0.5)]
each = pytest.mark.parametrize(("process", "s", "t"), CASES, ids=["flow", "edm", "vp"])


def toy_x0(process, x, t):
    """E[x_0 | x_t] of the toy; ``x`` is (B, 1)."""
    a, b = (float(part(t)) for part in (process.alpha, process.sigma))
    return ((-((x - a * PLACES) ** 2) / (2 * b**2)).softmax(1) * PLACES).sum(1, keepdim=True)


def given(process, x, s, t):
    """Places of x_s (N, 1), the fresh noise that leads from each to ``x`` (B, N), and their chances (B, N) given x."""
    a_s, b_s = float(process.alpha(s)), float(process.sigma(s))
    places = torch.linspace(-a_s - 9 * b_s, 2 * a_s + 9 * b_s, 20001, dtype=torch.float64)[:, None]
    before = (-((places - a_s * PLACES) ** 2) / (2 * b_s**2)).logsumexp(1)
    a, b = (float(part) for part in factors(process, s, t, x))
    noise = (x - a * places.T) / b
    return places, noise, (before - noise**2 / 2).softmax(1)


@each
def test_the_target_is_the_clean_sample_in_the_mean(process, s, t):
    x = torch.linspace(-2, 3, 7, dtype=torch.float64)[:, None]
    places, noise, chances = given(process, x, s, t)
    mean = torch.stack(
        [
            (row * corrected_x0(process, places, n[:, None], s, t)[:, 0]).sum()
            for row, n in zip(chances, noise, strict=True)
        ]
    )
    torch.testing.assert_close(mean[:, None], toy_x0(process, x, t), atol=1e-9, rtol=0)


def test_on_a_line_it_is_the_velocity_of_the_paper():
    process, s, t = Flow(), 0.5, 0.8
    x, noise = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = process.velocity_from_x0(process.diffuse(x, noise, s, t), corrected_x0(process, x, noise, s, t), t)
    a_s, a_t, scale = 1 - s, 1 - t, math.sqrt(t**2 - ((1 - t) / (1 - s)) ** 2 * s**2)
    torch.testing.assert_close(v, (a_s**2 * t + a_t * s**2) / (a_s**2 * scale) * noise - x / a_s)


@each
def test_the_naive_target_is_biased_as_the_closed_form_says(process, s, t):
    x = torch.linspace(-2, 3, 7, dtype=torch.float64)[:, None]
    places, noise, chances = given(process, x, s, t)
    mean = (chances * (noise - places.T)).sum(1, keepdim=True)
    clean = toy_x0(process, x, t)
    bias = mean - process.velocity_from_x0(x, clean, t)
    torch.testing.assert_close(bias, naive_bias(process, x, clean, s, t), atol=1e-9, rtol=0)
    assert bias.abs().max() > 0.1


def test_the_bias_of_the_toy_is_a_quarter():
    process, s, t = Flow(), 0.5, 0.8
    generator = torch.Generator().manual_seed(0)
    x0 = PLACES[torch.randint(4, (4000, 1), generator=generator)]
    x = process.noised(x0, torch.randn(4000, 1, dtype=torch.float64, generator=generator), t)
    bias = naive_bias(process, x, toy_x0(process, x, t), s, t)
    assert bias.abs().mean() == pytest.approx(0.25, abs=0.05)


@each
def test_from_clean_samples_both_targets_are_the_sample(process, s, t):
    x, noise = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(corrected_x0(process, x, noise, 0.0, t), x)
    if isinstance(process, Flow):
        torch.testing.assert_close(naive_x0(process, x, noise, 0.0, t), x)


@each
def test_a_point_moved_and_diffused_has_the_mixed_noise(process, s, t):
    x0, implied, fresh = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    reached = process.diffuse(process.noised(x0, implied, s), fresh, s, t)
    torch.testing.assert_close(process.noised(x0, mixed_noise(process, implied, fresh, s, t), t), reached)


def test_importance_weights():
    process = Vp()
    fresh = torch.randn(6, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    other = torch.randn(6, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    mixed = mixed_noise(process, 2 * other, fresh, 0.3, 0.4)
    wanted = (-(mixed**2).mean(1) / 2).exp() / (-(fresh**2).mean(1) / 2).exp()
    torch.testing.assert_close(importance_weight(process, 2 * other, fresh, 0.3, 0.4), wanted)
    assert (importance_weight(process, 2 * other, fresh, 0.3, 0.4) < 0.7).all()  # too much noise counts less
    assert (importance_weight(process, 0.2 * other, fresh, 0.3, 0.4) > 1.1).all()
    torch.testing.assert_close(importance_weight(process, other, fresh, 0.0, 0.4), torch.ones(6, dtype=torch.float64))


def test_the_weight_is_clamped_and_the_same_for_all_processes():
    levels = torch.tensor([1.0001, 1.2, 3.0, 15.0], dtype=torch.float64)  # noise to signal, from 1 on
    x = torch.zeros(4, 2, dtype=torch.float64)
    found = [target_weight(process, process.time(1.0), process.time(levels), x) for process in (Flow(), Edm(), Vp())]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    b2 = levels / (1 + levels)
    b2 = b2**2 - ((1 - b2) / 0.5 * 0.5) ** 2  # of the line, from its time 1/2
    torch.testing.assert_close(found[0], b2 * (1 / b2).clamp(0, 10))
    assert found[0][0] < 0.01
    assert found[0][-1] == 1


def test_what_a_critic_of_known_samples_learns():
    """Samples of a mixture stand for it: its posterior mean, and the toy's exactly where the samples are its grid."""
    process, s, t = Flow(), 0.4, 0.7
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
    generator = torch.Generator().manual_seed(5)
    clean, _ = mixture.sample(20000, generator, dtype=torch.float64)
    samples = process.noised(clean, torch.randn(clean.shape, dtype=torch.float64, generator=generator), s)
    x = process.diffuse(samples[:50], torch.randn(50, 2, dtype=torch.float64, generator=generator), s, t)
    times = torch.full((50,), t, dtype=torch.float64)
    found = empirical_x0(process, samples, x, s, times)
    true = mixture.denoise(x, float(process.alpha(t)), float(process.sigma(t)))
    assert (found - true).abs().mean() < 0.05
    only = torch.zeros(50, 20000, dtype=torch.bool)
    only[:, 0] = True
    single = empirical_x0(process, samples, x, s, times, only)
    a, b = factors(process, s, t, x)
    torch.testing.assert_close(single, corrected_x0(process, samples[:1], (x - a * samples[:1]) / b, s, t))


class Linear(Denoiser):
    """x_0 = slope x + offset, at one time."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.slope = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.offset = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def denoise(self, x, t, cond, features):
        return self.slope * x + self.offset


@pytest.mark.parametrize("target", ["corrected", "naive"])
def test_a_critic_trained_inside_finds_the_denoiser_of_a_gaussian(target):
    """Of data N(1, 0.5^2) the denoiser is linear: least squares finds it with the corrected target alone."""
    process, s, t = Flow(), 0.5, 0.8
    generator = torch.Generator().manual_seed(6)
    clean, n_s, noise = torch.randn(3, 60000, 1, dtype=torch.float64, generator=generator)
    x = process.noised(1 + 0.5 * clean, n_s, s)
    critic, times = Linear(process), torch.full((len(x),), t, dtype=torch.float64)
    solver = torch.optim.LBFGS(critic.parameters(), line_search_fn="strong_wolfe", max_iter=30)

    def closure():
        solver.zero_grad()
        loss = subinterval_loss(critic, x, Condition.none(len(x)), s, times, noise, target=target)
        loss.backward()
        return loss

    solver.step(closure)
    gain = (1 - t) * 0.25 / ((1 - t) ** 2 * 0.25 + t**2)
    exact = torch.tensor([gain, 1 - gain * (1 - t)], dtype=torch.float64)
    found = torch.stack([critic.slope, critic.offset]).detach()
    error = (found - exact).abs().max()
    assert error < 0.03 if target == "corrected" else error > 0.3


def test_no_gradient_reaches_the_samples():
    process = Flow()
    critic = Linear(process)
    x = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    times = torch.full((4,), 0.8, dtype=torch.float64)
    subinterval_loss(critic, x, Condition.none(4), 0.5, times, torch.randn(4, 1, dtype=torch.float64)).backward()
    assert x.grad is None
    assert critic.slope.grad is not None


def test_diffusing_with_the_factors_is_the_process():
    process = Vp()
    x, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    s = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    t = s + 0.2
    a, b = factors(process, s, t, x)
    torch.testing.assert_close(a * x + b * noise, process.diffuse(x, noise, s, t))
    assert a.shape == b.shape == spread(s, x).shape
