"""Matching of means and gradients, and which real images stand for a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.tracks.dataset_distillation.blocks.choose import by_class, herding, nearest_to_centroids, random_rows
from kdbench.tracks.dataset_distillation.blocks.committee import groups, voting_weights
from kdbench.tracks.dataset_distillation.blocks.matching import class_means, distribution_loss, gradient_distance


def test_class_means():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    means = class_means(features, torch.tensor([0, 0, 2]), 3)
    assert means.tolist() == [[2, 0], [0, 0], [0, 5]]
    assert distribution_loss(means, means + 1) == 6


def test_the_distance_of_gradients_forgets_their_size():
    one = [torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    assert gradient_distance(one, [7 * g for g in one]) == pytest.approx(0, abs=1e-12)
    assert gradient_distance(one, [-g for g in one]) == pytest.approx(8, abs=1e-12)
    nothing = [torch.zeros_like(g) for g in one]
    assert gradient_distance(one, nothing) == 0


def test_rows_come_in_turns_of_classes():
    y = torch.tensor([0] * 5 + [1] * 5 + [2] * 5)
    rows = random_rows(y, 3, torch.Generator().manual_seed(0))
    assert y[rows].tolist() == [0, 1, 2] * 3
    assert len(set(rows.tolist())) == 9
    first = by_class(y, 2, lambda own, count: own[:count])
    assert first.tolist() == [0, 5, 10, 1, 6, 11]


def test_herding_follows_the_mean():
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    chosen = herding(features, 10)
    assert len(set(chosen.tolist())) == 10
    random = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:10]
    error = (features[chosen].mean(0) - features.mean(0)).norm()
    assert error < 0.5 * (features[random].mean(0) - features.mean(0)).norm()


def test_centroids_have_real_neighbours():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    features = torch.cat([c + 0.1 * torch.randn(n, 2, generator=generator) for c, n in zip(centres, (5, 20, 10))])
    chosen = nearest_to_centroids(features, 3, seed=0)
    assert [int(torch.cdist(features[k : k + 1], centres).argmin()) for k in chosen] == [1, 2, 0], "large ones first"
    same = nearest_to_centroids(torch.zeros(4, 2).index_fill(0, torch.tensor([0]), 1.0), 2, seed=0)
    assert len(set(same.tolist())) == 2


def test_votes_sum_to_one_and_follow_priors():
    weights = voting_weights([63.0, 65.3, 68.5, 67.6, 67.4], 5.0)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert max(weights) == weights[2]
    assert weights[1] / weights[0] == pytest.approx(np.exp(2.3 / 5))
    assert voting_weights([50.0] * 4, 5.0) == pytest.approx((0.25,) * 4)
    assert voting_weights([50.0], 5.0) == (1.0,)
    assert voting_weights([1000.0, 0.0], 10.0)[0] == pytest.approx(1)


def test_all_pairs_take_turns():
    rng = np.random.default_rng(0)
    pairs = groups(5, 2, 10, rng)
    assert len(set(pairs)) == 10
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len(groups(5, 2, 7, rng)) == 7
    assert groups(1, 2, 3, rng) == [(0,)] * 3
