"""The task: what is metered, what is out of reach, what comes back from a folder, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import ArtifactError, JobError, OverBudget, TestDataError
from kdbench.registry import discover
from kdbench.tracks.policy.blocks.cloning import shape_of
from kdbench.tracks.policy.policies.chunks import Denoising, Regression
from kdbench.tracks.policy.policies.gaussian import Gaussian
from kdbench.tracks.policy.policies.streaming import Streaming
from kdbench.tracks.policy.policies.tabular import Tables
from kdbench.tracks.policy.task import PolicyTask


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture
def make(registry, tmp_path):
    def made(name: str, override=None, scale="smoke", method="bc", seed=0) -> PolicyTask:
        return PolicyTask(registry.task(f"policy/{name}", scale, override), seed=seed, method=method, folder=tmp_path)

    return made


def test_interaction_is_metered_in_training_alone(make):
    task = make("nav-robots")
    world = task.world(3, "bicycle")
    expert = task.expert()
    expert.bind(world)
    obs = world.reset(np.arange(3))
    expert.reset(3, torch.Generator())
    world.state["over"][2] = True
    world.step(expert.act(obs))
    assert task.budget.spent["env_steps"] == 2
    assert task.budget.spent["teacher_queries"] == 3
    assert len(task.demonstrations("legged")) <= len(task.demonstrations())
    assert task.budget.spent["demonstrations"] == len(task.demonstrations())
    task.phase = "evaluate"
    task.world(3).reset(np.arange(3))
    task.rollout(task.ceiling(), "test")
    assert task.budget.spent["env_steps"] == 2


def test_the_budget_of_steps_in_the_world_is_hard(make):
    task = make("nav-robots")
    world = task.world(500)
    world.reset(np.arange(500))
    with pytest.raises(OverBudget, match="env_steps"):
        for _ in range(10):
            world.step(np.zeros((500, 3)))


def test_test_layouts_and_processes_are_out_of_reach_in_training(make):
    nav, bandits = make("nav-bimodal"), make("bandits")
    for refused in (lambda: nav.seeds("test", 3), lambda: nav.rollout(nav.floor(), "test"), bandits.mdps):
        with pytest.raises(TestDataError):
            refused()
    assert not set(nav.seeds("train", 99)) & set(nav.seeds("val", 99))


def test_demonstrations_show_both_sides_to_one_kind_of_observation(make):
    task = make("nav-bimodal", {"data": {"episodes": 30}, "world": {"steps": 60}})
    episodes = task.demonstrations()
    sideways = torch.stack([e[:n, 1].sum() for e, n in zip(episodes.actions, episodes.length, strict=True)])
    assert len(episodes) >= 27
    assert (sideways > 0.2).any()
    assert (sideways < -0.2).any()
    mean, std = episodes.statistics()
    student = task.student()
    assert torch.equal(student.mean, mean.repeat(2))
    assert torch.equal(student.std, std.repeat(2))


def test_what_is_saved_comes_back_and_does_the_same(make, tmp_path):
    task = make("nav-bimodal")
    shape, window = shape_of(task), torch.randn(3, 29)
    policies = [
        Regression(task.student(), **shape),
        Denoising(task.student(), levels=4, steps=2, solver="ddim", **shape),
        Streaming(task.student(), levels=4, start="denoise", **shape),
        Gaussian(make("nav-robots").student(), slot=5),
    ]
    for number, policy in enumerate(policies):
        owner = make("nav-robots") if isinstance(policy, Gaussian) else task
        owner.save(policy, tmp_path / str(number))
        again = owner.load(tmp_path / str(number))
        assert type(again) is type(policy)
        acts = []
        for one in (policy, again):
            for network in one.networks().values():
                network.eval()
            one.reset(3, torch.Generator().manual_seed(0))
            obs = owner.world(3).reset(np.arange(3))
            obs.vector = window
            with torch.no_grad():
                acts.append(one.act(obs))
        assert torch.equal(*acts)


def test_what_is_no_policy_is_refused(make):
    task, bandits = make("nav-bimodal"), make("bandits")
    with pytest.raises(ArtifactError, match="wrap the network"):
        task.check(task.student())
    with pytest.raises(ArtifactError, match="evaluates Tables"):
        bandits.check(task.floor())
    with pytest.raises(ArtifactError, match="no probabilities"):
        Tables([np.ones((3, 2))])
    with pytest.raises(JobError, match="has no sessions"):
        task.sessions()
    with pytest.raises(JobError, match="found by acting"):
        make("random-mdps").train_loader()
    with pytest.raises(JobError, match="scripted expert"):
        task.teacher()


def test_logged_episodes_are_the_same_for_every_seed_and_method(make):
    one, other = make("lake"), make("lake", seed=3, method="dt")
    assert np.array_equal(one.problems()[0].data.states, other.problems()[0].data.states)
    assert one.problems()[0].rewards.tolist() == [0.0, 1.0]
    loaders = [iter(task.train_loader()) for task in (one, make("lake", method="dt"))]
    first, second = (next(loader) for loader in loaders)
    assert torch.equal(first.states[0], second.states[0])


def test_sessions_are_played_to_their_end_and_valued_exactly(make):
    task = make("random-mdps")
    sessions = task.sessions()
    with pytest.raises(OverBudget, match="not played"):
        task.explored(sessions)
    for session in sessions:
        uniform = np.full((session.states, session.actions), 1 / session.actions)
        for number in range(session.episodes):
            if number % 2:
                episode = session.play_mixture([session.baseline, uniform], [0.25, 0.75])
                assert episode.chosen in (0, 1)
            else:
                session.play(session.baseline)
        with pytest.raises(OverBudget, match="are played"):
            session.play(uniform)
        with pytest.raises(ValueError, match="weights"):
            make("random-mdps").sessions()[0].play_mixture([uniform], [0.5])
    found = task.explored(sessions)
    assert np.allclose(found.values[:, 0], found.baseline)
    assert np.allclose(found.baseline, 0.9 * found.optimum)
    assert np.allclose(found.threshold, 0.9 * found.baseline)
    task.phase = "evaluate"
    from kdbench.tracks.policy.worlds.tabular import evaluate

    for row, mdp in enumerate(task.mdps()):
        uniform = evaluate(mdp, np.full((mdp.states, mdp.actions), 1 / mdp.actions)).value
        assert found.values[row, 1] == pytest.approx(0.25 * found.baseline[row] + 0.75 * uniform)
    assert task.score(found)["regret"] == pytest.approx(float((found.optimum[:, None] - found.values).sum(1).mean()))
    assert task.budget.spent["episodes"] == 40


def test_the_ceiling_has_no_regret_and_the_floor_has(make):
    task = make("random-mdps")
    ceiling, floor = task.ceiling(), make("random-mdps").floor()
    assert np.allclose(ceiling.regret, 0)
    assert (ceiling.violations == 0).all()
    assert (floor.regret > 0.5).all()


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("nav-bimodal", {"student": {"kind": "mlp"}, "world": {"span": [1.0, 2.0]}}, "span"),
        ("nav-bimodal", {"world": {"robots": ["holonomic", "legged"]}}, "drives one robot"),
        ("nav-bimodal", {"student": {"horizon": 3, "executed": 4}}, "does not reach"),
        ("bandits", {"world": {"behaviour": [[1.0, 0.0]]}}, "as many probabilities"),
        ("bandits", {"data": {"kind": "online", "episodes": None}}, "episodes"),
        ("desk", {"student": {"width": 10, "heads": 4}}, "multiple of heads"),
    ],
)
def test_fields_that_do_not_fit_are_refused(registry, name, override, message):
    with pytest.raises((ValidationError, Exception), match=message):
        registry.task(f"policy/{name}", "smoke", override)


def test_exact_values_are_of_the_whole_task_and_no_sample_of_it(make):
    task = make("bandits")
    task.phase = "evaluate"
    scores = task.scores(task.ceiling())
    assert scores.metrics["optimality"] == pytest.approx(1.0)
    assert not scores.examples.keys() & scores.metrics.keys()  # their number would be a spread's least size
    assert scores.examples["values"].mean() == pytest.approx(scores.metrics["return"])
