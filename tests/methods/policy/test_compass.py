"""COMPASS and what it is compared with: stages, meters, and that the base is kept."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.policy.blocks import ppo, residual, specialists
from kdbench.tracks.policy.blocks.specialists import Records
from kdbench.tracks.policy.networks.gaussian import GaussianMLP
from kdbench_methods.policy import compass


def records(n: int = 32) -> Records:
    torch.manual_seed(0)
    robot = torch.arange(n) % 4
    mask = torch.tensor([[True, True, True], [True, False, True], [True, False, True], [True, True, True]])[robot]
    return Records(torch.randn(n, 5), robot, torch.randn(n, 3), torch.full((n, 3), 0.2), mask)


def student_of() -> GaussianMLP:
    torch.manual_seed(1)
    return GaussianMLP(5, (8,), 3, 8)


def test_the_divergence_does_not_see_dimensions_that_a_robot_has_not():
    student, batch = student_of(), records()
    before = compass.kl_loss(student, batch)
    batch.mean[1, 1] += 100.0
    assert torch.equal(compass.kl_loss(student, batch), before)
    batch.mean[0, 1] += 100.0
    assert compass.kl_loss(student, batch) > before + 1


def test_the_recorded_deviation_is_used_and_the_students_own_is_trained():
    student, batch = student_of(), records()
    loss = compass.kl_loss(student, batch)
    loss.backward()
    assert student.log_std.grad.abs().min() > 0
    batch.std = batch.std * 2
    assert not torch.equal(compass.kl_loss(student, batch), loss)
    plain = student_of()
    compass.mse_loss(plain, batch).backward()
    assert plain.log_std.grad is None


def test_a_generalist_without_the_code_is_not_told_the_robot():
    student, batch = student_of(), records()
    told = compass.kl_loss(student, batch, True)
    batch.robot = (batch.robot + 1) % 4
    assert not torch.equal(compass.kl_loss(student, batch, True), told)
    blind = compass.kl_loss(student, batch, False)
    batch.robot = (batch.robot + 1) % 4
    assert torch.equal(compass.kl_loss(student, batch, False), blind)


def test_stages_are_metered_and_the_base_is_as_it_was(run, monkeypatch):
    bases, agents = [], []
    train_base, improve = compass.train_base, specialists.improve

    def based(task, **how):
        base = train_base(task, **how)
        bases.append((base, {name: value.clone() for name, value in base.state_dict().items()}))
        return base

    def improved(task, agent, collector, **how):
        base, before = bases[0]
        obs = collector.seen[0]
        assert torch.equal(agent.mean(agent.state(obs)), base(obs.vector)[1])  # as the base, at first
        start = agent.actor[-1].weight.clone()
        improve(task, agent, collector, **how)
        agents.append((how["env_steps"], not torch.equal(agent.actor[-1].weight, start)))
        assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())

    monkeypatch.setattr(compass, "train_base", based)
    monkeypatch.setattr(specialists, "improve", improved)
    result = run("policy/compass", "nav-robots")
    assert agents == [(480, True)] * 3
    cost = result.outcome.cost
    assert cost["env_steps"] <= 2000
    assert cost["env_steps"] > 3 * 450
    assert cost["steps"] == 6
    assert cost["aux_steps"] > 6
    assert cost["demonstrations"] <= 4  # of one robot alone
    base, before = bases[0]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    extra = result.outcome.extra
    assert {"success_unseen_code", "travel_holonomic", "travel_legged", "student_std"} <= set(extra)


def test_without_the_code_there_is_no_unseen_one(run):
    result = run("policy/compass", "nav-robots", code=False, distil="mse")
    assert "success_unseen_code" not in result.outcome.extra
    assert result.outcome.extra["student_std"] == pytest.approx(0.3, abs=0.01)  # squared error leaves it alone


def test_ppo_spends_the_steps_and_no_more_than_the_interaction_of_the_task(run):
    cost = run("policy/ppo", "nav-robots").outcome.cost
    assert cost["steps"] == 6
    assert 1000 < cost["env_steps"] <= 2000


def test_the_base_alone_needs_no_interaction_and_specialists_no_records(run):
    base = run("policy/base_policy", "nav-robots").outcome
    assert "env_steps" not in base.cost
    special = run("policy/specialists", "nav-robots").outcome
    assert special.cost["steps"] == 6
    assert special.cost["env_steps"] <= 0.72 * 2000


def test_too_little_interaction_is_said(registry):
    assert residual.STD == 0.1
    with pytest.raises(ValueError, match="not one for each"):
        world = type("World", (), {"n": 8})()
        ppo.improve(None, None, type("C", (), {"worlds": [world]})(), env_steps=4, settings=ppo.Settings())
