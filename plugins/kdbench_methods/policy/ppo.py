"""Proximal policy optimisation from scratch: one policy for all robots, and all the interaction that the task allows.

Schulman et al., 2017. The student, told which robot it drives, acts in the worlds of all robots at once; advantages,
clipped ratio and learning rate are as for the residuals of ``compass``, and so is the reward. No demonstration is used,
but for the scale of observations.
"""

import torch
from torch import nn

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.ppo import Collector, Settings, improve
from kdbench.tracks.policy.blocks.residual import MobilityReward
from kdbench.tracks.policy.blocks.specialists import LAYOUTS, travel_times
from kdbench.tracks.policy.policies.gaussian import Gaussian
from kdbench.tracks.policy.worlds.nav import MASKS

BASELINE = Baseline(
    slug="ppo",
    title="PPO from scratch on all robots",
    track="policy",
    tasks=["robots"],
    tags=["reinforcement-learning"],
    reference="Schulman et al., 2017, arXiv 1707.06347",
)


class PpoParams(Params):
    """Of the algorithm."""

    worlds: int = Field(64, ge=4, le=4096, description="episodes side by side, of all robots together")
    lr: float = Field(1e-3, gt=0, le=0.1, description="learning rate at first; it follows the divergence")
    critic: int = Field(128, ge=1, le=4096, description="units of the hidden layers of the critic")


class ScratchAgent(nn.Module):
    """The student and a critic; a state is an observation and the robot's number."""

    def __init__(self, student, critic):
        super().__init__()
        self.student = student
        width = len(student.mean) + student.codes
        self.critic = nn.Sequential(
            nn.Linear(width, critic), nn.ELU(), nn.Linear(critic, critic), nn.ELU(), nn.Linear(critic, 1)
        )

    def state(self, obs):
        return torch.cat([obs.vector, obs.robot[:, None].to(obs.vector.dtype)], -1)

    def mean(self, state):
        return self.student(state[:, :-1], state[:, -1].long())

    def std(self):
        return self.student.log_std.exp()

    def value(self, state):
        code = nn.functional.one_hot(state[:, -1].long(), self.student.codes).to(state.dtype)
        scaled = (state[:, :-1] - self.student.mean) / self.student.std
        return self.critic(torch.cat([scaled, code], -1))[:, 0]


@hookimpl
def train(task, params):
    student = task.student()
    with task.seeded("critic"):
        agent = task.place(ScratchAgent(student, params.critic))
    env_steps, robots = int(task.budget.limits["env_steps"]), task.robots
    each = max(1, min(params.worlds, env_steps) // len(robots))
    collector = Collector(
        [task.world(each, robot) for robot in robots],
        [MASKS[robot] for robot in robots],
        agent,
        MobilityReward(),
        seeds=task.seeds("train", LAYOUTS),
        rng=task.rng("layouts"),
        generator=task.generator("noise"),
        device=task.device,
    )
    improve(
        task,
        agent,
        collector,
        env_steps=env_steps,
        settings=Settings(lr=params.lr),
        updates=task.budget.steps(),
        spend="steps",
    )
    return Gaussian(student.eval())


@hookimpl
def evaluate(task, model):
    """Official metrics and weighted travel times."""
    return task.score(model) | travel_times(task, model)
