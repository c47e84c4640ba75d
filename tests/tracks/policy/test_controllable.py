"""Futures, information and codes: closed forms of bandits, and the signs of the min-max."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from kdbench.tracks.policy.blocks.controllable import Codes, Energies, Futures, best_of, information
from kdbench.tracks.policy.blocks.logged import Logged
from kdbench.tracks.policy.worlds.tabular import bandit, evaluate, lake, optimal, sample

CHANCES, ARMS = np.array([0.4, 0.6]), np.array([0.9, 0.1])


def logged(mdp, policy, count=4000, seed=0) -> Logged:
    episodes = sample(mdp, policy, count, np.random.default_rng(seed))
    return Logged(mdp.states, mdp.actions, mdp.horizon, episodes)


def bandit_futures() -> Futures:
    """Of the process itself, without noise of sampling."""
    decisions, steps, later = np.zeros((3, 2, 2)), np.zeros((3, 2, 2, 2)), np.zeros((3, 4, 6, 2))
    for arm in range(2):
        for r, chance in enumerate((1 - CHANCES[arm], CHANCES[arm])):
            decisions[0, arm, r] = ARMS[arm] * chance
            steps[0, arm, r, r] = later[0, arm * 2 + r, arm, r] = ARMS[arm] * chance
    return Futures(np.array([0.0, 1.0]), np.eye(3)[0], decisions, steps, later, decisions.sum((0, 1)))


def test_conditioning_on_reward_earns_the_closed_form():
    mdp = bandit(CHANCES)
    policy = bandit_futures().conditioned(-1)
    assert policy[0] == pytest.approx(ARMS * CHANCES / (ARMS @ CHANCES), abs=1e-15)
    assert evaluate(mdp, policy).value == pytest.approx((ARMS @ CHANCES**2) / (ARMS @ CHANCES), abs=1e-15)
    assert evaluate(mdp, policy).value == pytest.approx(0.18 / 0.42, abs=1e-12)


def test_futures_are_counted():
    mdp = bandit(CHANCES)
    found, exact = Futures.of(logged(mdp, np.broadcast_to(ARMS, (3, 2)), 20_000)), bandit_futures()
    assert found.decisions == pytest.approx(exact.decisions, abs=0.015)
    assert found.steps == pytest.approx(exact.steps, abs=0.015)
    assert found.later == pytest.approx(exact.later, abs=0.015)
    assert found.decisions.sum() == pytest.approx(1)
    assert np.array_equal(found.start, [1, 0, 0])


def test_later_steps_are_those_of_the_same_episode_from_the_decision_on():
    mdp = lake(4, 2 / 3, 20)
    problem = logged(mdp, np.full((16, 4), 0.25), 50)
    mask, data = problem.data.mask, problem.data
    found, one = Futures.of(problem), Futures.of(problem, reach=1)
    length = mask.sum(1)
    assert found.later.sum() == pytest.approx((length * (length + 1) / 2).sum() / mask.sum())
    assert one.later.sum() == pytest.approx(1)
    # by hand, for the decisions of the first episode's first state and action
    s, a, counted = data.states[0, 0], data.actions[0, 0], 0
    for row in range(len(data)):
        for t in range(length[row]):
            if data.states[row, t] == s and data.actions[row, t] == a:
                counted += length[row] - t
    R = len(found.returns)
    assert found.later[s, a * R : (a + 1) * R].sum() == pytest.approx(counted / mask.sum())


def test_information_is_that_of_the_definition_and_none_for_codes_of_actions():
    futures = bandit_futures()
    returns = np.broadcast_to(np.eye(2), (3, 2, 2, 2))
    # a code that is the return knows everything of a bandit's outcome: the entropy of the outcome given the arm
    entropy = -(CHANCES * np.log(CHANCES) + (1 - CHANCES) * np.log(1 - CHANCES))
    assert information(returns, futures.steps) == pytest.approx(ARMS @ entropy, abs=1e-14)
    actions = np.broadcast_to(np.eye(2)[:, None], (3, 2, 2, 2))
    assert information(actions, futures.steps) == pytest.approx(0, abs=1e-15)
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(3), size=(3, 2, 2))
    joint = np.einsum("rz,ro->zo", q[0, 0], futures.steps[0, 0]) / ARMS[0]
    first = rel_entr(joint, joint.sum(1, keepdims=True) * joint.sum(0)).sum()
    joint = np.einsum("rz,ro->zo", q[0, 1], futures.steps[0, 1]) / ARMS[1]
    second = rel_entr(joint, joint.sum(1, keepdims=True) * joint.sum(0)).sum()
    assert information(q, futures.steps) == pytest.approx(ARMS @ [first, second], abs=1e-14)


def test_the_best_energy_gives_the_information_plus_a_constant_and_no_energy_gives_more():
    futures = bandit_futures()
    codes = Codes(futures, 3, torch.Generator().manual_seed(0)).double()
    for name in ("decisions", "later", "log_outcomes"):  # tables of float32 otherwise
        exact = {"decisions": futures.decisions.reshape(3, 4), "later": futures.later}.get(
            name, np.log(futures.outcomes)
        )
        setattr(codes, name, torch.as_tensor(exact))
    q = codes.q().detach()
    joint = torch.einsum("scko,scz->skzo", codes.later, q)
    share = joint / joint.sum(-1, keepdim=True).clamp_min(1e-300)
    best = torch.where(joint > 0, (share.clamp_min(1e-300)).log() - codes.log_outcomes, torch.tensor(0.0))
    known = information(q.reshape(3, 2, 2, 3).numpy(), futures.steps)
    outcome = np.stack([1 - CHANCES, CHANCES], 1)
    constant = ARMS @ rel_entr(outcome, futures.outcomes).sum(1)
    assert codes.bracket(best, q).item() == pytest.approx(known + constant, abs=1e-12)
    for seed in range(5):
        noise = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert codes.bracket(best + noise, q).item() <= known + constant + 1e-12


def test_ascent_climbs_to_the_bound_and_descent_falls():
    codes = torch.nn.ModuleList([Codes(bandit_futures(), 3, torch.Generator().manual_seed(0))])
    q = codes[0].q().detach()
    before = codes[0].bracket(codes[0].new_energy(), q).item()
    assert before == pytest.approx(0, abs=1e-6)
    up, down = Energies(codes, 0.05), Energies(codes, 0.05)
    up.climb(codes, 100)
    down.climb(codes, 20, -1.0)
    assert codes[0].bracket(up.tables[0], q).item() > 1e-3
    assert codes[0].bracket(down.tables[0], q).item() < 0
    assert all(parameter.grad is None for parameter in codes.parameters())


def train(lam: float, sign: float = 1.0, steps: int = 500):
    """The min-max on the exact bandit."""
    futures = bandit_futures()
    codes = torch.nn.ModuleList([Codes(futures, 0, torch.Generator().manual_seed(0))])
    energies = Energies(codes, 0.03)
    optimizer = torch.optim.Adam(codes.parameters(), lr=0.03)
    for _ in range(steps):
        energies.climb(codes, 3, sign)
        q = codes[0].q()
        terms = codes[0].terms(q)
        loss = terms["actions"] + terms["returns"] + terms["prior"] + 0.1 * terms["rate"]
        loss = loss + lam * codes[0].bracket(energies.tables[0].detach(), q)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = codes[0].answers()
    value = answers["value"] @ futures.returns
    weight = best_of(answers["prior"], value, 100, 0.01)
    policy = np.einsum("sz,sza->sa", weight, answers["policy"])
    return information(answers["q"].reshape(3, 2, 2, -1), futures.steps), evaluate(bandit(CHANCES), policy).value, (
        weight[0] @ value[0]
    )  # fmt: skip


def test_the_constraint_takes_luck_out_of_the_code_and_finds_the_best_arm():
    told, earned, promised = train(5.0)
    assert told < 0.01
    assert earned > 0.59
    assert promised == pytest.approx(earned, abs=0.02)


def test_without_the_constraint_luck_is_asked_for():
    told, earned, promised = train(0.0)
    assert told > 0.5
    assert promised > 0.95
    assert earned == pytest.approx(0.18 / 0.42, abs=0.02)


def test_one_scalar_for_all_does_not_take_luck_out():
    told, earned, _ = train(5.0, sign=-1.0)
    assert told > 0.1
    assert earned < 0.5


def test_the_best_of_many_draws_is_the_best_and_of_one_the_prior():
    prior, value = np.array([[0.2, 0.5, 0.3]]), np.array([[0.9, 0.1, 0.5]])
    assert best_of(prior, value, 1, 0.0) == pytest.approx(prior)
    assert best_of(prior, value, 2, 0.0)[0] == pytest.approx([1 - 0.8**2, 0.5**2, 0.8**2 - 0.5**2])
    assert best_of(prior, value, 10_000, 0.0)[0] == pytest.approx([1, 0, 0])
    assert best_of(prior, np.zeros((1, 3)), 7, 0.01) == pytest.approx(prior)
    assert best_of(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), 100, 0.0)[0] == pytest.approx([0, 1])


def test_the_exact_rule_is_that_of_drawing():
    prior, value = np.array([[0.02, 0.68, 0.3]]), np.array([[0.9, 0.1, 0.5]])
    rng = np.random.default_rng(0)
    drawn = rng.choice(3, p=prior[0], size=(20_000, 30))
    best = np.bincount(drawn[np.arange(len(drawn)), value[0][drawn].argmax(1)], minlength=3) / len(drawn)
    assert best_of(prior, value, 30, 0.0)[0] == pytest.approx(best, abs=0.015)


def test_in_a_world_without_chance_to_ask_for_the_goal_is_to_reach_it():
    mdp = lake(4, 1.0, 60)
    policy = 0.25 * 0.5 + 0.5 * optimal(mdp).policy
    futures = Futures.of(logged(mdp, policy, 500))
    R = len(futures.returns)
    returns = np.broadcast_to(np.eye(R), (16, 4, R, R))
    assert information(returns, futures.steps) == pytest.approx(0, abs=1e-12)
    assert evaluate(mdp, futures.conditioned(-1)).value > 0.9
