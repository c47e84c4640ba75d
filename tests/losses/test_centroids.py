"""Class centroids and conditional mutual information: identities, limits, gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.losses.centroids import Centroids, class_centroids, conditional_mutual_information


def sample(b=40, c=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, c, generator=g, dtype=torch.float64), torch.randint(c, (b,), generator=g)


def entropy(p):
    return torch.special.entr(p).sum(-1)


def test_centroids_are_class_means():
    logits, y = sample()
    probs = F.softmax(logits, -1)
    q = class_centroids(probs, y)
    assert torch.allclose(q.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(q[2], probs[y == 2].mean(0))


def test_a_class_without_samples_is_uniform_and_unlabelled_samples_do_not_count():
    logits, y = sample()
    probs = F.softmax(logits, -1)
    y[y == 3] = -1
    q = class_centroids(probs, y)
    assert torch.allclose(q[3], torch.full((5,), 0.2, dtype=torch.float64))
    assert torch.allclose(q, class_centroids(probs[y >= 0], y[y >= 0]))


def test_information_is_a_difference_of_entropies():
    logits, y = sample()
    probs = F.softmax(logits, -1)
    share = F.one_hot(y, 5).double().mean(0)
    given_label = (share * entropy(class_centroids(probs, y))).sum()
    given_input = entropy(probs).mean()
    value = conditional_mutual_information(logits, y)
    assert value.item() == pytest.approx((given_label - given_input).item(), abs=1e-12)
    assert value > 0


def test_information_is_zero_exactly_where_outputs_are_constant_within_each_class():
    logits, y = sample()
    constant = logits[:5][y]
    assert conditional_mutual_information(constant, y).item() == pytest.approx(0, abs=1e-12)
    constant = constant.clone()
    constant[0, 1] += 0.1
    assert conditional_mutual_information(constant, y) > 1e-6


def test_other_centroids_add_their_divergence():
    # The mean of KL(p || q) is smallest at the class means.
    logits, y = sample()
    probs, other = F.softmax(logits, -1), F.softmax(sample(5, seed=1)[0], -1)
    own = class_centroids(probs, y)
    share = F.one_hot(y, 5).double().mean(0)
    extra = (share * F.kl_div(other.log(), own, reduction="none").sum(1)).sum()
    total = conditional_mutual_information(logits, y, other)
    assert total.item() == pytest.approx((conditional_mutual_information(logits, y) + extra).item(), abs=1e-12)


def test_centroids_are_constants_of_the_gradient():
    logits, y = sample()
    q = class_centroids(F.softmax(logits, -1), y)
    gradients = []
    for centroids in (None, q):
        z = logits.clone().requires_grad_()
        conditional_mutual_information(z, y, centroids).backward()
        gradients.append(z.grad)
    assert torch.allclose(*gradients)


def test_certain_outputs_and_missing_labels_are_finite():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    value = conditional_mutual_information(logits, torch.tensor([0, 0]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert bool(logits.grad.isfinite().all())
    assert conditional_mutual_information(logits, torch.tensor([-1, -1])) == 0


def test_following_moves_the_classes_that_occur():
    q = Centroids(torch.full((3, 3), 1 / 3))
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    q.follow(probs, torch.tensor([0, 0]), 0.9)
    assert torch.allclose(q.table[0], 0.9 / 3 + 0.1 * torch.tensor([0.5, 0.5, 0.0]))
    assert torch.allclose(q.table[1:], torch.full((2, 3), 1 / 3))
    q.follow(probs, torch.tensor([2, 2]))
    assert torch.allclose(q.table[2], torch.tensor([0.5, 0.5, 0.0]))
