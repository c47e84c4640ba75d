"""Environments of gymnasium behind the track's interface, and demonstrations from files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import JobError
from kdbench.registry import discover
from kdbench.tracks.policy.kinds.gym import from_tables
from kdbench.tracks.policy.policies.simple import RandomPolicy
from kdbench.tracks.policy.rollouts import rollout
from kdbench.tracks.policy.spec import GymWorld
from kdbench.tracks.policy.task import PolicyTask
from kdbench.tracks.policy.worlds.gym import Gym, GymExpert

gymnasium = pytest.importorskip("gymnasium")


@pytest.mark.parametrize(("name", "least"), [("Pendulum-v1", -400.0), ("CartPole-v1", 199.0)])
def test_controllers_are_experts_and_random_actions_are_not(name, least):
    world = Gym(6, GymWorld(id=name))
    skilled = rollout(world, GymExpert(name), np.arange(6), torch.Generator())
    random = rollout(world, RandomPolicy(1), np.arange(6), torch.Generator().manual_seed(0))
    assert skilled.returns.mean() > least
    assert skilled.success.all()
    assert random.returns.mean() < skilled.returns.mean() - 100


def test_it_is_the_environment_step_by_step():
    world, env = Gym(2, GymWorld(id="Pendulum-v1")), gymnasium.make("Pendulum-v1")
    first = world.reset(np.array([4, 5]))
    obs, _ = env.reset(seed=5)
    assert np.array_equal(first.vector[1].numpy(), obs)
    for action in (0.5, -1.0, 0.2):
        step = world.step(np.full((2, 1), action))
        obs, reward, *_ = env.step(np.array([2 * action], dtype=np.float32))
        assert np.array_equal(step.obs.vector[1].numpy(), obs)
        assert step.reward[1] == reward


def test_a_time_limit_truncates_and_a_fall_terminates():
    world = Gym(1, GymWorld(id="CartPole-v1", steps=200))
    world.reset(np.array([0]))
    ends = [world.step(np.ones((1, 1))) for _ in range(20)]
    assert any(step.terminated.any() for step in ends)
    world = Gym(1, GymWorld(id="Pendulum-v1", steps=4))
    world.reset(np.array([0]))
    ends = [world.step(np.ones((1, 1))) for _ in range(4)]
    assert ends[-1].truncated.all()
    assert not ends[-1].terminated.any()


def test_a_state_is_found_again_through_its_actions():
    world = Gym(2, GymWorld(id="Pendulum-v1"))
    world.reset(np.array([1, 2]))
    for action in (0.1, 0.9):
        world.step(np.full((2, 1), action))
    state = world.state_dict()
    after = world.step(np.full((2, 1), -0.3)).obs.vector
    other = Gym(2, GymWorld(id="Pendulum-v1"))
    other.load_state_dict(state)
    assert torch.equal(other.step(np.full((2, 1), -0.3)).obs.vector, after)


def test_what_is_not_there_is_said():
    with pytest.raises(JobError, match="cannot make"):
        Gym(1, GymWorld(id="Nothing-v9"))
    with pytest.raises(JobError, match="no scripted expert"):
        GymExpert("Acrobot-v1")
    with pytest.raises(JobError, match="discrete"):
        Gym(1, GymWorld(id="Acrobot-v1"))


@pytest.fixture
def tables(tmp_path):
    """Two episodes of 3 and 2 steps in the layout of LeRobot, with torques of -2 to 2."""
    import pandas as pd

    rows = {
        "episode_index": [0, 0, 0, 1, 1],
        "observation.environment_state": [[float(i), 0.0] for i in range(5)],
        "observation.state": [[float(10 + i)] for i in range(5)],
        "action": [[-2.0], [0.0], [2.0], [1.0], [1.0]],
    }
    pd.DataFrame(rows).to_parquet(tmp_path / "part-0.parquet")
    return tmp_path


def test_demonstrations_are_read_from_files(tables):
    world = Gym(1, GymWorld(id="Pendulum-v1"))
    columns = ("observation.environment_state", "observation.state")
    found = from_tables(str(tables), columns, 10, world)
    assert found.length.tolist() == [3, 2]
    assert found.vector[0].tolist() == [[0, 0, 10], [1, 0, 11], [2, 0, 12]]
    assert found.actions[0].flatten().tolist() == [-1, 0, 1]
    assert found.actions[1].flatten().tolist() == [0.5, 0.5, 0]
    assert len(from_tables(str(tables), columns, 1, world)) == 1
    with pytest.raises(JobError, match="no column observation.image"):
        from_tables(str(tables), ("observation.image",), 10, world)
    with pytest.raises(JobError, match="no parquet file"):
        from_tables("./kdbench/tracks/policy/networks", columns, 10, world)


def test_the_paper_task_is_made_of_a_folder(tables, tmp_path):
    override = {
        "world": {"id": "Pendulum-v1", "module": None, "obs_type": None, "parts": [], "steps": 6},
        "data": {"path": str(tables), "columns": ["observation.environment_state", "observation.state"]},
        "student": {"channels": [4, 8], "horizon": 6, "executed": 2},
        "recipe": {"batch_size": 4},
        "evaluation": {"episodes": 2},
    }
    spec = discover().task("policy/pusht", "paper", override, {"steps": 2})
    assert spec.problems() == []
    task = PolicyTask(spec, seed=0, method="bc", folder=tmp_path)
    batch = next(iter(task.train_loader()))
    assert batch.obs.vector.shape == (4, 6)
    assert batch.actions.shape == (4, 6, 1)
    assert task.student()(batch.actions, torch.zeros(4, dtype=torch.int64), batch.obs).shape == (4, 6, 1)
