"""Bounds on mutual information: their two ends, what lies between, and bias and variance where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.losses.contrastive import cosines, info_nce
from kdbench.losses.information import (
    estimator_quality,
    gaussian_log_ratio,
    gaussian_pairs,
    halves_mi_alpha,
    mi_alpha,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_alpha_one_is_info_nce():
    t, s = scores(8, 5), scores(8, 5, seed=1)
    expected = math.log(8) - info_nce(s, t, 0.2)
    assert mi_alpha(cosines(t, s) / 0.2).item() == pytest.approx(expected.item())
    assert mi_alpha(cosines(t, s) / 0.2, scores(8, 3), 1.0).item() == pytest.approx(expected.item())


def test_alpha_zero_is_the_bound_of_nguyen_wainwright_and_jordan():
    inside, outside = scores(6, 6), scores(6, 9, seed=1)
    expected = inside.diagonal().mean() - (outside - 1).exp().mean()
    assert mi_alpha(inside, outside, 0.0).item() == pytest.approx(expected.item())


def test_the_formula_between_the_ends():
    inside, outside, alpha, a = scores(4, 4), scores(4, 3, seed=1), 0.3, 2.0
    total = 1.0
    for i in range(4):
        m = sum(math.exp(inside[j, i]) for j in range(4)) / 4
        total += (float(inside[i, i]) - math.log(alpha * m + (1 - alpha) * a)) / 4
    for i in range(3):
        m = sum(math.exp(outside[j, i]) for j in range(4)) / 4
        total -= m / (alpha * m + (1 - alpha) * a) / 3
    assert mi_alpha(inside, outside, alpha, baseline=a).item() == pytest.approx(total)


def test_info_nce_never_exceeds_log_k_and_the_others_can():
    for seed in range(20):
        perfect = torch.diag(torch.full((8,), 50.0)) + scores(8, 8, seed=seed)
        assert mi_alpha(perfect).item() <= math.log(8) + 1e-9
    best = torch.full((8, 8), -20.0).fill_diagonal_(10.0)
    assert mi_alpha(best, torch.full((8, 8), -20.0), 0.1).item() > math.log(8) + 1


def test_the_two_halves_are_outside_of_each_other():
    matrix = scores(7, 7)
    first = mi_alpha(matrix[:3, :3], matrix[:3, 3:], 0.5)
    second = mi_alpha(matrix[3:, 3:], matrix[3:, :3], 0.5)
    assert halves_mi_alpha(matrix, 0.5).item() == pytest.approx(((first + second) / 2).item())
    assert halves_mi_alpha(matrix).item() == pytest.approx(mi_alpha(matrix).item())


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_bound_has_finite_gradients_that_draw_pairs_together(alpha):
    matrix = scores(8, 8, scale=1.0).requires_grad_()
    halves_mi_alpha(matrix, alpha).backward()
    assert torch.isfinite(matrix.grad).all()
    others = matrix.grad - torch.diag(matrix.grad.diagonal())
    assert matrix.grad.diagonal().sum() > 0 > others.sum()


def test_what_cannot_be_estimated_is_said():
    with pytest.raises(ValueError, match="alpha is between"):
        mi_alpha(scores(3, 3), alpha=1.5)
    with pytest.raises(ValueError, match="outside of the batch"):
        mi_alpha(scores(3, 3), alpha=0.5)
    with pytest.raises(ValueError, match="two samples"):
        halves_mi_alpha(scores(1, 1), 0.5)


# --- where the truth is known -----------------------------------------------------------------------------------------


def test_gaussian_pairs_have_the_information_that_was_asked_for():
    t, s, rho = gaussian_pairs(20, 500, 3.0, 4, generator())
    assert -4 / 2 * math.log(1 - rho**2) == pytest.approx(3.0)
    assert (t * s).mean().item() == pytest.approx(rho, abs=0.02)
    assert s.var().item() == pytest.approx(1.0, abs=0.03)


def test_the_ratio_is_that_of_the_densities():
    t, s, rho = (
        part[0] if isinstance(part, torch.Tensor) else part for part in gaussian_pairs(1, 5, 1.0, 3, generator())
    )
    spread = math.sqrt(1 - rho**2)
    conditional = -(((s[None] - rho * t[:, None]) / spread).square() / 2).sum(-1) - 3 * math.log(spread)
    marginal = -(s.square() / 2).sum(-1)
    torch.testing.assert_close(gaussian_log_ratio(t, s, rho), conditional - marginal[None])


def test_bias_grows_and_variance_falls_with_alpha():
    """5 nats, and log K = 3.47: InfoNCE cannot say it, NWJ can but not reliably."""
    found = [estimator_quality(alpha, 5.0, generator(), batches=150) for alpha in (0.0, 0.1, 0.5, 1.0)]
    bias = [each["bias"] for each in found]
    deviation = [each["deviation"] for each in found]
    assert bias[0] > bias[1] > bias[2] > bias[3]
    assert deviation[0] > deviation[1] > deviation[2] > deviation[3]
    assert abs(bias[0]) < 0.3
    assert bias[3] < math.log(32) - 5
    assert found[3]["largest"] <= 0 < found[1]["largest"]


def test_little_information_is_estimated_well_by_all():
    for alpha in (0.0, 0.5, 1.0):
        assert abs(estimator_quality(alpha, 0.5, generator(), batches=60, dims=4)["bias"]) < 0.1
