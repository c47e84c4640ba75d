"""The Fréchet distance against closed forms, where covariances are singular, and against a general matrix root."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm

from kdbench.tracks.diffusion.evaluate.frechet import Moments, distance, frechet, root


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments(mean, covariance):
    return Moments(torch.tensor(mean).double(), torch.tensor(covariance).double(), 1000)


def test_independent_gaussians_have_the_distance_of_their_means_and_deviations():
    first = moments([0.0, 1.0], [[4.0, 0.0], [0.0, 1.0]])
    second = moments([3.0, 1.0], [[1.0, 0.0], [0.0, 9.0]])
    assert distance(first, second) == pytest.approx(9 + (2 - 1) ** 2 + (1 - 3) ** 2)


def test_it_is_a_symmetric_distance_that_turns_do_not_change():
    a, b = normal(50, 5), 2 * normal(60, 5, seed=1) + 1
    turn = torch.linalg.qr(normal(5, 5, seed=2)).Q
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a))
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b))


def test_it_agrees_with_the_general_matrix_root():
    a, b = normal(80, 4), normal(70, 4, seed=1) @ normal(4, 4, seed=2)
    first, second = Moments.of(a), Moments.of(b)
    cross = sqrtm((first.covariance @ second.covariance).numpy()).real.trace()
    expected = (first.mean - second.mean).square().sum() + (first.covariance + second.covariance).trace() - 2 * cross
    assert distance(first, second) == pytest.approx(float(expected))


def test_features_that_are_always_zero_change_nothing():
    a, b = normal(40, 3), normal(40, 3, seed=1)
    dead = torch.zeros(40, 6, dtype=torch.float64)
    assert frechet(torch.cat([a, dead], 1), torch.cat([b, dead], 1)) == pytest.approx(frechet(a, b))


def test_fewer_samples_than_features_give_a_finite_distance_of_zero_or_more():
    a, b = normal(5, 64), normal(6, 64, seed=1)
    assert 0 < frechet(a, b) < 1e3
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_moments_are_in_double_precision_and_unbiased():
    rows = normal(30, 4)
    found = Moments.of(rows.float())
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    torch.testing.assert_close(found.covariance, rows.T.cov(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="two or more"):
        Moments.of(rows[:1])


def test_a_root_squared_is_the_matrix():
    square = normal(6, 4) @ normal(6, 4).T
    torch.testing.assert_close(root(square) @ root(square), square)
    assert root(-torch.eye(2, dtype=torch.float64)).abs().max() == 0
