"""Density-ratio filters: thresholds from private data alone, the stationarity of KuLSIF, and what each costs."""

import numpy as np
import pytest

from kdbench.training.density import Kulsif, kmeans_filter, kulsif_filter
from kdbench.training.kernels import rbf


def clouds(n=60, m=80, d=3, seed=0):
    """Two private clusters; foreign samples half from one of them, half from far away."""
    rng = np.random.default_rng(seed)
    private = np.concatenate([rng.normal(0, 0.3, (n // 2, d)), rng.normal(4, 0.3, (n - n // 2, d))])
    near, far = rng.normal(0, 0.3, (m // 2, d)), rng.normal(-6, 0.3, (m - m // 2, d))
    return private, np.concatenate([near, far])


@pytest.mark.parametrize(
    "fit",
    [
        lambda p, f: kmeans_filter(p, f, clusters=2, percentile=90, seed=0),
        lambda p, f: kulsif_filter(p, f, lam=0.1, percentile=90),
    ],
)
def test_filters_keep_what_looks_like_private_data(fit):
    private, foreign = clouds()
    mask = fit(private, foreign).mask
    assert mask[:40].mean() > 0.6
    assert not mask[40:].any()


@pytest.mark.parametrize("percentile", [50, 90])
def test_the_threshold_keeps_its_share_of_private_samples(percentile):
    private, _ = clouds(n=200)
    kept = kmeans_filter(private, private, clusters=2, percentile=percentile, seed=0).mask
    assert kept.mean() == pytest.approx(percentile / 100, abs=0.01)
    ratio = kulsif_filter(private, private, lam=0.1, percentile=percentile).mask
    assert ratio.mean() == pytest.approx(percentile / 100, abs=0.01)


def test_the_threshold_does_not_depend_on_the_foreign_set():
    private, foreign = clouds()
    both = kmeans_filter(private, foreign, clusters=2, percentile=90, seed=0).mask
    one = kmeans_filter(private, foreign[:5], clusters=2, percentile=90, seed=0).mask
    assert (both[:5] == one).all()


def test_more_centroids_than_samples_is_one_per_sample():
    private, _ = clouds(n=6)
    assert kmeans_filter(private, private, clusters=50, percentile=100, seed=0).mask.all()


def test_kulsif_is_stationary():
    # Of mean_u r^2 / 2 - mean_x r + lam / 2 |r|^2: with the expansion of r, beta_j = -r(u_j) / (lam m).
    private, foreign = clouds()
    fitted = Kulsif.fit(private, foreign, lam=0.2, gamma=0.5)
    np.testing.assert_allclose(fitted(foreign), -0.2 * len(foreign) * fitted.beta, rtol=1e-8, atol=1e-10)


def test_kulsif_minimises_its_objective():
    private, foreign = clouds()
    lam, gamma = 0.2, 0.5
    fitted = Kulsif.fit(private, foreign, lam=lam, gamma=gamma)
    points = np.concatenate([foreign, private])
    gram = rbf(points, points, gamma)
    weights = np.concatenate([fitted.beta, np.full(len(private), 1 / (lam * len(private)))])

    def objective(w):
        values = gram @ w
        m = len(foreign)
        return (values[:m] ** 2).mean() / 2 - values[m:].mean() + lam / 2 * w @ gram @ w

    rng = np.random.default_rng(0)
    assert all(objective(weights) < objective(weights + 0.05 * rng.normal(size=len(weights))) for _ in range(20))


def test_the_density_ratio_of_a_set_to_itself_is_one():
    private, _ = clouds()
    fitted = Kulsif.fit(private, private, lam=1e-6, gamma=0.5)
    np.testing.assert_allclose(fitted(private), 1, atol=0.02)


def test_kulsif_needs_a_ridge():
    with pytest.raises(ValueError, match="positive"):
        Kulsif.fit(*clouds(), lam=0.0)


def test_kmeans_is_five_times_cheaper_at_a_thousand_samples():
    rng = np.random.default_rng(0)
    private, foreign = rng.normal(size=(2, 1000, 20))
    near = kmeans_filter(private, foreign, clusters=6, percentile=90, seed=0)
    ratio = kulsif_filter(private, foreign, lam=0.1, percentile=90)
    assert 5 * near.multiply_adds < ratio.multiply_adds
    assert 5 * near.memory_bytes < ratio.memory_bytes
