"""Identities of the Plackett-Luce losses and of the rank statistics."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau

from kdbench.losses.ranking import (
    discordance,
    kendall_tau,
    label_first_order,
    plackett_luce_terms,
    position_weights,
    weighted_list_loss,
)

WEIGHTINGS = ("teacher", "uniform", "decreasing", "top")


def pair(b=8, c=6, seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    s, t = (scale * torch.randn(b, c, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t, torch.randint(c, (b,), generator=g)


def test_terms_are_the_negative_log_probability_of_the_ranking():
    s, t, y = pair(b=1, c=4)
    order = label_first_order(t, y)
    w, left, expected = s[0].exp(), s[0].exp().sum(), 1.0
    for k in order[0]:
        expected = expected * (w[k] / left).item()
        left = left - w[k]
    assert plackett_luce_terms(s, order).sum().item() == pytest.approx(-math.log(expected), rel=1e-9)


def test_probabilities_of_all_rankings_sum_to_one():
    s = pair(b=1, c=4)[0]
    orders = torch.tensor(list(itertools.permutations(range(4))))
    total = (-plackett_luce_terms(s.expand(len(orders), 4), orders).sum(-1)).exp().sum()
    assert total.item() == pytest.approx(1.0, rel=1e-9)


def test_label_is_first_and_the_rest_fall():
    _, t, y = pair(b=64, c=10)
    order = label_first_order(t, y)
    assert (order[:, 0] == y).all()
    assert (order.sort(-1).values == torch.arange(10)).all()
    rest = t.gather(-1, order)[:, 1:]
    assert (rest[:, :-1] >= rest[:, 1:]).all()


def test_a_wrong_teacher_keeps_its_low_weight_for_the_forced_label():
    t = torch.tensor([[5.0, 0.0, 1.0]])
    order = label_first_order(t, torch.tensor([1]))
    assert order.tolist() == [[1, 0, 2]]
    weights = position_weights(t, order)
    assert torch.allclose(weights, F.softmax(t, -1)[:, [1, 0, 2]])
    assert weights[0, 0] < weights[0, 1]


def test_weights_sum_to_one_and_carry_no_gradient():
    _, t, y = pair()
    t.requires_grad_(True)
    order = label_first_order(t, y)
    for weighting in WEIGHTINGS:
        weights = position_weights(t, order, weighting, 2.0)
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        assert not weights.requires_grad


def test_weight_on_the_first_rank_alone_is_cross_entropy():
    s, t, y = pair()
    assert weighted_list_loss(s, t, y, weighting="top").item() == pytest.approx(F.cross_entropy(s, y).item(), rel=1e-9)


def test_first_term_is_cross_entropy_times_the_teachers_probability_of_the_label():
    s, t, y = pair()
    order = label_first_order(t, y)
    first = (position_weights(t, order) * plackett_luce_terms(s, order))[:, 0]
    expected = F.softmax(t, -1).gather(-1, y[:, None])[:, 0] * F.cross_entropy(s, y, reduction="none")
    assert torch.allclose(first, expected, rtol=1e-9)


def test_decreasing_weights_are_those_of_position_aware_listmle():
    t, y = torch.randn(1, 5), torch.tensor([0])
    weights = position_weights(t, label_first_order(t, y), "decreasing")
    raw = torch.tensor([2.0 ** (5 - k) - 1 for k in range(1, 6)])
    assert torch.allclose(weights[0], raw / raw.sum())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_shift_invariance_in_both_networks(weighting):
    s, t, y = pair()
    loss = weighted_list_loss(s, t, y, weighting=weighting)
    shift = torch.randn(len(y), 1, dtype=torch.float64) * 10
    assert weighted_list_loss(s + shift, t, y, weighting=weighting).item() == pytest.approx(loss.item(), rel=1e-9)
    assert weighted_list_loss(s, t + shift, y, weighting=weighting).item() == pytest.approx(loss.item(), rel=1e-9)
    s.requires_grad_(True)
    (g,) = torch.autograd.grad(weighted_list_loss(s, t, y, weighting=weighting), s)
    assert g.sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_convexity_at_midpoints(weighting):
    for seed in range(20):
        a, t, y = pair(b=1, seed=seed)
        b = pair(b=1, seed=seed + 100)[0]
        f = lambda s, t=t, y=y: weighted_list_loss(s, t, y, weighting=weighting).item()  # noqa: E731
        assert f((a + b) / 2) <= (f(a) + f(b)) / 2 + 1e-12


def test_gradient_formula():
    # dL/ds_i = sum_{k <= pos(i)} a_k exp(s_i) / sum_{l >= k} exp(s_pi_l) - a_pos(i)
    s, t, y = pair(b=1)
    order = label_first_order(t, y)[0]
    a = position_weights(t, order[None])[0]
    w = s[0].exp()
    expected = torch.zeros(6, dtype=torch.float64)
    for position, i in enumerate(order):
        for k in range(position + 1):
            expected[i] += a[k] * w[i] / w[order[k:]].sum()
        expected[i] -= a[position]
    s.requires_grad_(True)
    (g,) = torch.autograd.grad(weighted_list_loss(s, t, y), s)
    assert torch.allclose(g[0], expected, atol=1e-12)


def test_stable_for_a_thousand_classes_in_float32():
    s, t, y = pair(b=4, c=1000, scale=30.0)
    for weighting in WEIGHTINGS:
        narrow = s.float().requires_grad_(True)
        loss = weighted_list_loss(narrow, t.float(), y, weighting=weighting)
        (g,) = torch.autograd.grad(loss, narrow)
        assert g.isfinite().all()
        assert loss.item() == pytest.approx(weighted_list_loss(s, t, y, weighting=weighting).item(), rel=1e-4)


def test_all_ranks_count():
    # Moving the class that the teacher ranks last but one changes the loss: the sum is not cut to the top.
    s, t, y = pair(b=1)
    worst = label_first_order(t, y)[0, -1]
    moved = s.clone()
    moved[0, worst] += 1
    assert abs(weighted_list_loss(s, t, y).item() - weighted_list_loss(moved, t, y).item()) > 1e-6


def test_kendall_tau_agrees_with_scipy():
    a, b, _ = pair(b=5, c=12)
    expected = [kendalltau(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert kendall_tau(a, b).tolist() == pytest.approx(expected)
    assert kendall_tau(a, a).tolist() == pytest.approx([1.0] * 5)
    assert kendall_tau(a, -a).tolist() == pytest.approx([-1.0] * 5)


def test_discordance_counts_pairs():
    values = torch.tensor([1.0, 3.0, 2.0, 3.0])
    correct = torch.tensor([True, True, False, False])
    # pairs (correct, wrong): (1, 2) no, (1, 3) no, (3, 2) yes, (3, 3) half
    assert discordance(values, correct) == pytest.approx(1.5 / 4)
    assert discordance(-values, correct) == pytest.approx(2.5 / 4)
    assert math.isnan(discordance(values, torch.ones(4, dtype=torch.bool)))
