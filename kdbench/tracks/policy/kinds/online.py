"""Random processes that are explored under a constraint: regret and violations are exact."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from kdbench.task import Scores
from kdbench.tracks.policy.blocks.sessions import Session, explored
from kdbench.tracks.policy.kinds.base import Kind
from kdbench.tracks.policy.networks.tables import TableNet
from kdbench.tracks.policy.policies.tabular import Exploration
from kdbench.tracks.policy.worlds.tabular import MDP, optimal, random_mdp

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


class OnlineKind(Kind):
    """Processes with sessions."""

    returns = Exploration

    @cached_property
    def mdps(self) -> list[MDP]:
        """The processes, of a fixed list of seeds."""
        world = self.spec.world
        seeds = range(world.first_seed, world.first_seed + world.count)
        return [random_mdp(seed, world.states, world.actions, world.horizon, world.alpha) for seed in seeds]

    def build_student(self) -> nn.Module:
        world = self.spec.world
        return TableNet([(world.states, world.actions)] * world.count)

    def sessions(self, task: PolicyTask) -> list[Session]:
        """One session a process; the noise of the processes comes from the stream ``data``."""
        world, episodes = self.spec.world, int(self.spec.limits["episodes"])
        task.budget.spend("episodes", episodes)
        return [
            Session(
                mdp,
                safe=world.safe,
                slack=world.slack,
                episodes=episodes,
                rng=np.random.default_rng([task.stream("data"), number]),
                spend=task.budget.spend,
            )
            for number, mdp in enumerate(self.mdps)
        ]

    def floor(self, task: PolicyTask) -> Exploration:
        return self._played(task, [np.full((mdp.states, mdp.actions), 1 / mdp.actions) for mdp in self.mdps])

    def ceiling(self, task: PolicyTask) -> Exploration:
        return self._played(task, [optimal(mdp).policy for mdp in self.mdps])

    def _played(self, task: PolicyTask, policies: list[np.ndarray]) -> Exploration:
        """One policy for all episodes of each process."""
        sessions = self.sessions(task)
        for session, policy in zip(sessions, policies, strict=True):
            for _ in range(session.episodes):
                session.play(policy)
        return explored(sessions)

    def validate(self, task: PolicyTask, model: Exploration) -> dict[str, float]:
        """What the safe baseline earns is known, and no more: the share of it that the threshold is."""
        return {"threshold": float(model.threshold.mean())}

    def measure(self, task: PolicyTask, model: Exploration) -> Scores:
        regret, violations = model.regret, model.violations.astype(np.float64)
        last = model.values[:, -max(1, model.values.shape[1] // 10) :].mean(1) / model.optimum
        examples = {"regret": regret, "violations": violations, "optimality": last}
        return Scores({name: float(values.mean()) for name, values in examples.items()}, examples)
