"""Gradients of several losses: flat vectors, cosines and the coefficient that aligns them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.training.gradients import balanced, conflict, cosine, flat_gradient


def test_a_flat_gradient_has_zeros_where_a_loss_does_not_reach() -> None:
    one, other = nn.Linear(3, 1, bias=False), nn.Linear(2, 1, bias=False)
    parameters = [*one.parameters(), *other.parameters()]
    loss = one(torch.tensor([1.0, 2.0, 3.0])).sum()
    assert flat_gradient(loss, parameters).tolist() == [1, 2, 3, 0, 0]
    assert flat_gradient(2 * loss, parameters).tolist() == [2, 4, 6, 0, 0]  # the graph is still there
    assert all(p.grad is None for p in parameters)


def test_terms_are_balanced_by_their_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    parts = balanced({"a": 100 * weight.sum(), "b": weight.prod()}, [weight])
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm().item() for part in parts.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_after_the_projection_gradients_do_not_conflict(seed: int) -> None:
    g, r = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    r = r if g @ r < 0 else -r
    projected = g - conflict(g, r) * r
    assert (projected @ r).abs() < 1e-12
    assert conflict(projected, r).abs() < 1e-12
    assert conflict(g, -r) == 0  # where they agree nothing changes


def test_the_coefficient_does_not_depend_on_what_it_is_taken_into() -> None:
    g, r = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    assert conflict(g, r) == -1
    assert conflict(g, 4 * r) == -0.25
    assert conflict(g, 0 * r) == 0


def test_cosines() -> None:
    a = torch.tensor([1.0, 0.0])
    assert cosine(a, -3 * a) == pytest.approx(-1)
    assert cosine(a, torch.tensor([0.0, 2.0])) == 0
    assert cosine(a, 0 * a) == 0
