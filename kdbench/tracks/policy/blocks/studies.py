"""What is looked at in chunk policies beside their scores: borders of chunks, and goals that move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdbench.tracks.policy.policies.chunks import Chunks
from kdbench.tracks.policy.rollouts import Rollout
from kdbench.tracks.policy.worlds.base import World
from kdbench.tracks.policy.worlds.nav import SIZE

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

JUMP = 20
"""Step before which goals move."""
TURN = np.deg2rad(35.0)
"""By how much, around the middle of the arena."""


def jump(world: World, number: int) -> None:
    """A hook of rollouts: before step ``JUMP`` the goal turns around the middle of the arena, to a free place.

    To the left where that is free, else to the right; it stays where neither is, or where an episode is over.
    """
    if number != JUMP:
        return
    state = world.state
    rel = state["goal"] - SIZE / 2
    placed = state["over"].copy()
    for angle in (TURN, -TURN):
        c, s = np.cos(angle), np.sin(angle)
        spot = SIZE / 2 + rel @ np.array([[c, s], [-s, c]])
        away = np.hypot(*np.moveaxis(state["discs"][..., :2] - spot[:, None], -1, 0)) - state["discs"][..., 2]
        free = (away.min(1) > 0.45) & (np.minimum(spot, SIZE - spot).min(1) > 0.45) & ~placed
        state["goal"] = np.where(free[:, None], spot, state["goal"])
        placed |= free


def roughness(ran: Rollout, executed: int) -> dict[str, float]:
    """Mean change of actions from step to step, ``inside`` chunks of ``executed`` actions and at their ``border``."""
    change = np.abs(np.diff(ran.actions, axis=1)).mean(-1)
    steps = np.arange(1, change.shape[1] + 1)
    live = steps < ran.length[:, None]
    border = np.broadcast_to(steps % executed == 0, live.shape)
    found = {}
    for name, where in (("roughness_border", live & border), ("roughness_inside", live & ~border)):
        found[name] = float(change[where].mean()) if where.any() else 0.0
    return found


def study(task: PolicyTask, policy: Chunks) -> dict[str, float]:
    """``evaluations`` of the network for a chunk, ``roughness_border`` and ``roughness_inside``, and in world ``nav``
    ``success_jump``, the success where the goal moves on the way; on the test layouts, each once."""
    ran = task.rollout(policy, "test")
    found = {"evaluations": ran.nfe * policy.executed, **roughness(ran, policy.executed)}
    if task.spec.world.kind == "nav":
        found["success_jump"] = float(task.rollout(policy, "test", hook=jump).success.mean())
    return found
