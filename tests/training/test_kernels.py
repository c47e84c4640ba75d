"""Kernel self-distillation: the recursion against its closed forms, in float64."""

import numpy as np
import pytest

from kdbench.training import kernels


def problem(n=20, k=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, kernels.rbf(x, x, 1.0), rng.normal(size=(n, k))


def test_rbf_is_a_kernel():
    x, gram, _ = problem()
    assert np.allclose(np.diag(gram), 1)
    assert np.linalg.eigvalsh(gram).min() > -1e-12
    assert gram[0, 1] == pytest.approx(np.exp(-np.square(x[0] - x[1]).sum()))
    assert kernels.median_gamma(x) > 0


def test_first_step_is_ridge_regression():
    _, gram, y = problem()
    fit = gram @ kernels.self_distill(gram, y, 0.2, [])[0]
    assert np.allclose(fit, gram @ np.linalg.inv(gram + 0.2 * np.eye(20)) @ y, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("lam", [0.01, 0.2, 5.0])
def test_recursion_converges_to_ridge_with_lam_over_alpha(alpha, lam):
    _, gram, y = problem()
    last = kernels.self_distill(gram, y, lam, [alpha] * int(40 / alpha))[-1]
    closed = gram @ np.linalg.solve(gram + lam / alpha * np.eye(20), y)
    assert np.abs(gram @ last - closed).max() < 1e-8
    assert np.abs(gram @ kernels.limit_coefficients(gram, y, lam, alpha) - closed).max() < 1e-10
    # Coefficients, too, so that predictions at new inputs converge.
    assert np.abs(last - kernels.limit_coefficients(gram, y, lam, alpha)).max() < 1e-7


def test_without_labels_the_norm_falls_to_zero():
    _, gram, y = problem()
    norms = [np.linalg.norm(gram @ c) for c in kernels.self_distill(gram, y, 0.2, [0.0] * 2000)]
    assert (np.diff(norms) < 0).all()
    assert norms[-1] < 1e-3 * norms[0]
    assert np.abs(kernels.limit_coefficients(gram, y, 0.2, 0.0)).max() == 0


def test_labels_alone_make_every_step_equal():
    _, gram, y = problem()
    steps = kernels.self_distill(gram, y, 0.2, [1.0] * 3)
    assert all(np.allclose(step, steps[0]) for step in steps)


def test_recursion_is_diagonal_in_the_eigenbasis():
    _, gram, y = problem()
    alphas = [0.3, 0.0, 0.7, 1.0, 0.2]
    values, vectors = np.linalg.eigh(gram)
    factors = kernels.shrinkage(values, 0.2, alphas)
    for step, fit in enumerate(kernels.self_distill(gram, y, 0.2, alphas)):
        assert np.allclose(vectors.T @ (gram @ fit), factors[step][:, None] * (vectors.T @ y), atol=1e-10)


def test_sparsity_grows_with_steps_without_labels():
    _, gram, _ = problem()
    factors = kernels.shrinkage(np.linalg.eigvalsh(gram).clip(0), 0.2, [0.0] * 10)
    sparsity = [kernels.effective_sparsity(row) for row in factors]
    assert sparsity == sorted(sparsity)
    assert sparsity[-1] > sparsity[0]


def test_optimal_alpha_beats_a_grid():
    rng = np.random.default_rng(3)
    for _ in range(20):
        v, g, h = rng.normal(size=(3, 30, 2))
        best = kernels.optimal_alpha(v, g, h, clip=False)
        error = lambda a, v=v, g=g, h=h: np.square(v - a * g - (1 - a) * h).sum()  # noqa: E731
        grid = np.linspace(-3, 3, 2001)
        assert error(best) <= min(error(a) for a in grid) + 1e-12
        assert abs(best - grid[np.argmin([error(a) for a in grid])]) < 0.004
        assert kernels.optimal_alpha(v, g, h) == pytest.approx(np.clip(best, 0, 1))


def test_optimal_alpha_at_the_ends():
    g, h = np.ones((4, 1)), np.zeros((4, 1))
    assert kernels.optimal_alpha(g, g, h) == 1
    assert kernels.optimal_alpha(h, g, h) == 0
    assert kernels.optimal_alpha(np.full((4, 1), 7.0), g, h) == 1
    assert kernels.optimal_alpha(g, h, h) == 1


def test_a_ridge_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        kernels.ridge_coefficients(np.eye(2), np.ones((2, 1)), 0.0)
