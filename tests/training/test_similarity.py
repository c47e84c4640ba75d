"""Similarity of sources to a target: definitions by hand, bounds and invariances."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from kdbench.training.similarity import h_score, leep, one_hot, parc, row_distances, spearman

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), 5)
FEATURES = RNG.normal(size=(20, 6)) + 2 * np.eye(4, 6)[LABELS]


def test_distances_of_rows_are_one_minus_their_correlation():
    expected = (1 - np.corrcoef(FEATURES))[np.tril_indices(20, -1)]
    assert row_distances(FEATURES) == pytest.approx(expected)
    constant = np.vstack([np.ones(6), FEATURES[:1]])
    assert row_distances(constant) == pytest.approx([1.0])


def test_rank_correlation_agrees_with_scipy_also_for_ties():
    a, b = RNG.integers(5, size=30).astype(float), RNG.integers(3, size=30).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(a, np.ones(30)) == 0


def test_parc_is_the_rank_correlation_of_all_pairs():
    below = np.tril_indices(20, -1)
    expected = spearmanr((1 - np.corrcoef(FEATURES))[below], (1 - np.corrcoef(np.eye(4)[LABELS]))[below]).statistic
    assert parc(FEATURES, LABELS) == pytest.approx(expected)


def test_parc_of_the_labels_is_one_and_ignores_scale_and_offset():
    assert parc(one_hot(LABELS), LABELS) == pytest.approx(1)
    assert parc(3 * FEATURES + 7, LABELS) == pytest.approx(parc(FEATURES, LABELS))
    assert abs(parc(RNG.normal(size=(20, 6)), LABELS)) < parc(FEATURES, LABELS)


def test_leep_is_zero_for_the_labels_and_their_entropy_for_no_information():
    assert leep(one_hot(LABELS), LABELS) == pytest.approx(0)
    permuted = one_hot((LABELS + 1) % 4)  # other names of the classes say the same
    assert leep(permuted, LABELS) == pytest.approx(0)
    assert leep(np.full((20, 3), 1 / 3), LABELS) == pytest.approx(-np.log(4))


def test_leep_of_a_source_class_that_never_occurs_is_finite():
    probs = np.hstack([one_hot(LABELS), np.zeros((20, 1))])
    assert leep(probs, LABELS) == pytest.approx(0)


def test_h_score_of_the_labels_counts_classes_and_ignores_linear_maps():
    assert h_score(one_hot(LABELS), LABELS) == pytest.approx(3)
    rotated = FEATURES @ RNG.normal(size=(6, 6)) + 5
    assert h_score(rotated, LABELS) == pytest.approx(h_score(FEATURES, LABELS))
    assert 0 <= h_score(RNG.normal(size=(20, 6)), LABELS) < h_score(FEATURES, LABELS) <= 3
