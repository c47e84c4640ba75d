"""Prototypes: how they follow features, what aligns two sets of them, and what they say of a sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.losses.prototypes import (
    Prototypes,
    alignment_loss,
    distance_ratio,
    prototype_log_probs,
    reweighted,
    unit,
)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alignment_is_the_cross_entropy_of_the_right_class_from_both_sides():
    source, target = draws(4, 6), draws(4, 6, seed=1)
    scores = F.cosine_similarity(source[:, None], target[None], dim=-1) / 0.1
    right = torch.arange(4)
    expected = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
    torch.testing.assert_close(alignment_loss(source, target, torch.ones(4)), expected)
    torch.testing.assert_close(alignment_loss(target, source, torch.ones(4)), expected)  # symmetric
    torch.testing.assert_close(alignment_loss(3 * source, target / 5, torch.ones(4)), expected)  # of directions alone


def test_alignment_attracts_a_class_and_repels_the_others():
    source, target = draws(5, 8), draws(5, 8, seed=1).requires_grad_()
    before = alignment_loss(source, target, torch.ones(5))
    before.backward()
    moved = (target - 0.1 * target.grad).detach()
    assert alignment_loss(source, moved, torch.ones(5)) < before
    assert (
        distance_ratio(source, moved, torch.ones(5, dtype=torch.bool))["ratio"]
        < (distance_ratio(source, target.detach(), torch.ones(5, dtype=torch.bool))["ratio"])
    )
    apart = torch.eye(5)
    assert alignment_loss(apart, apart, torch.ones(5)) < 1e-3
    assert alignment_loss(apart, apart.roll(1, 0), torch.ones(5)) > 9


def test_a_class_without_weight_is_as_if_it_were_not_there():
    source, target = draws(4, 6), draws(4, 6, seed=1)
    weights = torch.tensor([0.0, 1, 1, 1])
    torch.testing.assert_close(
        alignment_loss(source, target, weights), alignment_loss(source[1:], target[1:], torch.ones(3))
    )
    assert alignment_loss(source, target, torch.zeros(4)) == 0
    light = alignment_loss(source, target, torch.tensor([0.1, 1, 1, 1]))
    assert light != alignment_loss(source, target, torch.ones(4))


def test_prototype_probabilities_are_a_softmax_of_squared_distances_on_the_sphere():
    features, prototypes = 7 * draws(6, 5), draws(3, 5, seed=1)
    known = torch.ones(3, dtype=torch.bool)
    squared = torch.cdist(unit(features), unit(prototypes)) ** 2
    expected = F.log_softmax(-squared / 0.2, -1)
    torch.testing.assert_close(prototype_log_probs(features, prototypes, known, 0.2), expected, atol=1e-4, rtol=1e-4)
    at_home = prototype_log_probs(prototypes, prototypes, known, 0.01).exp()
    torch.testing.assert_close(at_home, torch.eye(3), atol=1e-3, rtol=0)


def test_unknown_classes_are_as_likely_as_the_nearest_and_nothing_is_known_at_first():
    features, prototypes = draws(4, 5), draws(3, 5, seed=1)
    some = prototype_log_probs(features, prototypes, torch.tensor([True, False, True])).exp()
    torch.testing.assert_close(some[:, 1], some[:, [0, 2]].max(1).values)
    torch.testing.assert_close(some.sum(1), torch.ones(4))
    none = prototype_log_probs(features, prototypes, torch.zeros(3, dtype=torch.bool))
    teacher = F.log_softmax(draws(4, 3, seed=2), -1)
    torch.testing.assert_close(reweighted(teacher, none), teacher)


def test_reweighting_multiplies_and_normalises():
    p, w = (F.softmax(draws(5, 3, seed=seed), -1) for seed in (0, 1))
    expected = p * w / (p * w).sum(1, keepdim=True)
    torch.testing.assert_close(reweighted(p.log(), w.log()).exp(), expected)


def test_prototypes_are_the_moving_average_of_class_means():
    bank, decay = Prototypes(3, 4), 0.9
    first, labels = draws(6, 4), torch.tensor([0, 0, 1, -1, 1, 0])
    bank.follow(first, labels, decay)
    assert bank.known.tolist() == [True, True, False]
    means = torch.stack([unit(first)[labels == c].mean(0) for c in (0, 1)])
    torch.testing.assert_close(bank.table[:2], means)  # the first sample counts in full
    second = draws(2, 4, seed=1)
    bank.follow(second, torch.tensor([1, 2]), decay)
    torch.testing.assert_close(bank.table[0], means[0])
    torch.testing.assert_close(bank.table[1], decay * means[1] + (1 - decay) * unit(second)[0])
    torch.testing.assert_close(bank.table[2], unit(second)[1])


def test_gradients_reach_the_features_of_the_batch_whatever_the_decay():
    grads = []
    for decay in (0.0, 0.99):
        bank = Prototypes(2, 4)
        bank.follow(draws(4, 4), torch.tensor([0, 0, 1, 1]), decay)
        features = draws(3, 4, seed=1).requires_grad_()
        given = bank.follow(features, torch.tensor([0, 0, -1]), decay)
        torch.testing.assert_close(given.detach(), bank.table)
        (given * draws(2, 4, seed=2)).sum().backward()
        assert not features.grad[2].any()
        assert features.grad[0].any()
        grads.append(features.grad)
    torch.testing.assert_close(*grads)
    assert not bank.table.requires_grad


def test_distances_within_and_between_classes():
    source, every = torch.eye(3), torch.ones(3, dtype=torch.bool)
    assert distance_ratio(source, 2 * source, every) == pytest.approx({"same": 0.0, "different": 1.0, "ratio": 0.0})
    turned = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]])
    same, other = 1 - 1 / math.sqrt(2), (2 - 1 / math.sqrt(2)) / 2
    values = distance_ratio(source, turned, every)
    assert values == pytest.approx({"same": same, "different": other, "ratio": same / other})
    with pytest.raises(ValueError, match="two classes"):
        distance_ratio(source, source, torch.tensor([True, False, False]))


def test_training_by_the_alignment_brings_domains_together():
    """Two domains whose classes lie in other places, and a linear map that only the alignment trains."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 4, 8, generator=generator)
    labels = torch.arange(4).repeat(16)
    source, target = (part[labels] + 0.1 * torch.randn(64, 8, generator=generator) for part in centres)
    network = torch.nn.Linear(8, 6, bias=False)
    torch.nn.init.normal_(network.weight, generator=generator)
    first, second = Prototypes(4, 6), Prototypes(4, 6)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def ratio():
        with torch.no_grad():
            tables = [Prototypes(4, 6).follow(network(part), labels, 0.0) for part in (source, target)]
        return distance_ratio(*tables, torch.ones(4, dtype=torch.bool))["ratio"]

    before = ratio()
    for _ in range(150):
        optimizer.zero_grad()
        s, t = first.follow(network(source), labels, 0.9), second.follow(network(target), labels, 0.9)
        alignment_loss(s, t, torch.ones(4)).backward()
        optimizer.step()
    assert ratio() < 0.5 * before
