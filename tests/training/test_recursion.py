"""Recursive distillation on the simplex: contraction, convergence from any start, the error floor, and controls."""

import pytest
import torch

from kdbench.training import simplex
from kdbench.training.recursion import exact_recursion, predicted_floor, random_points, sampled_recursion


def pairs(n=50, classes=10):
    generator = torch.Generator().manual_seed(0)
    return random_points(n, classes, generator), random_points(n, classes, generator)


@pytest.mark.parametrize("name", sorted(simplex.META_TEACHERS))
@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.9])
def test_anchored_chains_contract_and_converge_to_the_base(name, gamma):
    base, start = pairs()
    made = exact_recursion(simplex.META_TEACHERS[name], base, start, gamma, 20)
    assert made.violation <= 1e-10
    assert made.divergences.shape == (21, 50)
    assert made.rate() < 1
    longer = exact_recursion(simplex.META_TEACHERS[name], base, start, gamma, 150)
    assert longer.divergences[-1].max() < 1e-3 * longer.divergences[0].max()


def test_without_an_anchor_the_chain_stays_where_it_is():
    base, start = pairs()
    made = exact_recursion(simplex.linear_anchor, base, start, 1.0, 5)
    assert made.rate() == pytest.approx(1)
    torch.testing.assert_close(made.divergences[-1], made.divergences[0])


def test_a_chain_that_does_not_contract_is_found():
    def sharpen(base, students, gamma):
        return simplex.power(simplex.linear_anchor(base, students, gamma), 0.5)

    base, start = pairs()
    assert exact_recursion(sharpen, base, start, 0.3, 5).violation > 0.01


@pytest.mark.parametrize("gamma", [0.3, 0.9])
def test_noisy_students_stay_under_the_floor(gamma):
    base, start = pairs()
    assert sampled_recursion(base, start, gamma, 20, 30, torch.Generator().manual_seed(1)) <= 1e-10


def test_predicted_floor_is_the_geometric_sum():
    assert predicted_floor(0.5, 0.8, []) == 0.8
    assert predicted_floor(0.5, 0.8, [0.1]) == pytest.approx(0.5)
    assert predicted_floor(0.5, 0.8, [0.1] * 60) == pytest.approx(0.1 / (1 - 0.5))
    assert predicted_floor(1.0, 0.0, [0.1] * 4) == pytest.approx(0.4)  # without an anchor errors add up


def test_points_are_distributions_of_full_support():
    p = random_points(50, 30, torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64))
    assert (p > 0).all()
