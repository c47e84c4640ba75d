"""Losses on position vectors: what they are 0 for, where gradients go, and what heads mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.losses.positions import nearness_logits, position_contrast, position_transfer, split_heads
from kdbench.training.positions import sinusoids


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["kl", "mse"])
@pytest.mark.parametrize("heads", [1, 4])
def test_transfer_is_zero_for_a_translation_equivariant_table(metric, heads):
    """Dot products of sinusoids depend on the distance alone, in each head that has whole pairs."""
    offsets = torch.tensor([[3, 40, 0, 17, 63], [1, 2, 8, 9, 31]])
    starts = torch.tensor([[64], [1500]])
    inside, outside = (sinusoids(places.double(), 16) for places in (offsets, offsets + starts))
    assert position_transfer(inside, outside, heads=heads, metric=metric, scale=5.0) < 1e-12
    bent = outside + 0.1 * random(*outside.shape).double()
    assert position_transfer(inside, bent, heads=heads, metric=metric, scale=5.0) > 1e-6


def test_transfer_averages_both_divergences_over_all_elements():
    inside, outside = random(2, 5, 8), random(2, 5, 8, seed=1)
    a, b = (torch.log_softmax(x @ x.transpose(1, 2), -1) for x in (inside, outside))
    both = F.kl_div(b, a, log_target=True, reduction="sum") + F.kl_div(a, b, log_target=True, reduction="sum")
    torch.testing.assert_close(position_transfer(inside, outside), both / (2 * 5 * 5))


def test_transfer_has_a_detached_teacher():
    inside, outside = random(2, 5, 8).requires_grad_(), random(2, 5, 8, seed=1).requires_grad_()
    position_transfer(inside, outside, heads=2).backward()
    assert inside.grad is None
    assert outside.grad.abs().sum() > 0


def test_heads_are_asked_alone():
    pivots, candidates, nearest = random(3, 8), random(3, 6, 8, seed=1), torch.tensor([0, 5, 2])
    parts = [
        F.cross_entropy((candidates[..., h : h + 4] * pivots[:, None, h : h + 4]).sum(-1), nearest) for h in (0, 4)
    ]
    torch.testing.assert_close(position_contrast(pivots, candidates, nearest, heads=2), sum(parts) / 2)
    assert nearness_logits(pivots, candidates, 2).shape == (3, 2, 6)
    assert split_heads(candidates, 2).shape == (3, 2, 6, 4)


def test_contrast_knows_nothing_of_equal_vectors():
    value = position_contrast(torch.ones(2, 4), torch.ones(2, 7, 4), torch.tensor([0, 3]))
    assert value.item() == pytest.approx(math.log(7))
