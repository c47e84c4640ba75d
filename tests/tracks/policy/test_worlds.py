"""Simulators: exact resets, episodes that do not know of each other, bodies, experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.tracks.policy.policies.base import Policy
from kdbench.tracks.policy.rollouts import rollout
from kdbench.tracks.policy.worlds.desk import SENTENCES, TASKS, VOCABULARY, Desk, sentence
from kdbench.tracks.policy.worlds.desk_expert import DeskExpert
from kdbench.tracks.policy.worlds.nav import DT, GAP, LIMITS, MASKS, RADIUS, RANGE, RAYS, ROBOTS, TURN, Nav, passed_left
from kdbench.tracks.policy.worlds.nav_expert import NavExpert
from kdbench.tracks.policy.worlds.planning import SPACING, centres, way

WORLDS = {"nav": lambda n: Nav(n, robot="legged"), "desk": lambda n: Desk(n, size=16)}


def drive(world, seeds, steps=12, order=None):
    """Observations and rewards of fixed actions that belong to the seeds."""
    world.reset(np.asarray(seeds))
    rngs = [np.random.default_rng(seed) for seed in seeds]
    rows = []
    for _ in range(steps):
        step = world.step(np.stack([rng.uniform(-1, 1, world.actions) for rng in rngs]))
        parts = [step.obs.vector] + ([] if step.obs.image is None else [step.obs.image.flatten(1)])
        rows.append(torch.cat([*parts, torch.from_numpy(step.reward)[:, None].float()], 1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("name", WORLDS)
def test_an_episode_is_its_seed_whatever_else_is_in_the_batch(name):
    together = drive(WORLDS[name](4), [5, 6, 7, 8])
    assert torch.equal(together, drive(WORLDS[name](4), [5, 6, 7, 8]))
    assert torch.equal(together[[2]], drive(WORLDS[name](1), [7]))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", WORLDS)
def test_a_state_that_was_kept_goes_on_as_it_did(name):
    world, rng = WORLDS[name](3), np.random.default_rng(0)
    world.reset(np.arange(3))
    actions = rng.uniform(-1, 1, (10, 3, world.actions))
    for action in actions[:4]:
        world.step(action)
    state = world.state_dict()
    first = [world.step(action) for action in actions[4:]]
    other = WORLDS[name](3)
    other.load_state_dict(state)
    for action, known in zip(actions[4:], first, strict=True):
        again = other.step(action)
        assert torch.equal(again.obs.vector, known.obs.vector)
        assert np.array_equal(again.reward, known.reward)


def test_rows_are_reset_alone_and_finished_ones_stay():
    world = Nav(3, steps=5)
    world.reset(np.arange(3))
    for _ in range(5):
        step = world.step(np.zeros((3, 3)))
    assert step.truncated.all()
    assert not step.terminated.any()
    where = world.state["position"].copy()
    after = world.step(np.ones((3, 3)))
    assert np.array_equal(world.state["position"], where)
    assert (after.reward == 0).all()
    world.reset(np.array([9, 9, 9]), np.array([True, False, False]))
    assert world.state["over"].tolist() == [False, True, True]
    assert np.array_equal(world.state["position"][1:], where[1:])


def test_bad_actions_and_seeds_are_refused():
    world = Nav(2)
    world.reset(np.arange(2))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        world.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        world.step(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="seeds"):
        world.reset(np.arange(3))


def test_bodies_move_as_they_can():
    """Turning and sideways at full speed from rest, one step."""
    moved = {}
    for robot in ROBOTS:
        world = Nav(1, robot=robot)
        world.reset(np.array([3]))
        world.state["slip"][:] = 0
        world.step(np.array([[0.0, 1.0, 1.0]]))
        moved[robot] = world.state["velocity"][0].copy()
    assert moved["holonomic"] == pytest.approx([0, LIMITS[1], LIMITS[2]])
    assert moved["differential"] == pytest.approx([0, 0, LIMITS[2]])
    assert moved["bicycle"] == pytest.approx([0, 0, 0])  # it cannot turn where it stands
    assert moved["legged"] == pytest.approx([0, 0, 0])  # nor obey at once
    assert [sum(MASKS[robot]) for robot in ROBOTS] == [3, 2, 2, 3]


def test_a_bicycle_turns_on_circles_of_its_radius_and_legs_lag():
    world = Nav(1, robot="bicycle")
    world.reset(np.array([3]))
    world.step(np.array([[0.5, 0.0, 1.0]]))
    speed, rate = world.state["velocity"][0, 0], world.state["velocity"][0, 2]
    assert speed / rate == pytest.approx(TURN)
    world = Nav(1, robot="legged")
    world.reset(np.array([3]))
    world.state["slip"][:] = 0
    speeds = []
    for _ in range(3):
        world.step(np.array([[1.0, 0.0, 0.0]]))
        speeds.append(world.state["velocity"][0, 0])
    first = DT / 0.3 * LIMITS[0]
    assert speeds == pytest.approx([0.0, first, first + DT / 0.3 * (LIMITS[0] - first)])


def test_the_scan_measures_the_way_to_a_disc_ahead_and_to_the_walls():
    world = Nav(1)
    world.reset(np.array([0]))
    state = world.state
    state["position"][:], state["heading"][:] = (5.0, 5.0), 0.0
    state["discs"][:] = (-1e3, -1e3, 0.0)
    state["discs"][0, 0] = (7.0, 5.0, 0.5)
    ranges = world.scan()[0]
    assert ranges[0] == pytest.approx(1.5, abs=1e-5)
    assert ranges[RAYS // 2] == pytest.approx(5.0)
    state["position"][:] = (1.0, 5.0)
    assert world.scan()[0, RAYS // 2] == pytest.approx(1.0, abs=1e-5)
    assert world.scan().max() <= RANGE


def test_layouts_leave_room_on_both_sides():
    world = Nav(60)
    world.reset(np.arange(60))
    for discs, begin, goal in zip(*(world.state[name] for name in ("discs", "begin", "goal")), strict=True):
        real = discs[discs[:, 2] > 0]
        for i in range(len(real)):
            for j in range(i):
                assert np.hypot(*(real[i, :2] - real[j, :2])) > real[i, 2] + real[j, 2] + GAP - 1e-9
            assert np.hypot(*(real[i, :2] - begin)) > real[i, 2] + RADIUS
            assert np.hypot(*(real[i, :2] - goal)) > real[i, 2] + RADIUS


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_driver_reaches_the_goal_on_the_side_it_was_told(robot):
    world = Nav(16, robot=robot)
    ran = rollout(
        world, NavExpert(), np.arange(16), torch.Generator(), record=("position", "begin", "goal", "discs", "side")
    )
    assert ran.success.mean() >= 15 / 16
    tracks = ran.tracks
    for row in np.flatnonzero(ran.success):
        left = passed_left(
            tracks["position"][row],
            ran.length[row] + 1,
            tracks["begin"][row, 0],
            tracks["goal"][row, 0],
            tracks["discs"][row, 0, 0, :2],
        )
        assert left == bool(tracks["side"][row, 0])


def test_without_a_side_the_driver_takes_the_shorter_one():
    lengths = {}
    for sided in (True, False):
        ran = rollout(Nav(24, sided=sided), NavExpert(), np.arange(24), torch.Generator())
        assert ran.success.all()
        lengths[sided] = ran.length
    assert (lengths[False] <= lengths[True] + 2).all()
    assert (lengths[False] < lengths[True]).sum() >= 6


def test_a_way_is_the_shortest_and_goes_around():
    start, goal = np.array([1.0, 5.0]), np.array([9.0, 5.0])
    free = np.ones(len(centres(10.0)), dtype=bool)
    straight = way(start, goal, free, 10.0)
    assert np.hypot(*np.diff(straight, axis=0).T).sum() == pytest.approx(8.0, abs=0.15)
    assert np.hypot(*np.diff(straight, axis=0).T).max() < 2 * SPACING
    cells = centres(10.0)
    wall = (np.abs(cells[:, 0] - 5) < 0.3) & (cells[:, 1] > 2)
    around = way(start, goal, free & ~wall, 10.0)
    assert around[:, 1].min() < 2.2
    assert way(start, goal, free & ~(np.abs(cells[:, 0] - 5) < 0.3), 10.0) is None


def test_every_task_of_the_desk_is_done_in_both_styles():
    world = Desk(96, size=16)
    ran = rollout(world, DeskExpert(), np.arange(96), torch.Generator(), record=("style",))
    assert ran.success.reshape(-1, len(TASKS)).mean(0).min() >= 0.75
    assert ran.success.mean() > 0.95
    for style in (0, 1):
        assert ran.success[ran.tracks["style"][:, 0] == style].mean() > 0.9
    assert (ran.returns == ran.success).all()


def test_sentences_are_words_and_pictures_show_what_moves():
    assert len(TASKS) == len(SENTENCES) == 12
    for task in range(12):
        words = {tuple(sentence(task, template)) for template in range(3)}
        assert len(words) == 3
        assert max(max(text) for text in words) < len(VOCABULARY)
    world = Desk(1, size=48)
    before = world.reset(np.array([0])).image.clone()
    step = world.step(np.array([[1.0, 0.0]]))
    assert before.shape == (1, 3, 48, 48)
    assert (before != step.obs.image).any()
    assert before.min() >= 0
    assert before.max() <= 1


def test_a_push_moves_one_block_and_the_switch_turns_once():
    world = Desk(1, size=16)
    world.reset(np.array([0]))
    scene = world.state["scene"]
    scene[0, :2], scene[0, 2:4] = (-0.5, 0.0), (-0.3, 0.0)
    scene[0, 4:8] = (0.6, 0.3, 0.6, -0.3)
    world.state["first"][:] = scene
    before = scene.copy()
    for _ in range(3):
        world.step(np.array([[1.0, 0.0]]))
    after = world.state["scene"][0]
    assert after[2] - before[0, 2] == pytest.approx(3 * 0.08 - 0.02, abs=1e-9)
    assert np.array_equal(after[4:8], before[0, 4:8])
    world.state["scene"][0, :2] = (0.75, -0.55)
    on = world.state["scene"][0, 9]
    world.state["task"][:] = 0
    for _ in range(3):
        world.step(np.array([[0.0, -1.0]]))
    assert world.state["scene"][0, 9] == 1 - on


def test_rollouts_count_evaluations_and_put_networks_back():
    class Counted(Policy):
        kind = "counted-in-a-test"

        def __init__(self):
            self.network = torch.nn.Linear(29, 3).train()

        def reset(self, n, generator):
            self.calls = 0

        def act(self, obs):
            assert not self.network.training
            self.calls += 1
            return self.network(obs.vector).tanh()

        def networks(self):
            return {"policy": self.network}

        def save(self, folder):
            raise NotImplementedError

        @classmethod
        def load(cls, folder, task):
            raise NotImplementedError

    policy = Counted()
    ran = rollout(Nav(3, steps=7), policy, np.arange(3), torch.Generator())
    assert ran.nfe == 1.0
    assert policy.calls == 7
    assert policy.network.training
    assert ran.decisions == ran.length.sum()
