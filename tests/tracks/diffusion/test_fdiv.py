"""f-divergences: their gradient, and their expansion over noise levels, against closed forms."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.fdiv import DIVERGENCES, divergence, expanded_loss, moved_loss, sample_weights
from kdbench.tracks.diffusion.blocks.sid import omega, sid_loss
from tests.helpers.line import (
    TEACHER,
    THETA,
    finite_differences,
    generator_at,
    interval_nodes,
    points,
    ratio,
    samples,
)

R = torch.linspace(0.1, 6, 40, dtype=torch.float64)
S = 0.6
"""A noise level."""
NAMES = sorted(DIVERGENCES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivative(function):
    """The derivative of an elementwise function, itself a function that can be derived."""

    def derived(r: torch.Tensor) -> torch.Tensor:
        at = r if r.requires_grad else r.clone().requires_grad_()
        total = function(at).sum()
        if not total.requires_grad:
            return torch.zeros_like(at)
        return torch.autograd.grad(total, at, create_graph=True, materialize_grads=True)[0]

    return derived


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_and_its_derivatives_belong_to_f(name):
    found = DIVERGENCES[name]
    curvature = derivative(derivative(found.f))(R)
    assert torch.allclose(found.h(R), R**2 * curvature, rtol=1e-10)
    assert (curvature > 0).all()
    assert found.f(torch.ones(1)).abs().item() < 1e-6
    assert torch.allclose(found.slope(R), derivative(found.h)(R), rtol=1e-10)
    assert torch.allclose(found.bend(R), derivative(found.slope)(R), rtol=1e-10)
    assert found.constant == (name == "rkl")


def test_the_table_of_weights():
    named = {
        "rkl": torch.ones_like(R),
        "kl": R,
        "js": R / (R + 1),
        "sh": R.sqrt(),
        "jf": 1 + R,
        "sf": 1 / (1 + R),
        "neyman": 1 / R,
        "chi2": 2 * R**2,
    }
    assert set(named) == set(DIVERGENCES)
    for name, wanted in named.items():
        assert torch.allclose(DIVERGENCES[name].h(R), wanted)
    assert torch.allclose(DIVERGENCES["js"].direct(R), 2 * R**2 / (R + 1) ** 3)
    assert torch.allclose(DIVERGENCES["chi2"].direct(R), -4 * R**2)
    for name in ("rkl", "kl", "jf"):
        assert not DIVERGENCES[name].direct(R).any()


def value(name: str, theta: torch.Tensor, s: float) -> torch.Tensor:
    """D_f at noise level s."""
    p = generator_at(theta)
    x, weight = points(p, s, 160)
    return (weight * DIVERGENCES[name].f(ratio(p, x, s))).sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_weighted_difference_of_scores(name):
    theta = THETA.clone().requires_grad_()
    p = generator_at(theta)
    x, noise, weight = samples(theta)
    noised = x + S * noise
    at = noised.detach()
    gap = p.score(at, 1.0, S) - TEACHER.score(at, 1.0, S)
    h = DIVERGENCES[name].h(ratio(p, at, S))
    found = torch.autograd.grad((weight * h * (gap * noised)[:, 0]).sum(), theta, retain_graph=True)[0]
    wanted = finite_differences(lambda where: value(name, where, S), THETA)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8)
    unweighted = torch.autograd.grad((weight * (gap * x)[:, 0]).sum(), theta)[0]
    assert torch.allclose(unweighted, wanted, rtol=0.02) == (name == "rkl")


@pytest.mark.parametrize("name", NAMES)
def test_a_divergence_is_the_integral_of_weighted_squared_differences_over_noise_levels(name):
    p = generator_at(THETA)
    inverse, share = interval_nodes(0.0, 1 / S**2, 30)  # of 1 / s^2, in which the integrand is smooth up to no signal
    total = torch.zeros((), dtype=torch.float64)
    for u, width in zip(inverse, share, strict=True):
        s = float(u) ** -0.5
        x, weight = points(p, s, 60)
        gap = p.score(x, 1.0, s) - TEACHER.score(x, 1.0, s)
        total += width * s**4 * 0.5 * (weight * DIVERGENCES[name].h(ratio(p, x, s)) * gap[:, 0] ** 2).sum()
    assert total.item() == pytest.approx(value(name, THETA, S).item(), rel=1e-5)


def integrand(name: str, theta: torch.Tensor, s: float) -> torch.Tensor:
    p = generator_at(theta)
    x, weight = points(p, s, 160)
    gap = p.score(x, 1.0, s) - TEACHER.score(x, 1.0, s)
    return 0.5 * (weight * DIVERGENCES[name].h(ratio(p, x, s)) * gap[:, 0] ** 2).sum()


def three_parts(name: str, s: float) -> list[torch.Tensor]:
    """Gradients of the parts; in that of score implicit matching the weight moves along, too."""
    theta = THETA.clone().requires_grad_()
    p, kind = generator_at(theta), DIVERGENCES[name]
    x, noise, weight = samples(theta)
    noised = x + s * noise
    real, fake, r = TEACHER.denoise(noised, 1.0, s), p.denoise(noised, 1.0, s), ratio(p, noised, s)
    level = torch.full_like(r, s).detach()
    plain = sid_loss(x, real, fake, normalize=False)
    both = expanded_loss(kind, x, real, fake, r, level=level, normalize=False)
    implicit, direct = kind.h(r) * plain, both - kind.h(r).detach() * plain
    losses = (implicit, direct, moved_loss(kind, real, fake, r))
    return [torch.autograd.grad((weight * s**-4 * loss).sum(), theta, retain_graph=True)[0] for loss in losses]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_level_has_three_parts(name):
    wanted = finite_differences(lambda theta: integrand(name, theta, 1.0), THETA)
    parts = three_parts(name, 1.0)
    assert torch.allclose(sum(parts), wanted, rtol=1e-6, atol=1e-9)


def test_none_of_them_can_be_left_out():
    wanted = finite_differences(lambda theta: integrand("js", theta, 1.0), THETA)
    for missing in three_parts("js", 1.0):
        assert not torch.allclose(sum(three_parts("js", 1.0)) - missing, wanted, rtol=1e-3)


def test_reverse_kl_is_score_identity_distillation_bit_for_bit():
    x, real, fake = (normal(6, 2, 4, seed=seed).float().requires_grad_() for seed in range(3))
    r = torch.rand(6, generator=torch.Generator().manual_seed(3)) + 0.2
    found, wanted = expanded_loss(DIVERGENCES["rkl"], x, real, fake, r), sid_loss(x, real, fake, 1.0)
    assert torch.equal(found, wanted)
    slopes = [torch.autograd.grad(loss.sum(), (x, real, fake)) for loss in (found, wanted)]
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))


def test_the_second_part_of_the_released_code_has_one_power_of_the_gap_and_no_omega():
    x, real, fake = (normal(6, 2, 4, seed=seed).requires_grad_() for seed in range(3))
    r = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.2
    second = expanded_loss(DIVERGENCES["js"], x, real, fake, r) - r / (1 + r) * sid_loss(x, real, fake)
    slopes = torch.autograd.grad(second.sum(), (x, real, fake), retain_graph=True)
    gap = (real - fake).detach()
    size = gap.flatten(1).norm(dim=1)
    weight = (2 * r**2 / (1 + r) ** 3 * size).view(-1, 1, 1)
    assert torch.allclose(slopes[0], weight * gap, atol=1e-12)
    level = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    other = expanded_loss(DIVERGENCES["js"], x, real, fake, r, level=level) - r / (1 + r) * sid_loss(x, real, fake)
    (slope,) = torch.autograd.grad(other.sum(), x)
    wanted = weight * gap * (size / (2 * level**2) / omega(x, real)).view(-1, 1, 1)
    assert torch.allclose(slope, wanted, atol=1e-12)


def test_the_ratio_gets_no_gradient():
    x, real, fake = (normal(6, 3, seed=seed).requires_grad_() for seed in range(3))
    for name in NAMES:
        r = torch.full((6,), 0.7, dtype=torch.float64, requires_grad=True)
        loss = expanded_loss(DIVERGENCES[name], x, real, fake, r) + moved_loss(DIVERGENCES[name], real, fake, r)
        assert torch.autograd.grad(loss.sum(), r, allow_unused=True) == (None,)
        assert not sample_weights(DIVERGENCES[name], r).requires_grad


def test_weights_of_samples_have_mean_one_and_those_of_reverse_kl_are_one():
    for name in NAMES:
        found = sample_weights(DIVERGENCES[name], R)
        assert found.mean().item() == pytest.approx(1, abs=1e-4)
        assert torch.allclose(found / found[0], DIVERGENCES[name].h(R) / DIVERGENCES[name].h(R)[0])
    assert torch.equal(sample_weights(DIVERGENCES["rkl"], R.float()), torch.ones(40))


def test_an_unknown_name_is_answered_with_those_there_are():
    assert divergence("js") is DIVERGENCES["js"]
    with pytest.raises(UsageError, match="no f-divergence 'jss'; did you mean 'js'"):
        divergence("jss")
