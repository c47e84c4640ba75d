"""Subclasses within classes: sums that do not change, and a loss against their collapse."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.losses.subclasses import by_class, class_logits, joint_log_probs, own_subclass, subclass_contrast


def values(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_class_logits_sum_the_probabilities_within_each_class():
    logits = values(7, 12)
    summed = F.softmax(logits, -1).reshape(7, 3, 4).sum(-1)
    torch.testing.assert_close(F.softmax(class_logits(logits, 4), -1), summed)
    torch.testing.assert_close(class_logits(logits, 1), logits)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_joint_labels_sum_to_the_class_and_split_it_as_the_scores_say(temperature):
    logits, scores = values(7, 3), values(7, 3, 4, seed=1)
    joint = by_class(joint_log_probs(logits, scores, temperature).exp(), 4)
    expected = F.softmax(logits / temperature, -1)
    torch.testing.assert_close(joint.sum(-1), expected)
    torch.testing.assert_close(joint / joint.sum(-1, keepdim=True), F.softmax(scores, -1))


def test_a_subclass_that_is_not_there_gets_nothing():
    scores = values(2, 3, 4)
    scores[:, 1, 2:] = -math.inf
    joint = by_class(joint_log_probs(values(2, 3), scores), 4).exp()
    assert (joint[:, 1, 2:] == 0).all()
    torch.testing.assert_close(joint.sum((1, 2)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("subclasses", [0, 5])
def test_widths_that_do_not_fit_are_refused(subclasses):
    with pytest.raises(ValueError, match="subclasses"):
        by_class(torch.zeros(2, 12), subclasses)


def test_own_subclass_looks_at_the_named_class_only():
    assert own_subclass(torch.tensor([[[9.0, 1], [2, 3]], [[1, 2], [8, 0]]]), torch.tensor([1, 1])).tolist() == [1, 0]


def test_contrast_is_largest_where_all_rows_use_the_same_subclass():
    same, spread = torch.eye(6)[:1].expand(6, 6), torch.eye(6)
    assert subclass_contrast(same).item() == pytest.approx(math.log(6), rel=1e-6)
    assert subclass_contrast(spread).item() < 0.01
    torch.testing.assert_close(subclass_contrast(values(6, 8) + 5), subclass_contrast(values(6, 8)))
