"""Losses of conditional computation: labels of gates, and the three terms on their choices."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdbench.losses import routing


def choices(counts, learners=4):
    """(B, T, M) numbers of learners as one-hot choices."""
    return F.one_hot(torch.tensor(counts), learners + 1).double()


def test_labels_stop_where_one_more_learner_does_not_pay():
    errors = torch.tensor(
        [
            [8.0, 4.0, 2.0, 1.0, 0.5],  # always worth it
            [8.0, 7.9, 1.0, 0.5, 0.2],  # the first one is not
            [8.0, 4.0, 3.9, 1.0, 0.5],  # the second one is not
            [8.0, 4.0, 2.0, 1.0, 0.9],  # the last one is not
        ]
    )
    assert routing.gate_labels(errors, 1.2).tolist() == [4, 0, 2, 4]
    assert routing.gate_labels(errors[None], 100.0).tolist() == [[0, 0, 0, 0]]


def test_used_share_weighs_modules_by_their_cost():
    some = choices([[[4, 0], [4, 0]]])
    assert routing.used_share(some, torch.tensor([1.0, 1.0])).item() == pytest.approx(0.5)
    assert routing.used_share(some, torch.tensor([3.0, 1.0])).item() == pytest.approx(0.75)
    assert routing.used_share(choices([[[4, 4]]]), torch.tensor([3.0, 1.0])).item() == 1


def test_entropy_is_0_for_one_choice_and_1_for_all_equally_often():
    assert routing.choice_entropy(choices([[[2], [2], [2]]])).item() == pytest.approx(0)
    assert routing.choice_entropy(choices([[[0], [1], [2], [3], [4]]])).item() == pytest.approx(1)
    half = routing.choice_entropy(choices([[[0], [1]]])).item()
    assert half == pytest.approx(math.log(2) / math.log(5))
    unused = choices([[[2], [2]]]).requires_grad_()
    routing.choice_entropy(unused).backward()
    assert unused.grad.isfinite().all()


def test_diversity_is_the_mean_distance_of_loads():
    same = choices([[[2], [2]], [[1], [3]]])
    assert routing.load_diversity(same).item() == pytest.approx(0)
    apart = choices([[[0], [0]], [[4], [4]]])
    assert routing.load_diversity(apart).item() == pytest.approx(2 * 0.5 * 4 / 5)  # half of the pairs are of an image
    assert routing.load_diversity(apart[:1]).item() == 0
