"""Advantages of groups, the clipped surrogate and aggregation, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.policy_gradient import aggregate, clip_fraction, clipped, group_advantage

GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
REWARD = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64)


def test_advantages_are_standardised_within_each_group_with_the_sample_deviation():
    found = group_advantage(REWARD, GROUP, eps=1e-4)
    second = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    expected = (second - 0.25) / (((second - 0.25).square().sum() / 3).sqrt() + 1e-4)
    assert torch.allclose(found[4:], expected, atol=1e-15)
    assert torch.allclose(group_advantage(REWARD, GROUP, scale="none")[:4], REWARD[:4] - 0.5)


def test_advantages_do_not_depend_on_the_order_of_the_rows():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(group_advantage(REWARD[order], GROUP[order]), group_advantage(REWARD, GROUP)[order])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    tenth = torch.full((3,), 0.1)  # whose mean differs from it in float32
    assert torch.equal(group_advantage(tenth, torch.zeros(3, dtype=torch.int64), scale=scale), torch.zeros(3))


def test_a_group_of_one_has_its_reward_as_advantage():
    assert torch.equal(group_advantage(torch.tensor([0.5, 1.0]), torch.tensor([3, 4])), torch.tensor([0.5, 1.0]))


def tokens(seed=0, n=12):
    generator = torch.Generator().manual_seed(seed)
    logp, old = (-torch.rand(n, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    return logp.requires_grad_(), old, torch.randn(n, generator=generator, dtype=torch.float64)


def test_at_the_old_policy_the_loss_is_the_negative_advantage_and_the_gradient_the_policy_gradient():
    logp, _, advantage = tokens()
    loss = clipped(logp, logp.detach(), advantage)
    assert torch.equal(loss.detach(), -advantage)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert torch.equal(gradient, -advantage)


def test_clipping_takes_the_gradient_away_where_the_ratio_has_gone_far_enough():
    logp, old, advantage = tokens()
    loss = clipped(logp, old, advantage, low=0.1, high=0.3)
    ratio = (logp - old).exp().detach()
    pairs = zip(ratio.tolist(), advantage.tolist(), strict=True)
    expected = [-min(r * a, min(max(r, 0.9), 1.3) * a) for r, a in pairs]
    assert loss.tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    outside = ((advantage > 0) & (ratio > 1.3)) | ((advantage < 0) & (ratio < 0.9))
    assert outside.any()
    assert not outside.all()
    assert torch.equal(gradient == 0, outside)
    assert torch.allclose(gradient[~outside], (-ratio * advantage)[~outside])
    assert float(clip_fraction(logp, old, advantage, low=0.1, high=0.3)) == pytest.approx(
        float(outside.double().mean())
    )


def test_the_dual_clip_bounds_the_loss_of_bad_responses_alone():
    logp = torch.tensor([3.0, 3.0], dtype=torch.float64)
    loss = clipped(logp, torch.zeros(2, dtype=torch.float64), torch.tensor([-1.0, 1.0], dtype=torch.float64), dual=10)
    assert loss.tolist() == pytest.approx([10.0, -1.2])


def test_aggregations_weigh_tokens_responses_and_a_constant():
    values, sequence = torch.tensor([1.0, 1, 1, 5]), torch.tensor([0, 0, 0, 1])
    assert float(aggregate(values, sequence)) == 2.0
    assert float(aggregate(values, sequence, "seq_mean")) == 3.0
    assert float(aggregate(values, sequence, "const", rows=2, length=10)) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="greatest length"):
        aggregate(values, sequence, "const")
    with pytest.raises(ValueError, match="not 'mean'"):
        aggregate(values, sequence, "mean")
