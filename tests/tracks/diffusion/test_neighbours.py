"""Precision, recall and diversity on sets whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.tracks.diffusion.evaluate.neighbours import covered, diversity, precision_recall, radii, spread


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equal_sets_cover_each_other_and_distant_ones_do_not():
    real = normal(50, 3)
    assert precision_recall(real, real.clone()) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_a_generator_with_one_mode_of_two_is_precise_and_recalls_half():
    one, other = normal(200, 2), normal(200, 2, seed=1) + 50
    precision, recall = precision_recall(torch.cat([one, other]), normal(200, 2, seed=2))
    assert precision > 0.9
    assert 0.4 < recall <= 0.5
    precision, recall = precision_recall(one, torch.cat([normal(200, 2, seed=2), other]))
    assert 0.4 < precision <= 0.5
    assert recall > 0.9


def test_radii_reach_to_the_third_of_the_others():
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0]])
    assert radii(line, 3).tolist() == [6.0, 5.0, 3.0, 5.0, 9.0]
    assert radii(line, 1).tolist() == [1.0, 1.0, 2.0, 3.0, 4.0]
    for k in (0, 5):
        with pytest.raises(ValueError, match="neighbours"):
            radii(line, k)


def test_covered_agrees_with_every_pair_looked_at():
    points, features = normal(30, 4), 0.7 * normal(25, 4, seed=1)
    reach = radii(features.double(), 2)
    inside = [
        any(float((p - f).double().norm()) <= float(r) for f, r in zip(features, reach, strict=True)) for p in points
    ]
    assert 0 < sum(inside) < 30
    assert covered(points, features, 2) == pytest.approx(sum(inside) / 30)


def test_diversity_is_the_mean_over_groups_of_the_mean_over_pairs():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [9.0, 9.0]])
    assert spread(features[2:5]) == pytest.approx((1 + 2 + 1) / 3)
    groups = torch.tensor([0, 0, 5, 5, 5, 7])
    assert diversity(features, groups) == pytest.approx((5 + 4 / 3) / 2)
    assert math.isnan(diversity(features, torch.arange(6)))
    same = features[:1].expand(4, -1)
    assert diversity(same, torch.zeros(4, dtype=torch.long)) == 0
