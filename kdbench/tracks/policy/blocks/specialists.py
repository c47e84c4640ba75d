"""Specialists of robots by residual learning on a base, and records of what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.tracks.policy.blocks.ppo import Collector, Settings, improve
from kdbench.tracks.policy.blocks.residual import STD, Base, MobilityReward, ResidualAgent, Specialists
from kdbench.tracks.policy.policies.base import Policy
from kdbench.tracks.policy.rollouts import Rollout, rollout
from kdbench.tracks.policy.worlds.nav import DT, MASKS

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

LAYOUTS = 100_000
"""Layouts of the training split that episodes are drawn from."""


def interaction(task: PolicyTask, share: float) -> int:
    """A share of the task's limit on environment steps, rounded down."""
    return int(task.budget.limits["env_steps"] * share)


@dataclass
class Specialised:
    """The specialists of a task's robots."""

    policy: Specialists
    std: dict[int, Tensor]
    """(A,) deviation of each robot's actions, by its number; that of the base is :data:`STD`."""


def train_specialists(task: PolicyTask, base: Base, *, env_steps: int, settings: Settings) -> Specialised:
    """A residual for every robot but the first, which the base was trained for; ``env_steps`` in all.

    Their updates are ``aux_steps``.
    """
    others = list(enumerate(task.robots))[1:]
    residuals: dict[int, nn.Sequential] = {}
    std = {0: torch.full((base.head[-1].out_features,), STD, device=task.device)}
    for number, robot in others:
        with task.seeded(f"residual/{robot}"):
            agent = task.place(ResidualAgent(base))
        mine = env_steps // len(others)
        collector = Collector(
            [task.world(min(settings.worlds, mine), robot)],
            [MASKS[robot]],
            agent,
            MobilityReward(),
            seeds=task.seeds("train", LAYOUTS),
            rng=task.rng(f"layouts/{robot}"),
            generator=task.generator(f"noise/{robot}"),
            device=task.device,
        )
        improve(task, agent, collector, env_steps=mine, settings=settings, tag=f"{robot}/")
        residuals[number] = agent.actor.requires_grad_(False).eval()
        std[number] = agent.std().detach()
    return Specialised(Specialists(base, residuals), std)


@dataclass
class Records:
    """Decisions of specialists."""

    h: Tensor
    """(B, O)."""
    robot: Tensor
    """(B,) int64."""
    mean: Tensor
    std: Tensor
    """(B, A) both: mean action as it is executed, and its deviation."""
    mask: Tensor
    """(B, A) bool: dimensions that the robot uses."""

    def __len__(self) -> int:
        return len(self.h)

    def columns(self) -> tuple[Tensor, ...]:
        return self.h, self.robot, self.mean, self.std, self.mask


def record(task: PolicyTask, specialised: Specialised, *, env_steps: int) -> Records:
    """Episodes of every robot under its own specialist, without noise; at most ``env_steps`` in all.

    Raises ``ValueError`` where that is not one episode for each robot.
    """
    base, parts = specialised.policy.base, []
    each = env_steps // len(task.robots)
    for number, robot in enumerate(task.robots):
        probe = task.world(1, robot)
        count = each // probe.steps
        if count < 1:
            raise ValueError(f"{each} steps of interaction are not one episode of {probe.steps}")
        seeds = task.rng(f"records/{robot}").choice(np.asarray(task.seeds("train", LAYOUTS)), count, replace=False)
        ran = rollout(
            task.world(count, robot),
            specialised.policy,
            seeds,
            task.generator(f"records/{robot}"),
            device=task.device,
            observe=True,
        )
        made = torch.arange(ran.actions.shape[1]) < torch.from_numpy(ran.length)[:, None]
        vector = torch.stack([obs.vector for obs in ran.observations], 1)[made].to(task.device)
        mean = torch.from_numpy(ran.actions)[made].to(task.device)
        with torch.no_grad():
            h = base.encode(vector)
        parts.append(
            (
                h,
                torch.full((len(h),), number, device=task.device),
                mean,
                specialised.std[number].expand_as(mean),
                torch.tensor(MASKS[robot], device=task.device).expand(mean.shape),
            )
        )
    return Records(*(torch.cat(column) for column in zip(*parts, strict=True)))


# --- evaluation -------------------------------------------------------------------------------------------------------


def travel(ran: Rollout) -> float:
    """Weighted travel time in seconds: the mean time of successful episodes, divided by their share.

    Without any success: the time of the longest episode, divided by the share of half an episode.
    """
    share = ran.success.mean()
    if share == 0:
        return float(ran.length.max() * DT * 2 * len(ran.success))
    return float(ran.length[ran.success].mean() * DT / share)


def travel_times(task: PolicyTask, policy: Policy) -> dict[str, float]:
    """``travel_<robot>`` for every robot, on the test layouts; for the evaluation alone."""
    return {f"travel_{robot}": travel(task.rollout(policy, "test", robot=robot)) for robot in task.robots}
