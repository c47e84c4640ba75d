"""PPO and residuals: advantages against closed forms, time limits, masks, and a base that is kept."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from kdbench.tracks.policy.batches import Episodes
from kdbench.tracks.policy.blocks.gaussians import entropy, gaussian_kl, log_likelihood, masked_mean
from kdbench.tracks.policy.blocks.ppo import Collector, Rounds, Samples, Settings, clipped_loss, gae, losses
from kdbench.tracks.policy.blocks.residual import (
    Base,
    Latent,
    MobilityReward,
    Pairs,
    ResidualAgent,
    Specialists,
    base_losses,
    pairs_of,
    residual_of,
)
from kdbench.tracks.policy.blocks.specialists import travel
from kdbench.tracks.policy.networks.gaussian import GaussianMLP
from kdbench.tracks.policy.worlds.base import Observation, Step
from kdbench.tracks.policy.worlds.nav import MASKS, Nav


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- gaussians --------------------------------------------------------------------------------------------------------


def test_divergence_likelihood_and_entropy_are_those_of_torch():
    mean_t, mean_s = doubles(4, 3), doubles(4, 3, seed=1)
    std_t, std_s = doubles(4, 3, seed=2).exp(), doubles(3, seed=3).exp()
    expected = kl_divergence(Normal(mean_t, std_t), Normal(mean_s, std_s.expand(4, 3)))
    assert torch.allclose(gaussian_kl(mean_t, std_t, mean_s, std_s), expected, atol=1e-13)
    assert torch.equal(gaussian_kl(mean_t, std_t, mean_t, std_t), torch.zeros(4, 3, dtype=torch.float64))
    actions = doubles(4, 3, seed=4)
    assert torch.allclose(log_likelihood(actions, mean_s, std_s), Normal(mean_s, std_s).log_prob(actions), atol=1e-13)
    assert entropy(std_s).item() == pytest.approx(Normal(mean_s[0], std_s).entropy().sum().item(), abs=1e-13)


def test_the_deviation_that_fits_a_teacher_is_its_own_and_what_is_left_of_the_means():
    # for means that differ by d everywhere the divergence is least at s_S^2 = s_T^2 + d^2
    d, std_t = 0.3, 0.1
    log_std = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = gaussian_kl(torch.tensor(d), torch.tensor(std_t), torch.tensor(0.0), log_std.exp())
    best = torch.tensor(math.log(math.hypot(d, std_t)), dtype=torch.float64, requires_grad=True)
    at_best = gaussian_kl(torch.tensor(d), torch.tensor(std_t), torch.tensor(0.0), best.exp())
    at_best.backward()
    assert abs(best.grad.item()) < 1e-6
    assert at_best < value


def test_dimensions_that_a_robot_has_not_do_not_count():
    values = torch.tensor([[1.0, 100.0, 3.0], [5.0, 6.0, 7.0]])
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert masked_mean(values, mask).item() == pytest.approx((2 + 6) / 2)


# --- advantages -------------------------------------------------------------------------------------------------------


def test_with_lambda_one_advantages_are_returns_minus_values():
    rewards, values, after = doubles(5, 2), doubles(5, 2, seed=1), doubles(5, 2, seed=2)
    after[:-1] = values[1:]
    nothing = torch.zeros(5, 2, dtype=torch.bool)
    found = gae(rewards, values, after, nothing, nothing, 0.9, 1.0)
    for t in range(5):
        tail = sum(0.9 ** (k - t) * rewards[k] for k in range(t, 5)) + 0.9 ** (5 - t) * after[-1]
        assert torch.allclose(found[t], tail - values[t], atol=1e-13)


def test_with_lambda_zero_they_are_one_step_errors():
    rewards, values, after = doubles(4, 3), doubles(4, 3, seed=1), doubles(4, 3, seed=2)
    ends = torch.tensor([[False] * 3, [True, False, True], [False] * 3, [True] * 3])
    found = gae(rewards, values, after, ends, ends, 0.9, 0.0)
    assert torch.allclose(found, rewards + 0.9 * after * ~ends - values, atol=1e-13)


def test_a_time_limit_is_no_end_of_the_process():
    rewards, values = torch.ones(3, 1), torch.zeros(3, 1)
    after = torch.full((3, 1), 10.0)
    over = torch.tensor([[False], [True], [False]])
    never = torch.zeros(3, 1, dtype=torch.bool)
    limit = gae(rewards, values, after, never, over, 0.5, 1.0)
    end = gae(rewards, values, after, over, over, 0.5, 1.0)
    assert limit[1].item() == pytest.approx(1 + 0.5 * 10)  # what would have come counts
    assert end[1].item() == pytest.approx(1)
    # in both nothing of the next episode reaches back
    assert limit[0].item() == pytest.approx(1 + 0.5 * 10 + 0.5 * 6)
    assert end[0].item() == pytest.approx(1 + 0.5 * 10 + 0.5 * 1)


def test_the_clipped_loss_gains_nothing_beyond_the_clip():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    clipped_loss(ratio, torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.2).backward()
    assert ratio.grad.tolist() == [0, 0, 0.25, -0.25]


# --- the base and what is added ---------------------------------------------------------------------------------------


def base_of(observed: int = 29) -> Base:
    torch.manual_seed(0)
    base = Base(observed, 3, width=16)
    base.normalise(torch.randn(observed), torch.rand(observed) + 0.5)
    return base.requires_grad_(False).eval()


def test_a_new_residual_leaves_every_action_of_the_base_as_it_is():
    base = base_of()
    vector = torch.randn(64, 29)
    _, action = base(vector)
    agent = ResidualAgent(base)
    assert torch.equal(agent.mean(agent.state(Observation(vector))), action)
    obs = Observation(vector, robot=torch.full((64,), 2))
    bare, added = Specialists(base, {}), Specialists(base, {2: residual_of(base)})
    assert torch.equal(added.act(obs), bare.act(obs))


def test_the_residual_is_a_copy_of_the_head_but_for_its_last_layer_and_the_base_is_frozen():
    base = base_of()
    agent = ResidualAgent(base)
    assert torch.equal(agent.actor[0].weight, base.head[0].weight)
    assert agent.actor[0].weight.data_ptr() != base.head[0].weight.data_ptr()
    assert agent.actor[-1].weight.abs().sum() == 0
    assert agent.actor[-1].bias.abs().sum() == 0
    trained = {id(parameter) for parameter in agent.parameters()}
    assert not trained & {id(parameter) for parameter in base.parameters()}
    assert all(parameter.requires_grad for parameter in agent.parameters())
    assert agent.std().tolist() == pytest.approx([0.1] * 3)


def test_a_specialist_acts_for_its_robot_alone():
    base = base_of()
    residual = residual_of(base)
    torch.nn.init.constant_(residual[-1].bias, 0.1)
    policy, vector = Specialists(base, {1: residual}), 0.1 * torch.randn(6, 29)
    _, action = base(vector)
    robot = torch.tensor([0, 1, 2, 1, 0, 3])
    found = policy.act(Observation(vector, robot=robot))
    expected = torch.where((robot == 1)[:, None], action + 0.1, action).clamp(-1, 1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_pairs_are_neighbours_of_one_episode():
    vector = torch.arange(24.0).view(2, 4, 3)
    episodes = Episodes(
        vector, vector[..., :2], torch.tensor([4, 2]), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 0)
    )
    now, after, actions = pairs_of(episodes)
    assert torch.equal(now, torch.cat([vector[0, :3], vector[1, :1]]))
    assert torch.equal(after, torch.cat([vector[0, 1:4], vector[1, 1:2]]))
    assert torch.equal(actions, now[:, :2])


def test_the_world_model_is_taught_by_features_that_get_no_gradient():
    base = base_of().requires_grad_(True)
    batch = Pairs(torch.randn(8, 29), torch.randn(8, 29, requires_grad=True), torch.randn(8, 3))
    base_losses(base, batch, 1.0)["foresight"].backward()
    assert batch.after.grad is None
    assert base.dynamics[0].weight.grad.abs().sum() > 0
    assert base.head[0].weight.grad is None


# --- collecting -------------------------------------------------------------------------------------------------------


def step_of(vector: torch.Tensor, success: bool, contact: bool) -> Step:
    n = len(vector)
    ended = np.full(n, success or contact)
    return Step(Observation(vector), np.zeros(n), ended, ~ended & False, np.full(n, success), np.full(n, contact))


def test_the_reward_has_its_terms():
    vector = torch.zeros(2, 29)
    vector[:, 0], vector[1, 1] = 3.0, 4.0
    action, before = np.array([[1.0, 0, 0], [0, 0, 0]]), np.zeros((2, 3))
    only = {"distance": 0.0, "heading": 0.0, "change": 0.0, "size": 0.0, "success": 0.0, "contact": 0.0}
    step = step_of(vector, success=False, contact=False)
    assert MobilityReward(**{**only, "distance": 1.0})(step, action, before) == pytest.approx([-3, -5])
    heading = MobilityReward(**{**only, "heading": 1.0})(step, action, before)
    assert heading == pytest.approx([0, -math.atan2(4, 3) * math.exp(-5)])
    assert MobilityReward(**{**only, "change": 2.0, "size": 1.0})(step, action, before) == pytest.approx([-3, 0])
    won = MobilityReward(**{**only, "success": 10.0, "contact": 5.0})
    assert won(step_of(vector, success=True, contact=False), action, before) == pytest.approx([10, 10])
    assert won(step_of(vector, success=False, contact=True), action, before) == pytest.approx([-5, -5])


def collector(agent: ResidualAgent, steps: int = 20) -> Collector:
    world = Nav(6, robot="differential", steps=steps)
    return Collector(
        [world],
        [MASKS["differential"]],
        agent,
        MobilityReward(),
        seeds=np.arange(100),
        rng=np.random.default_rng(0),
        generator=torch.Generator().manual_seed(0),
    )


def test_rounds_go_on_where_the_last_one_ended_and_every_row_lives():
    agent = ResidualAgent(base_of())
    made, settings = collector(agent, steps=10), Settings()
    lived: list[int] = []
    made.worlds[0].meter = lived.append
    first = made.collect(7, settings)
    assert (made.worlds[0].state["clock"] > 0).any()
    second = made.collect(7, settings)
    assert len(first) == len(second) == 42
    assert sum(lived) == 84
    assert made.ended >= 6  # the time limit of 10 was passed
    assert first.advantage.mean().item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(first.mask[0], torch.tensor([True, False, True]))
    # the policy that collected is the policy that is: nothing has moved
    ratio = (log_likelihood(first.actions, agent.mean(first.state), agent.std()) - log_likelihood(
        first.actions, first.mean, first.std
    )).abs()  # fmt: skip
    assert ratio.max() < 1e-4


def test_batches_of_a_round_are_its_rows_once_an_epoch():
    agent = ResidualAgent(base_of())
    settings = Settings(epochs=3, parts=4)
    batches = list(Rounds(collector(agent), 5, settings, torch.Generator().manual_seed(1)))
    assert len(batches) == 12
    rows = torch.cat([batch.actions for batch in batches[:4]])
    other = torch.cat([batch.actions for batch in batches[4:8]])
    assert len(rows) == 30
    assert torch.equal(rows.sort(0).values, other.sort(0).values)
    assert not torch.equal(rows, other)


def test_updates_raise_the_likelihood_of_what_was_better_in_used_dimensions_alone():
    agent = ResidualAgent(base_of())
    state = torch.randn(64, 58)
    mean = agent.mean(state).detach()
    actions = mean + 0.1 * torch.randn(64, 3)
    mask = torch.tensor([True, False, True]).expand(64, -1)
    advantage = (actions - mean)[:, 0]
    batch = Samples(state, actions, mask, mean, agent.std().detach().expand(64, -1), advantage, torch.zeros(64))
    parts = losses(agent, batch, Settings(entropy=0.0))
    parts["policy"].backward()
    assert agent.actor[-1].bias.grad[0] < 0  # descent raises the first mean
    assert agent.actor[-1].bias.grad[1] == 0
    assert agent.critic[0].weight.grad is None


# --- what is measured -------------------------------------------------------------------------------------------------


def test_weighted_travel_time_grows_where_fewer_arrive():
    def ran(success: list[bool]) -> SimpleNamespace:
        return SimpleNamespace(success=np.array(success), length=np.array([50, 70, 120, 120]))

    assert travel(ran([True, True, False, False])) == pytest.approx(6.0 / 0.5)
    assert travel(ran([True, False, False, False])) == pytest.approx(5.0 / 0.25)
    assert travel(ran([False] * 4)) == pytest.approx(12.0 * 8)


def test_of_the_base_a_generalist_uses_the_encoder_alone():
    base, student = base_of(), GaussianMLP(29, (8,), 3, 8)
    policy, obs = Latent(base, student), Observation(torch.randn(4, 29), robot=torch.tensor([0, 1, 2, 3]))
    before = policy.act(obs)
    torch.nn.init.zeros_(base.head[-1].weight)
    torch.nn.init.zeros_(base.dynamics[-1].weight)
    assert torch.equal(policy.act(obs), before)
    assert set(policy.networks()) == {"encoder", "policy"}
    unseen = Latent(base, student, slot=7).act(obs)
    assert not torch.equal(unseen, before)
    blind = Latent(base, student, coded=False)
    assert torch.equal(blind.act(obs), blind.act(Observation(obs.vector)))
