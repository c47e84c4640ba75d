"""Optimism, pessimism and step mixtures: bounds that hold, identities that are exact."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.policy.blocks.conservative import (
    Confidence,
    Model,
    candidates,
    choose_episode,
    choose_step,
    share,
    step_mixture,
)
from kdbench.tracks.policy.blocks.sessions import Session
from kdbench.tracks.policy.worlds.tabular import at_value, evaluate, optimal, random_mdp, sample

MDP = random_mdp(0, 6, 3, 6, 0.3)
THEORY = Confidence(2.0, 2.0, bonus="variance")
SCALED = Confidence(0.3, 0.05)


def model_of(episodes: int, confidence: Confidence, mdp=MDP) -> Model:
    """A model that has seen episodes of a policy that tries everything."""
    model = Model(mdp.reward, mdp.mu, mdp.horizon, 1000, confidence)
    uniform = np.full((mdp.states, mdp.actions), 1 / mdp.actions)
    seen = sample(mdp, uniform, episodes, np.random.default_rng(0))
    model.update(seen.states, seen.actions, seen.next_states)
    return model


def test_the_value_of_a_step_mixture_is_the_mixture_of_the_values():
    baseline, bold, rng = at_value(MDP, 0.8), optimal(MDP).policy, np.random.default_rng(0)
    values = [evaluate(MDP, table).value for table in candidates(baseline, bold)]
    for j in range(1, MDP.horizon + 1):
        rho = rng.random()
        mixed = evaluate(MDP, step_mixture(baseline, bold, j, rho)).value
        assert mixed == pytest.approx((1 - rho) * values[j] + rho * values[j - 1], abs=1e-13)
        assert np.array_equal(step_mixture(baseline, bold, j, 0.0), candidates(baseline, bold)[j])
        assert np.array_equal(step_mixture(baseline, bold, j, 1.0), candidates(baseline, bold)[j - 1])
    with pytest.raises(ValueError, match="rho"):
        step_mixture(baseline, bold, 0, 0.5)


def test_mixing_whole_episodes_is_another_policy():
    baseline, bold = at_value(MDP, 0.8), optimal(MDP).policy
    every_step = 0.5 * baseline + 0.5 * bold
    one_coin = 0.5 * evaluate(MDP, baseline).value + 0.5 * evaluate(MDP, bold).value
    assert abs(evaluate(MDP, every_step).value - one_coin) > 1e-3


def test_candidates_go_from_the_optimistic_policy_to_the_baseline():
    baseline, bold = at_value(MDP, 0.8), optimal(MDP).policy
    tables = candidates(baseline, bold)
    assert len(tables) == MDP.horizon + 1
    assert np.array_equal(tables[0], bold)
    assert np.array_equal(tables[-1], baseline)
    assert np.array_equal(tables[2][:2], baseline[:2])
    assert np.array_equal(tables[2][2:], bold[2:])


def test_lower_bounds_are_linear_in_one_step_too():
    model = model_of(400, SCALED)
    bold, baseline = model.optimistic(), at_value(MDP, 0.8)
    low = model.pessimistic(candidates(baseline, bold.policy), bold.bonus)
    mixed = model.pessimistic(step_mixture(baseline, bold.policy, 3, 0.3)[None], bold.bonus)[0]
    assert mixed == pytest.approx(0.7 * low[3] + 0.3 * low[2], abs=1e-12)


@pytest.mark.parametrize("confidence", [THEORY, Confidence(2.0, 1.0)])
@pytest.mark.parametrize("episodes", [1, 50, 2000])
def test_with_wide_bounds_the_truth_lies_between(confidence, episodes):
    model, best, baseline = model_of(episodes, confidence), optimal(MDP), at_value(MDP, 0.8)
    bold = model.optimistic()
    assert bold.V[0] @ MDP.mu >= best.value
    low = model.pessimistic(np.stack([baseline, best.policy]), bold.bonus)
    assert low[0] <= evaluate(MDP, baseline).value
    assert low[1] <= best.value


def test_with_many_visits_and_no_bonus_both_bounds_are_the_truth():
    model = model_of(20_000, Confidence(0.0, 0.0))
    bold = model.optimistic()
    assert bold.V[0] @ MDP.mu == pytest.approx(optimal(MDP).value, rel=0.02)
    baseline = at_value(MDP, 0.8)
    assert model.pessimistic(baseline[None], bold.bonus)[0] == pytest.approx(evaluate(MDP, baseline).value, rel=0.02)


def test_what_was_never_seen_is_uniform_and_counts_are_counts():
    model = Model(MDP.reward, MDP.mu, MDP.horizon, 10, SCALED)
    assert np.allclose(model.P, 1 / MDP.states)
    model.update(np.array([0, 0, 0]), np.array([1, 1, 1]), np.array([2, 2, 3]))
    assert model.visits[0, 1] == 3
    assert model.P[0, 1, 2] == pytest.approx(2 / 3)
    assert np.isclose(model.L, np.log(MDP.states * MDP.actions * MDP.horizon * 10 / 0.05))


def test_the_last_action_has_no_bonus_of_range():
    bonus = model_of(10, SCALED).optimistic().bonus
    assert (bonus[-1] == 0).all()
    assert (bonus[:-1] > 0).all()


def test_the_choice_is_optimistic_mixed_or_the_baseline_by_the_lower_bounds():
    model, baseline = model_of(3000, SCALED), at_value(MDP, 0.8)
    bold = model.optimistic()
    low = model.pessimistic(candidates(baseline, bold.policy), bold.bonus)
    assert choose_step(model, baseline, float(low[0])).kind == "optimistic"
    assert choose_step(model, baseline, float(low.max()) + 1).kind == "baseline"
    # a baseline that is sure where the optimistic policy is not
    safe = optimal(MDP).policy
    model = Model(MDP.reward, MDP.mu, MDP.horizon, 1000, SCALED)
    seen = sample(MDP, safe, 3000, np.random.default_rng(1))
    model.update(seen.states, seen.actions, seen.next_states)
    bold = model.optimistic()
    low = model.pessimistic(candidates(safe, bold.policy), bold.bonus)
    assert low[-1] > low[0]
    threshold = float((low[-1] + low[0]) / 2)
    choice = choose_step(model, safe, threshold)
    assert choice.kind == "mixed"
    assert model.pessimistic(choice.policies[0][None], bold.bonus)[0] == pytest.approx(threshold, abs=1e-10)
    coin = choose_episode(model, safe, threshold)
    assert coin.kind == "mixed"
    assert coin.weights[0] * low[-1] + coin.weights[1] * low[0] == pytest.approx(threshold, abs=1e-10)
    assert share(1.0, 0.0, 0.25) == 0.75


def test_a_threshold_of_nothing_is_optimism():
    model, baseline = model_of(5, SCALED), at_value(MDP, 0.8)
    for choose in (choose_step, choose_episode):
        choice = choose(model, baseline, 0.0)
        assert np.array_equal(choice.policies[0], model.optimistic().policy)


def test_a_cautious_policy_from_much_data_is_near_the_best():
    model = model_of(20_000, SCALED)
    assert evaluate(MDP, model.cautious()).value > 0.9 * optimal(MDP).value
    few = model_of(3, SCALED)
    assert few.cautious().sum(-1) == pytest.approx(np.ones((MDP.horizon, MDP.states)))


def test_logged_episodes_cost_demonstrations_and_leave_the_noise_of_the_session_alone():
    spent = {}

    def session():
        return Session(
            MDP,
            safe=0.8,
            slack=0.1,
            episodes=5,
            rng=np.random.default_rng([3, 0]),
            spend=lambda unit, amount: spent.update({unit: spent.get(unit, 0) + amount}),
        )

    plain, other = session(), session()
    logged = other.logged(7)
    assert len(logged) == 7
    assert spent == {"demonstrations": 7}
    for _ in range(5):
        one, two = plain.play(plain.baseline), other.play(other.baseline)
        assert np.array_equal(one.states, two.states)
