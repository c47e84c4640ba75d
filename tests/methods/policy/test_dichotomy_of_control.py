"""Dichotomy of control, return conditioning and the best episodes: what each learns of the same data."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench_methods.policy.bc_top import best
from kdbench_methods.policy.dichotomy_of_control import chosen

FAST = {
    "world": {"arms": [[0.4, 0.6]], "behaviour": [[0.9, 0.1]]},
    "data": {"episodes": 1000},
    "limits": {"steps": 200},
    "recipe": {"lr": 0.05, "batch_size": 256},
}
"""Enough for one bandit: larger steps, fewer of them."""


def test_it_finds_the_best_arms_where_return_conditioning_takes_luck_for_skill(run):
    doc = run("policy/dichotomy_of_control", "bandits", overrides=FAST, energy_lr=0.05)
    dt = run("policy/dt", "bandits", overrides=FAST)
    assert doc.outcome.metrics["optimality"] > 0.97
    assert doc.outcome.metrics["return"] > dt.outcome.metrics["return"] + 0.05
    assert doc.outcome.extra["information"] < 0.02
    assert doc.outcome.extra["consistency_gap"] < 0.1
    assert dt.outcome.extra["promised"] == 1
    assert dt.outcome.extra["information"] > 0.5
    assert dt.outcome.extra["consistency_gap"] > 0.4
    assert dt.outcome.extra["dt_error"] < 0.03


def test_without_the_constraint_it_is_return_conditioning(run):
    free = run("policy/dichotomy_of_control", "bandits", overrides=FAST, lam=0.0)
    dt = run("policy/dt", "bandits", overrides=FAST)
    assert free.outcome.extra["information"] > 0.5
    assert free.outcome.metrics["return"] == pytest.approx(dt.outcome.metrics["return"], abs=0.03)


def test_every_step_of_the_rest_has_its_steps_of_the_energy(run, monkeypatch):
    from kdbench.tracks.policy.blocks.controllable import Energies

    climbed = []
    original = Energies.climb

    def watched(energies, codes, steps, sign=1.0):
        climbed.append((steps, sign))
        return original(energies, codes, steps, sign)

    monkeypatch.setattr(Energies, "climb", watched)
    run("policy/dichotomy_of_control", "bandits", inner=2, energy="descend")
    assert climbed == [(2, -1.0)] * 8
    climbed.clear()
    run("policy/dichotomy_of_control", "bandits", lam=0.0)
    assert climbed == []


def test_the_curve_names_the_losses_and_no_step_is_left(run):
    result = run("policy/dichotomy_of_control", "lake", reach=3)
    assert set(result.curve[-1]) >= {"actions", "returns", "prior", "rate", "control", "loss"}
    assert result.outcome.cost["steps"] == 8


def test_an_interrupted_job_goes_on_with_the_same_energy(interrupted):
    interrupted("policy/dichotomy_of_control", "bandits", 4)


def test_prior_samples_are_ranked_by_the_value_of_the_return():
    class Two:
        returns = np.array([0.0, 1.0])

    answers = {
        "prior": np.array([[0.5, 0.5]]),
        "value": np.array([[[0.8, 0.2], [0.3, 0.7]]]),
        "policy": np.array([[[1.0, 0.0], [0.0, 1.0]]]),
    }
    policy, promised = chosen(answers, Two(), 100, 0.0)
    assert policy[0] == pytest.approx([0, 1])
    assert promised == pytest.approx([0.7])
    policy, promised = chosen(answers, Two(), 1, 0.0)
    assert policy[0] == pytest.approx([0.5, 0.5])
    assert promised == pytest.approx([0.45])


def test_the_best_episodes_are_those_of_the_highest_return():
    assert best(np.array([0.0, 1, 0, 1, 1]), 0.4).tolist() == [1, 3]
    assert best(np.array([0.0, 1, 0, 1, 1]), 0.01).tolist() == [1]
    assert sorted(best(np.array([3.0, 1, 2]), 1.0)) == [0, 1, 2]


def test_imitating_the_best_episodes_is_conditioning_on_the_return_where_they_are_the_successes(run):
    dt = run("policy/dt", "bandits", overrides=FAST)
    top = run("policy/bc_top", "bandits", overrides=FAST, share=0.2)
    assert top.outcome.metrics["return"] == pytest.approx(dt.outcome.metrics["return"], abs=0.04)
