"""Optimal transport: marginals, small and large regularisation, and the discrete metric in linear time."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from kdbench.losses.transport import (
    block_transport_cost,
    discrete_transport_cost,
    event_l1_cost,
    l1_cost,
    sinkhorn,
    transport_cost,
)


def log_probs(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


Q, P = log_probs(12, 5).exp(), log_probs(12, 5, seed=1).exp()
COST = l1_cost(Q, P)


def test_costs_are_the_l1_distances_of_all_pairs():
    assert torch.allclose(COST, (Q[:, None] - P[None]).abs().sum(-1))
    assert l1_cost(Q.half(), P.half()).dtype == torch.float32


def test_costs_in_the_events_of_each_teacher_row():
    best, ids = P.topk(3)
    events = torch.cat([best, 1 - best.sum(-1, keepdim=True)], -1)
    cost = event_l1_cost(Q.log(), ids, (events.log() / 2).log_softmax(-1), 2.0)
    for i, j in ((0, 0), (3, 7), (11, 2)):
        mine = Q[i][ids[j]]
        mine = torch.cat([mine, 1 - mine.sum(0, keepdim=True)])
        softened = [part.sqrt() / part.sqrt().sum() for part in (mine, events[j])]
        assert cost[i, j].item() == pytest.approx((softened[0] - softened[1]).abs().sum().item(), abs=1e-5)


def test_blocks_are_transported_one_by_one():
    parts = [transport_cost(COST[i : i + 5, i : i + 5]) for i in range(0, 12, 5)]  # the last one is smaller
    assert block_transport_cost(COST, 5).item() == pytest.approx(torch.stack(parts).sum().item())
    assert block_transport_cost(COST, 1).item() == pytest.approx(COST.diagonal().sum().item())
    for size in (0, 12, 99):
        assert block_transport_cost(COST, size).item() == pytest.approx(transport_cost(COST).item())


def test_the_plan_is_that_of_alternating_normalisation_of_the_kernel():
    plan = (-COST / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    assert torch.allclose(sinkhorn(COST, 0.1, 20), plan, atol=1e-12)
    assert transport_cost(COST).item() == pytest.approx((plan * COST).sum().item())


def test_the_plan_has_its_marginals():
    plan = sinkhorn(COST, 0.5, 200)
    ones = torch.ones(12, dtype=torch.float64)
    assert torch.allclose(plan.sum(0), ones)
    assert torch.allclose(plan.sum(1), ones, atol=1e-6)
    rows, columns = log_probs(7, seed=2), log_probs(9, seed=3)
    rows = torch.cat([rows, torch.tensor([-math.inf])])  # an empty row
    plan = sinkhorn(torch.rand(8, 9, dtype=torch.float64), 0.5, 200, log_rows=rows, log_columns=columns)
    assert torch.allclose(plan.sum(0), columns.exp())
    assert torch.allclose(plan.sum(1), rows.exp(), atol=1e-6)


def test_batches_of_problems_are_solved_one_by_one():
    costs = torch.stack([COST, COST.T, COST.flip(0)])
    each = torch.stack([transport_cost(cost) for cost in costs])
    assert torch.allclose(transport_cost(costs), each)


def test_strong_regularisation_gives_the_uniform_plan_and_weak_the_best_assignment():
    assert torch.allclose(sinkhorn(COST, 1e4), torch.full_like(COST, 1 / 12), atol=1e-4)
    best = COST[linear_sum_assignment(COST.numpy())].sum().item()
    assert transport_cost(COST, 0.01, 1000).item() == pytest.approx(best, rel=0.02)


def test_kernels_that_underflow_in_float32_give_finite_values_and_gradients():
    eps = 1e-3
    assert ((-COST.float() / eps).exp().sum(1) == 0).any()  # what the plain iterations would divide by
    cost = COST.float().requires_grad_()
    value = transport_cost(cost, eps)
    value.backward()
    assert value.isfinite()
    assert cost.grad.isfinite().all()


def test_the_bias_of_a_set_to_itself_vanishes_with_the_regularisation():
    own = l1_cost(*[log_probs(16, 2, scale=1.0).exp()] * 2)
    costs = [transport_cost(own, eps, 200).item() / 16 for eps in (0.5, 0.1, 0.02, 1e-4)]
    assert costs == sorted(costs, reverse=True)
    assert costs[1] > 0.02
    assert costs[2] < costs[1] / 3
    assert costs[3] < 1e-3
    assert all(cost <= eps * math.log(16) for cost, eps in zip(costs, (0.5, 0.1, 0.02, 1e-4), strict=True))


def test_the_cost_does_not_depend_on_the_order_of_either_set():
    rows, columns = (torch.randperm(12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert transport_cost(COST[rows][:, columns]).item() == pytest.approx(transport_cost(COST).item(), rel=1e-12)


def test_gradients_through_costs_marginals_and_iterations():
    q = log_probs(4, 3, seed=4).exp().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transport_cost(l1_cost(x, P[:4, :3]), 0.1, 20), q)
    a = log_probs(4, 3, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discrete_transport_cost(x, log_probs(4, 3), 0.3, 10), a)


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.02])
def test_the_discrete_metric_in_linear_time_is_that_of_the_full_matrix(eps):
    a, b = log_probs(6, 8), log_probs(6, 8, seed=1)
    cost = 2.0 * (1 - torch.eye(8, dtype=torch.float64)).expand(6, 8, 8)
    plan = sinkhorn(cost, eps, 20, log_rows=a, log_columns=b)
    assert torch.allclose(discrete_transport_cost(a, b, eps, 20, unit=2.0), (plan * cost).sum((-2, -1)))


def test_the_discrete_metric_without_regularisation_is_total_variation():
    a, b = log_probs(6, 8), log_probs(6, 8, seed=1)
    variation = (a.exp() - b.exp()).abs().sum(-1) / 2
    assert torch.allclose(discrete_transport_cost(a, b, 0.1, 500), variation, atol=1e-3)


def test_impossible_events_move_nothing():
    a = torch.tensor([0.0, -math.inf])
    b = torch.tensor([-math.inf, 0.0])
    assert discrete_transport_cost(a, b).item() == pytest.approx(1.0)
    assert discrete_transport_cost(a, a).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": -1.0}, {"iterations": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="not"):
        transport_cost(COST, **options)
    with pytest.raises(ValueError, match="not"):
        discrete_transport_cost(Q.log(), P.log(), **options)
