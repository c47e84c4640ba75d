"""Exact values: against closed forms, simulation and gymnasium's own table."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.policy.worlds.tabular import (
    MOVES,
    at_value,
    bandit,
    evaluate,
    lake,
    occupancy,
    optimal,
    random_mdp,
    sample,
    timed,
)


def test_a_bandit_is_worth_the_chance_of_its_arm():
    mdp = bandit((0.4, 0.6))
    assert optimal(mdp).value == pytest.approx(0.6, abs=1e-15)
    policy = np.broadcast_to([0.9, 0.1], (3, 2))
    assert evaluate(mdp, policy).value == pytest.approx(0.9 * 0.4 + 0.1 * 0.6, abs=1e-15)


@pytest.mark.parametrize("mdp", [lake(4, 1 / 3, 30), lake(8, 0.7, 40), random_mdp(0, 8, 4, 10, 0.3)])
def test_processes_are_processes(mdp):
    assert np.allclose(mdp.P.sum(-1), 1)
    assert mdp.P.min() >= 0
    assert (mdp.reward[mdp.terminal] == 0).all()


def test_the_best_policy_is_worth_what_the_recursion_says_and_no_other_is_worth_more():
    mdp, rng = random_mdp(3, 6, 3, 5, 0.3), np.random.default_rng(0)
    best = optimal(mdp)
    assert evaluate(mdp, best.policy).value == pytest.approx(best.value, abs=1e-13)
    for _ in range(20):
        other = rng.dirichlet(np.ones(3), size=(5, 6))
        assert evaluate(mdp, other).value <= best.value + 1e-12


def test_value_is_occupancy_times_reward():
    mdp, rng = random_mdp(1, 6, 3, 5, 0.3), np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(3), size=(5, 6))
    measure = occupancy(mdp, policy)
    assert np.allclose(measure.sum((1, 2)), 1)
    assert (measure * mdp.reward).sum() == pytest.approx(evaluate(mdp, policy).value, abs=1e-13)


def test_simulation_agrees_with_the_exact_value():
    mdp = lake(4, 0.7, 40)
    policy = optimal(mdp).policy
    episodes = sample(mdp, policy, 4000, np.random.default_rng(0))
    exact = evaluate(mdp, policy).value
    assert abs(episodes.returns.mean() - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)
    ended = ~episodes.mask
    assert (episodes.rewards[ended] == 0).all()
    assert (episodes.states[:, 1:] == episodes.next_states[:, :-1]).all()


def test_the_baseline_has_the_share_that_was_asked_for():
    mdp = random_mdp(2, 8, 4, 10, 0.3)
    assert evaluate(mdp, at_value(mdp, 0.8)).value == pytest.approx(0.8 * optimal(mdp).value, rel=1e-9)
    with pytest.raises(ValueError, match="not 0.01"):
        at_value(mdp, 0.01)


def test_what_is_no_policy_is_refused():
    with pytest.raises(ValueError, match="probabilities"):
        timed(np.ones((2, 2)), 3)
    with pytest.raises(ValueError, match="not"):
        timed(np.full((2, 2, 2), 0.5), 3)


@pytest.mark.parametrize("slippery", [True, False])
def test_the_lake_is_that_of_gymnasium(slippery):
    gymnasium = pytest.importorskip("gymnasium")
    table = gymnasium.make("FrozenLake-v1", map_name="4x4", is_slippery=slippery).unwrapped.P
    mdp = lake(4, 1 / 3 if slippery else 1.0, 10)
    for state, acts in table.items():
        for action, rows in acts.items():
            expected, paid = np.zeros(16), 0.0
            for chance, there, reward, _ in rows:
                expected[there] += chance
                paid += chance * reward
            if not mdp.terminal[state]:
                assert np.allclose(mdp.P[state, action], expected)
                assert mdp.reward[state, action] == pytest.approx(paid)
    assert len(MOVES) == 4
