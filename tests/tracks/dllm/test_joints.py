"""Exact joint distributions: closed forms, total correlation, and a predictor without error."""

from __future__ import annotations

from itertools import permutations
from math import factorial, log

import pytest
import torch

from kdbench.tracks.dllm.blocks.joints import (
    CLOSED,
    ExactPredictor,
    Joint,
    deviation,
    ideal,
    replace_accuracy,
    shuffle_accuracy,
    simulated,
)

MASK = 7


def test_closed_forms_of_the_paper():
    assert shuffle_accuracy(6, 2) == pytest.approx(0.3125)
    assert replace_accuracy(6, 2) == pytest.approx(0.7335, abs=5e-5)
    assert shuffle_accuracy(4, 4) == pytest.approx(factorial(4) / 4**4)
    assert replace_accuracy(4, 4) == pytest.approx(0.75**3)
    for n in range(1, 8):
        assert shuffle_accuracy(n, 1) == pytest.approx(1.0)
        assert replace_accuracy(n, 1) == pytest.approx(1.0)
        assert replace_accuracy(n, n) == pytest.approx((1 - 1 / n) ** (n - 1))


@pytest.mark.parametrize("operation", sorted(CLOSED))
@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (4, 4), (5, 3), (6, 2)])
def test_simulations_with_exact_marginals_agree_with_the_closed_forms(operation, n, k):
    assert deviation(operation, n, k, 3000, torch.Generator().manual_seed(n + k)) < 3


def test_a_wrong_formula_is_found():
    found = simulated("shuffle", 6, 2, 3000, torch.Generator().manual_seed(0))
    wrong = shuffle_accuracy(6, 3)
    assert abs(found - wrong) > 10 * (wrong * (1 - wrong) / 3000) ** 0.5


def test_marginals_by_hand():
    joint = Joint.of(list(permutations(range(3))))
    free = joint.marginals(torch.tensor([[MASK, MASK, MASK], [0, MASK, MASK], [0, 2, MASK]]), MASK, 5)
    assert free[0, 0].tolist() == pytest.approx([1 / 3] * 3 + [0, 0])
    assert free[1, 1].tolist() == pytest.approx([0, 0.5, 0.5, 0, 0])
    assert free[2, 2].tolist() == pytest.approx([0, 1, 0, 0, 0])
    wrong = joint.marginals(torch.tensor([[0, 0, MASK]]), MASK, 5)
    assert wrong[0, 2].tolist() == pytest.approx([1 / 3] * 3 + [0, 0])


def test_total_correlation_by_hand():
    assert Joint.of([[1, 2, 3]]).total_correlation() == pytest.approx(0)
    assert Joint.of([[0, 0], [1, 1]]).total_correlation() == pytest.approx(log(2))
    assert Joint.of([[a, b] for a in range(2) for b in range(3)]).total_correlation() == pytest.approx(0)
    shuffle = ideal("shuffle", 4)
    assert shuffle.total_correlation() == pytest.approx(4 * log(4) - log(24))
    # with one item there three are left
    canvas = torch.tensor([2, MASK, MASK, MASK])
    assert shuffle.total_correlation(canvas, MASK) == pytest.approx(3 * log(3) - log(6))
    with pytest.raises(ValueError, match="no response agrees"):
        shuffle.total_correlation(torch.tensor([2, 2, MASK, MASK]), MASK)


def test_one_step_has_at_least_the_divergence_that_the_total_correlation_says():
    """KL of the joint and the product of its marginals, by enumeration."""
    joint = ideal("replace_random", 3)
    marginals = joint.marginals(torch.full((1, 3), MASK), MASK, 5)[0]
    count = len(joint.outputs)
    product = [float(marginals[torch.arange(3), row].prod()) for row in joint.outputs]
    divergence = sum(log(1 / count / value) / count for value in product)
    assert divergence == pytest.approx(joint.total_correlation())


def test_membership():
    joint = Joint.of([[1, 2], [3, 4]])
    assert joint.contains(torch.tensor([[1, 2], [1, 4], [3, 4], [5, 5]])).tolist() == [True, False, True, False]


def test_the_exact_predictor_says_the_marginals():
    joint = ideal("shuffle", 3)
    net = ExactPredictor(joint, mask=4, eos=5, vocabulary=6)
    ids = torch.tensor([[9 % 6, 4, 1, 4]])
    probs = net(ids).softmax(-1)[0, 1:]
    torch.testing.assert_close(probs[[0, 2], :3], torch.tensor([[0.5, 0, 0.5]] * 2, dtype=torch.float64))
